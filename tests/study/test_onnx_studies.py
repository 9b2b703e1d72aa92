"""Studies of ONNX files: every backend that reads them answers, ONNX Runtime's defaults are the baseline."""

import json

import numpy
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from typer.testing import CliRunner

import autotune
from autotune import registry
from autotune.cli.main import app
from autotune.database.store import Store
from autotune.deploy.bundle import write_bundle
from autotune.errors import ModelError, PlanNotFoundError
from autotune.model import onnx_model, source
from autotune.model.onnx import FILE, exported
from autotune.model.onnx_capture import capture_onnx
from autotune.records.configuration import Configuration
from autotune.runtime.discovery import cpu
from autotune.testing.toy_models import build_artifact, plain_configuration
from tests import onnx_files
from tests.read_only import run_python

pytestmark = pytest.mark.slow

INPUTS = {
    "convolutional": {"input.1": torch.randn(2, 3, 12, 12)},
    "encoder": {"ids": torch.randint(0, 50, (2, 6)), "mask": torch.rand(2, 6)},
}
OPTIONS = {
    "convolutional": ("--inputs", "2x3x12x12"),
    "encoder": ("--inputs", "ids=2x6:int64:0..50", "--inputs", "mask=2x6:float32:uniform"),
}


def model(name, **options):
    return getattr(onnx_files, name)(**options)


def expected(path, inputs):
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    return [torch.from_numpy(answer) for answer in onnxruntime.InferenceSession(str(path)).run(None, feeds)]


def same(answer, right):
    return all(torch.allclose(here, there, atol=1e-3) for here, there in zip(answer, right, strict=True))


def built(backend, configuration, folder, name):
    """Build a configuration from an ONNX file and return its runner, and the answers of ONNX Runtime."""
    path, inputs = onnx_files.written(folder, model(name)), INPUTS[name]
    own, artifact = folder / "model", folder / "artifact"
    own.mkdir()
    artifact.mkdir()
    onnx_model.write_fixed(path, inputs, own / source.OWN_ONNX)
    captured = capture_onnx(name, 2, own / source.OWN_ONNX, inputs, inputs)
    source.write(own, captured, inputs, factory=None, seed=0)
    captured_model = source.CapturedModel(own)
    chosen = configuration or plain_configuration(backend, cpu(), captured_model)
    build_artifact(backend, captured_model, chosen, cpu(), artifact)
    return backend.load(artifact, cpu()), expected(path, inputs)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_backend_that_reads_onnx_answers_like_onnxruntime(backend, name, tmp_path):
    assert backend in registry.building_from("onnx")
    runner, right = built(registry.backend(backend), None, tmp_path, name)
    assert same(runner(*INPUTS[name].values()), right)
    runner.close()


def test_a_model_in_onnx_is_fused_as_it_is(tmp_path):
    owner = registry.backend("onnxruntime")
    fusing = Configuration.of(
        "onnxruntime",
        {"precision": "fp32", "graph_optimization": "all", "transformer_fusions": True, "threads": 1, "spinning": True},
    )
    with pytest.raises(RuntimeError, match="nothing in this graph could be fused"):
        built(owner, fusing, tmp_path, "encoder")  # the scaled mask is of no transformer that ONNX Runtime knows


def tuned(*arguments):
    result = CliRunner().invoke(app, ["tune", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    (study,) = json.loads(result.stdout)["studies"]
    return study


LOAD = """
import sys, torch
import autotune
inputs, right = torch.load(sys.argv[2], weights_only=True)
fast = autotune.load(sys.argv[3], db=sys.argv[1])
answer = fast(**inputs)
print(list(answer), all(torch.allclose(a, b, atol=1e-2) for a, b in zip(answer.values(), right, strict=True)))
"""


def test_a_file_needs_no_study_file_and_its_plan_no_file(tmp_path):
    path = onnx_files.written(tmp_path, model("encoder"), beside=True)
    database, right = tmp_path / "a.db", expected(path, INPUTS["encoder"])
    options = [path, *OPTIONS["encoder"], "--db", database, "--trials", "4"]
    study = tuned(*options)
    assert (study["name"], study["batch"]) == ("net", 2) and "autotune.load('net', batch=2" in study["deploy"]
    (baseline,) = [finalist for finalist in study["finalists"] if finalist["is_baseline"]]
    assert baseline["configuration"] == {
        "backend": "onnxruntime", "precision": "fp32", "graph_optimization": "all", "transformer_fusions": False,
        "threads": cpu().cores, "spinning": True,
    }  # fmt: skip
    with Store.open(str(database), create=False) as store:
        (row,) = store.studies.list("net", 2)
        backends = {trial.configuration.backend for trial in store.trials.of_study(row.uid)}
        (plan,) = store.plans.list(name="net")
        write_bundle(plan, store, tmp_path / "net.plan")
    assert backends <= {"onnxruntime", "openvino"} and "onnxruntime" in backends
    assert tuned(*options)["plan"]["cached"]
    torch.save((INPUTS["encoder"], right), tmp_path / "right.bin")
    (tmp_path / "elsewhere").mkdir()
    for file in (path, tmp_path / "weights.bin"):
        file.unlink()
    shown = run_python("writable", tmp_path / "elsewhere", LOAD, str(database), str(tmp_path / "right.bin"), "net")
    assert shown.stdout.strip() == "['hidden', 'pooled'] True", shown.stderr
    fast = autotune.load_bundle(tmp_path / "net.plan", device="cpu")
    assert same(fast(*INPUTS["encoder"].values()).values(), right)


def test_weights_beside_the_file_that_change_are_another_model(tmp_path):
    path = onnx_files.written(tmp_path, model("convolutional"), beside=True)
    options = [path, *OPTIONS["convolutional"], "--db", tmp_path / "a.db", "--trials", "2"]
    assert not tuned(*options)["plan"]["cached"]
    beside = tmp_path / "weights.bin"
    values = numpy.frombuffer(beside.read_bytes(), dtype=numpy.float32)
    beside.write_bytes((values * 1.5).tobytes())
    tuned(*options)
    with Store.open(str(tmp_path / "a.db"), create=False) as store:
        rows = store.studies.list("net", 2)
        assert len({row.weights for row in rows}) == 2


def test_a_study_file_takes_its_shapes_from_the_onnx_file(tmp_path):
    onnx_files.written(tmp_path, model("convolutional"))
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: own\nmodel: {file: net.onnx}\nbatch: [1, 3]\ndevice: cpu\nserve_as: onnx\nsearch: {trials: 2}\n"
    )
    result = CliRunner().invoke(app, ["tune", str(study), "--json", "--db", str(tmp_path / "a.db")])
    assert result.exit_code == 0, result.output
    studies = json.loads(result.stdout)["studies"]
    assert [study["batch"] for study in studies] == [1, 3]
    assert {study["plan"]["backend"] for study in studies} == {"onnxruntime"}
    assert "autotune.load('own', batch=3, serve_as='onnx'" in studies[1]["deploy"]
    fast = autotune.load("own", batch=3, serve_as="onnx", db=str(tmp_path / "a.db"))
    example = torch.randn(3, 3, 12, 12)
    assert same([fast(example)["logits"]], expected(tmp_path / "net.onnx", {"input.1": example}))
    assert same([fast(**{"input.1": example})["logits"]], [fast(example)["logits"]])
    with pytest.raises(PlanNotFoundError, match="serve"):
        autotune.load("own", batch=3, serve_as="torchscript", db=str(tmp_path / "a.db"))


def refused(tmp_path, *arguments, text="", content=None):
    path = onnx_files.written(tmp_path, content or model("convolutional"))
    if text:
        path = tmp_path / "study.yaml"
        path.write_text(f"name: own\nmodel: {{file: net.onnx}}\ndevice: cpu\n{text}\n")
    result = CliRunner().invoke(app, ["tune", str(path), *arguments, "--db", str(tmp_path / "a.db")])
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    return result.output


def test_a_backend_that_builds_from_torch_is_refused_by_name(tmp_path):
    shown = refused(tmp_path, text="space: {backends: [native, openvino]}")
    assert "backend native was asked for" in shown and "onnxruntime, openvino" in shown


def test_a_format_that_no_onnx_file_becomes_is_refused(tmp_path):
    assert "leaves no candidate" in refused(tmp_path, "--serve-as", "torchscript")
    assert "expected: one of any" in refused(tmp_path, "--serve-as", "tflite")


def test_open_sizes_without_a_value_are_asked_for_by_name(tmp_path):
    shown = refused(tmp_path, content=model("encoder"))
    assert "no shape of ids, no shape of mask" in shown and "--inputs ids=SHAPE:int64:LOW..HIGH" in shown


def test_first_sizes_of_different_names_are_no_batch(tmp_path):
    inputs = [onnx_files.value("x", ["n", 3]), onnx_files.value("y", ["m", 3])]
    content = onnx_files.model(
        [helper.make_node("Concat", ["x", "y"], ["z"], axis=0)], inputs, [onnx_files.value("z", [None, 3])]
    )
    assert "no shape of x, no shape of y" in refused(tmp_path, content=content)


def test_in_half_precision_its_inputs_and_outputs_keep_their_types(tmp_path):
    path, inputs = onnx_files.written(tmp_path, model("convolutional")), INPUTS["convolutional"]
    own = tmp_path / "model"
    own.mkdir()
    onnx_model.write_fixed(path, inputs, own / source.OWN_ONNX)
    source.write(own, capture_onnx("net", 2, own / source.OWN_ONNX, inputs, inputs), inputs, factory=None, seed=0)
    folder = exported(source.CapturedModel(own), "fp16")
    half = onnx.load(str(folder / FILE))
    assert {onnx.TensorProto.FLOAT16} == {t.data_type for t in half.graph.initializer if t.data_type != 7}
    answers, right = expected(folder / FILE, inputs), expected(path, inputs)
    assert answers[0].dtype == torch.float32 and torch.allclose(answers[0], right[0], atol=2e-2)


def test_an_operator_that_no_library_knows_is_refused_before_any_trial(tmp_path):
    content = model("convolutional")
    content.graph.node[1].op_type = "Reul"
    shown = refused(tmp_path, content=content)
    assert "Reul" in shown and "onnx.checker" in shown


def test_a_graph_is_not_made_a_torch_model(tmp_path):
    path = onnx_files.written(tmp_path, model("convolutional"))
    study = tmp_path / "study.yaml"
    study.write_text("name: own\nmodel: {file: net.onnx}\n")
    with pytest.raises(ModelError, match="no torch module"):
        autotune.from_study(study)
    assert onnx.load(str(path)).graph.node
