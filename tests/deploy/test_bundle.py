"""Bundles: a plan as a folder, loaded by a process that has neither the database nor the model's code."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from typer.testing import CliRunner

import autotune
from autotune.cli.main import app
from autotune.database.store import Store
from autotune.deploy import bundle
from autotune.errors import ArtifactError, AutotuneError, RequestError, WorkError

MODEL = """
    import collections, time
    import torch

    Answer = collections.namedtuple("Answer", "second hidden")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(16, 32), torch.nn.Linear(32, 4)

        def forward(self, x, shift=None, scale=None):
            time.sleep(0.002)  # in no graph, so that a graph is faster even on a busy host
            hidden = torch.relu(self.first(x))
            return Answer(self.last(hidden) * scale, hidden)
"""


L4 = {"name": "NVIDIA L4", "kind": "cuda", "capability": [8, 9], "power_limit_w": 72}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database with the plan of a model by TorchScript, and calls with their answers."""
    folder = tmp_path_factory.mktemp("bundles")
    (folder / "bundled_net.py").write_text(textwrap.dedent(MODEL))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import bundled_net

        torch.manual_seed(0)
        net = bundled_net.Net().eval()
        inputs = {"x": torch.randn(3, 16), "scale": torch.rand(1) + 0.5}
        path = str(folder / "autotune.db")
        autotune.optimize(
            net, inputs, db=path, name="net", backends=("torchscript",), serve_as="torchscript", trials=3,
            budget="60s", device="cpu",
        ).close()  # fmt: skip
        with torch.no_grad():
            answers = tuple(net(**inputs))
        torch.save((inputs, answers), folder / "calls.pt")
        yield folder
    sys.modules.pop("bundled_net", None)


@pytest.fixture
def store(made):
    with Store.open(str(made / "autotune.db")) as opened:
        yield opened


@pytest.fixture
def written(store, tmp_path):
    """A bundle that a test may change."""
    (plan,) = store.plans.list(name="net")
    return bundle.write_bundle(plan, store, tmp_path / "net.plan")


def manifest(folder, **changes):
    """Change the manifest of a bundle; a function gets the whole document."""
    document = json.loads((folder / "manifest.json").read_text())
    for key, value in changes.items():
        document[key] = value(document) if callable(value) else value
    (folder / "manifest.json").write_text(json.dumps(document))


def test_a_process_without_database_and_model_code_gets_the_models_answers(made, written):
    shutil.copy(made / "calls.pt", written.parent / "calls.pt")
    program = """
        import sys, torch, autotune
        fast = autotune.load_bundle("net.plan", device="cpu")
        inputs, answers = torch.load("calls.pt")
        for answer in (fast(**inputs), fast(inputs["x"], None, inputs["scale"])):
            torch.testing.assert_close(answer.second, answers[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(answer["hidden"], answers[1], rtol=1e-4, atol=1e-5)
        assert not {"bundled_net", "sqlalchemy"} & set(sys.modules), "neither the model's code nor a database"
        print(fast.plan.name, sorted(fast.seconds))
        fast.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False,
        cwd=written.parent, env={**os.environ, "AUTOTUNE_DB": "/nonexistent/autotune.db"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "net ['look_up', 'open']\n"


def test_it_is_called_from_many_threads_after_its_folder_is_gone(made, written):
    inputs, answers = torch.load(made / "calls.pt")
    fast = autotune.load_bundle(written, device="cpu")
    shutil.rmtree(written)
    wrong = []

    def call():
        for factor in (1.0, 2.0, 3.0):
            answer = fast(inputs["x"], scale=factor * inputs["scale"])
            if not torch.allclose(answer.second, factor * answers[0], rtol=1e-4, atol=1e-5):
                wrong.append(factor)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fast.close()
    assert not wrong


def test_the_manifest_says_what_is_in_it(written, store):
    (plan,) = store.plans.list(name="net")
    document = json.loads((written / "manifest.json").read_text())
    assert document["plan"]["uid"] == plan.uid and document["plan"]["evidence"]["finalists"]
    assert [spec["name"] for spec in document["inputs"]] == ["x", "scale"] and len(document["outputs"]) == 2
    assert document["signature"]["positions"] == ["x", "shift", "scale"]
    assert "torch" in document["licences"] and document["autotune"] == autotune.__version__
    assert oct((written).stat().st_mode & 0o777) == "0o755"
    assert sum(file["size_bytes"] for file in document["files"]) > 1000


def test_the_command_writes_one_and_says_how_it_is_loaded(made, tmp_path):
    run = CliRunner()
    given = ["export", "net", "--db", str(made / "autotune.db"), "--out", str(tmp_path / "b")]
    done = run.invoke(app, given)
    assert done.exit_code == 0 and f"autotune.load_bundle('{tmp_path / 'b'}')" in done.stdout
    autotune.load_bundle(tmp_path / "b", device="cpu").close()
    assert run.invoke(app, given).exit_code == 2, "the folder exists"
    done = run.invoke(app, [*given[:-1], str(tmp_path / "c"), "--json"])
    assert json.loads(done.stdout)["bundle"] == str(tmp_path / "c")
    assert run.invoke(app, ["export", "nett", *given[2:]]).exit_code != 0


def test_one_plan_is_exported(made, store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, symlinks=True)
    with Store.open(str(copy / "autotune.db")) as other:
        (plan,) = other.plans.list(name="net")
        other.plans.promote(dataclasses.replace(plan, uid="b" * 32, structure="c" * 64))
    given = ["export", "net", "--db", str(copy / "autotune.db"), "--out", str(tmp_path / "b")]
    for more in ((), ("--plan", "f" * 32)):
        done = CliRunner().invoke(app, [*given, *more])
        assert done.exit_code == 2 and not (tmp_path / "b").exists()
    assert CliRunner().invoke(app, [*given, "--structure", plan.structure[:8]]).exit_code == 0
    assert CliRunner().invoke(app, [*given[:-1], str(tmp_path / "c"), "--plan", plan.uid[:8]]).exit_code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "another version"),
        ({"files": []}, "damaged"),
        ({"files": lambda d: [*d["files"], {**d["files"][0], "name": "../../secret"}]}, "damaged"),
        ({"files": lambda d: [{**d["files"][0], "name": "/etc/passwd"}, *d["files"][1:]]}, "damaged"),
        ({"files": lambda d: [{**d["files"][0], "sha256": "0" * 64}, *d["files"][1:]]}, "other files than those"),
        ({"plan": {}}, "damaged"),
        ({"plan": lambda d: {**d["plan"], "weights": "0" * 64}}, "not its own"),
        ({"plan": lambda d: {**d["plan"], "toolchain": {"torch": "1.0"}}}, "made for torch 1.0"),
        (
            {"plan": lambda d: {**d["plan"], "device": {**d["plan"]["device"], **L4}}},
            "made for device class nvidia-l4",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_before_anything_is_loaded(change, words, written):
    manifest(written, **change)
    with pytest.raises(ArtifactError) as raised:
        autotune.load_bundle(written, device="cpu")
    assert words in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "[" * 100_000, "\xff"])
def test_a_manifest_that_is_none_is_told(text, written):
    (written / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match="damaged"):
        autotune.load_bundle(written, device="cpu")


def test_a_folder_without_one_is_no_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RequestError, match="no bundle"):
            autotune.load_bundle(path)


@pytest.mark.parametrize("harm", ["truncated", "changed", "missing", "more", "link", "fifo"])
def test_files_that_are_not_those_of_the_plan_are_refused(harm, written, tmp_path):
    file = max((path for path in (written / "artifact").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = file.read_bytes()
    if harm == "truncated":
        file.write_bytes(content[:-7])
    elif harm == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "more":
        (written / "artifact" / "more.so").write_bytes(b"?")
    else:
        file.unlink()
        if harm == "link":
            (tmp_path / "elsewhere").write_bytes(content)
            file.symlink_to(tmp_path / "elsewhere")
        elif harm == "fifo":
            os.mkfifo(file)
    with pytest.raises(ArtifactError, match="damaged"):
        autotune.load_bundle(written, device="cpu")


def test_nothing_is_left_of_one_that_could_not_be_written(store, tmp_path, monkeypatch):
    (plan,) = store.plans.list(name="net")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "hashed", full)
        with pytest.raises(WorkError, match=r"No space left[\s\S]*--out"):
            bundle.write_bundle(plan, store, tmp_path / "net.plan")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WorkError, match="cannot be written"):
        bundle.write_bundle(plan, store, tmp_path / "missing" / "net.plan")
    folder = bundle.write_bundle(plan, store, tmp_path / "net.plan")
    monkeypatch.setattr(bundle, "hashed", full)
    with pytest.raises(WorkError, match=r"No space left[\s\S]*TMPDIR"):
        autotune.load_bundle(folder)


def test_a_plan_that_runs_the_models_own_code_is_no_bundle(store, tmp_path):
    (plan,) = store.plans.list(name="net")
    own = dataclasses.replace(
        plan, configuration=type(plan.configuration).of("eager", {"form": "module", "precision": "fp32"})
    )
    with pytest.raises(RequestError, match="serve_as"):
        bundle.write_bundle(own, store, tmp_path / "net.plan")
    with pytest.raises(AutotuneError):
        bundle.write_bundle(dataclasses.replace(plan, artifact=None), store, tmp_path / "net.plan")
