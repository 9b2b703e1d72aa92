"""Studies of models from files and of compiled modules in memory: every backend answers, and plans need no file."""

import json

import pytest
import torch
from typer.testing import CliRunner

import autotune
from autotune import registry
from autotune.cli.main import app
from autotune.database.store import Store
from autotune.deploy.bundle import write_bundle
from autotune.model import model_file
from autotune.model.capture import capture
from autotune.model.source import OWN_FILE, CapturedModel, write
from autotune.runtime import discovery
from autotune.testing.toy_models import build_artifact, plain_configuration
from tests import model_files
from tests.read_only import run_python

pytestmark = pytest.mark.slow

FEW = {"backends": ("eager", "torchscript"), "trials": 4, "budget": "60s"}
LOAD = """
import sys, torch
import autotune
inputs, expected = torch.load(sys.argv[2], weights_only=True)
fast = autotune.load(sys.argv[3], db=sys.argv[1])
answer = fast(**inputs)
flat = list(answer.values()) if isinstance(answer, dict) else [answer]
print(all(torch.allclose(a, b, atol=1e-2) for a, b in zip(flat, expected, strict=True)), fast.plan.configuration)
"""


def same(answer, expected):
    flat = list(answer.values()) if isinstance(answer, dict) else [answer]
    return all(torch.allclose(here, there, atol=1e-2) for here, there in zip(flat, expected, strict=True))


@pytest.mark.parametrize("kind", model_files.KINDS)
@pytest.mark.parametrize("name", model_files.MODELS)
def test_every_backend_answers_like_the_eager_model(name, kind, tmp_path):
    path, inputs = model_files.write(name, kind, tmp_path)
    device, expected = discovery.cpu(), model_files.answers(name, inputs)
    module = model_file.module_of(path)
    write(tmp_path / "source", capture(name, 2, module, inputs), inputs, factory=None, seed=0, module=module)
    source = CapturedModel(tmp_path / "source")
    works = [backend for backend in map(registry.backend, registry.names()) if backend.probe(device).works]
    assert {"eager", "torchscript"} <= {backend.name for backend in works}
    for backend in works:
        folder = tmp_path / backend.name
        folder.mkdir()
        build_artifact(backend, source, plain_configuration(backend, device, source), device, folder)
        runner = backend.load(folder, device)
        for here, there in zip(runner(*inputs.values()), expected, strict=True):
            assert torch.allclose(here, there, atol=1e-3), backend.name
        runner.close()


def tuned(*arguments):
    result = CliRunner().invoke(app, ["tune", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    (study,) = json.loads(result.stdout)["studies"]
    return study


def answers_elsewhere(tmp_path, database, name, model, inputs):
    """Load a plan by its name in a fresh process, in a folder without the model."""
    torch.save((inputs, model_files.answers(model, inputs)), tmp_path / "expected.bin")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shown = run_python("writable", elsewhere, LOAD, str(database), str(tmp_path / "expected.bin"), name)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def baseline_only(tmp_path, text):
    """Write a study file whose only candidates are eager ones."""
    path = tmp_path / "study.yaml"
    path.write_text(
        f"name: own\n{text}\ndevice: cpu\nspace: {{backends: [eager], precision: [fp32]}}\n"
        "search: {trials: 3, budget: 1m}\n"
    )
    return path


@pytest.mark.parametrize("kind", ["scripted", "exported"])
def test_a_file_needs_no_study_file_and_its_plan_no_file(kind, tmp_path):
    path, inputs = model_files.write("encoder", kind, tmp_path)
    database = tmp_path / "a.db"
    options = [path, "--inputs", "ids=2x6:int64:0..50", "--inputs", "mask=2x6", "--db", database, "--trials", "3"]
    study = tuned(*options)
    assert (study["name"], study["batch"]) == (path.stem, 2)
    finalists = [finalist["configuration"] for finalist in study["finalists"]]
    assert any(configuration.get("form") == "module" for configuration in finalists)
    again = tuned(*options)
    assert again["plan"]["cached"] and again["deploy"] == study["deploy"]
    assert f"autotune.load('{path.stem}', batch=2" in study["deploy"]
    path.unlink()
    assert answers_elsewhere(tmp_path, database, path.stem, "encoder", inputs).startswith("True")


def test_another_content_of_the_file_is_another_study(tmp_path):
    path, _ = model_files.write("convolutional", "scripted", tmp_path)
    database = tmp_path / "a.db"
    options = [path, "--inputs", "2x3x12x12", "--db", database, "--trials", "2"]
    assert not tuned(*options)["plan"]["cached"]
    model, _ = model_files.convolutional()
    with torch.no_grad():
        model.head.bias += 1
    torch.jit.script(model).save(str(path))
    tuned(*options)
    with Store.open(str(database), create=False) as store:
        assert len({row.weights for row in store.studies.list(path.stem, 2)}) == 2


def test_the_baseline_holds_a_copy_of_the_file(tmp_path):
    path, inputs = model_files.write("convolutional", "traced", tmp_path)
    study = baseline_only(tmp_path, f"model: {{file: {path.name}}}\ninputs: [{{shape: [batch, 3, 12, 12]}}]\nbatch: 2")
    database = tmp_path / "a.db"
    outcome = tuned(study, "--db", database)
    assert outcome["plan"]["backend"] == "eager"
    module, example = autotune.from_study(study)
    assert same(autotune.load(module, example, db=str(database), rebuild=False)(**example), [module(**example)])
    with Store.open(str(database), create=False) as store:
        (plan,) = store.plans.list(name="own")
        with store.artifacts.verified(plan.artifact) as folder:
            if plan.configuration["form"] == "module":
                assert (folder / OWN_FILE).read_bytes() == path.read_bytes()
        write_bundle(plan, store, tmp_path / "own.plan")
    path.unlink()
    expected = model_files.answers("convolutional", inputs)
    assert same(autotune.load_bundle(tmp_path / "own.plan", device="cpu")(**inputs), expected)
    assert answers_elsewhere(tmp_path, database, "own", "convolutional", inputs).startswith("True")


@pytest.mark.parametrize("kind", model_files.KINDS)
def test_a_compiled_module_in_memory(kind, tmp_path):
    path, inputs = model_files.write("encoder", kind, tmp_path)
    model = torch.export.load(path) if kind == "exported" else torch.jit.load(path)
    database = str(tmp_path / "a.db")
    fast = autotune.optimize(model, inputs, db=database, name="compiled", **FEW)
    expected = model_files.answers("encoder", inputs)
    assert same(fast(**inputs), expected) and list(fast(**inputs)) == ["logits", "pooled"]
    if kind != "exported":
        assert same(fast(*inputs.values()), expected)
    path.unlink()
    assert same(autotune.load(model, inputs, db=database, rebuild=False)(**inputs), expected)
    with Store.open(database, create=False) as store:
        forms = {
            trial.configuration.get("form", "") for row in store.studies.list("compiled", 2)
            for trial in store.trials.of_study(row.uid) if trial.state == "complete"
        }  # fmt: skip
    assert ("module" in forms) == (kind != "exported")
