"""Bundles: a plan as a folder, loaded by a process that has neither the database nor the model's code."""

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import threading

import pytest
import torch
from typer.testing import CliRunner

import autotune
from autotune import registry
from autotune.cli.main import app
from autotune.database.store import Store
from autotune.deploy import bundle, bundle_manifest
from autotune.errors import ArtifactError, AutotuneError, RequestError, WorkError

L4 = {"name": "NVIDIA L4", "kind": "cuda", "capability": [8, 9], "power_limit_w": 72}


@pytest.fixture
def store(tuned_net):
    with Store.open(tuned_net.database) as opened:
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


def test_a_process_without_database_and_model_code_gets_the_models_answers(tuned_net, written):
    loads = f"autotune.load_bundle({str(written)!r}, device='cpu')"
    tuned_net.check_elsewhere(loads, written.parent, absent=["net_of_a_user", "sqlalchemy"])


def test_it_is_called_from_many_threads_after_its_folder_is_gone(tuned_net, written):
    inputs, answers = tuned_net.inputs, tuned_net.answers
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
    assert document["plan"]["device_class"] == plan.device.device_class and document["plan"]["structure"]
    assert document["plan"]["toolchain"] == plan.toolchain.as_dict() and document["plan"]["configuration"]
    assert document["kernels"] == [], "a backend that calls no kernels of its own"
    assert document["signature"]["positions"] == ["x", "shift", "scale", "training"]
    assert "torch" in document["licences"] and document["autotune"] == autotune.__version__
    assert oct((written).stat().st_mode & 0o777) == "0o755"
    assert sum(file["size_bytes"] for file in document["files"]) > 1000


def test_the_manifest_names_the_kernels_that_the_artifact_calls(store, tmp_path, monkeypatch):
    sites = [{"name": "linear", "operator": "aten.linear", "kernel": {"configuration": {"block_m": 64}}}]

    class Explaining:
        def explain_artifact(self, folder):
            assert (folder / "artifact.json").exists()
            return {"nodes_before": 2, "nodes_after": 1, "fusions": {}, "sites": sites}

    monkeypatch.setattr(registry, "explaining", lambda name: Explaining())
    (plan,) = store.plans.list(name="net")
    folder = bundle.write_bundle(plan, store, tmp_path / "net.plan")
    assert json.loads((folder / "manifest.json").read_text())["kernels"] == sites
    autotune.load_bundle(folder, device="cpu").close()


def test_the_command_writes_one_and_says_how_it_is_loaded(tuned_net, tmp_path):
    run = CliRunner()
    given = ["export", "net", "--db", tuned_net.database, "--out", str(tmp_path / "b")]
    done = run.invoke(app, given)
    assert done.exit_code == 0 and f"autotune.load_bundle('{tmp_path / 'b'}')" in done.stdout
    autotune.load_bundle(tmp_path / "b", device="cpu").close()
    assert run.invoke(app, given).exit_code == 2, "the folder exists"
    done = run.invoke(app, [*given[:-1], str(tmp_path / "c"), "--json"])
    assert json.loads(done.stdout)["folder"] == str(tmp_path / "c")
    assert run.invoke(app, ["export", "nett", *given[2:]]).exit_code != 0


def test_one_plan_is_exported(tuned_net, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tuned_net.folder, copy, symlinks=True)
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
        ({"schema": True}, "another version"),
        ({"schema": 7, "plan": None, "files": None}, "another version"),
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


@pytest.mark.parametrize(
    "harm",
    ["truncated", "longer", "changed", "missing", "more", "beside", "link", "hard link", "fifo", "socket", "folder"],
)
def test_files_that_are_not_those_of_the_plan_are_refused(harm, written, tmp_path):
    file = max((path for path in (written / "artifact").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = file.read_bytes()
    if harm == "truncated":
        file.write_bytes(content[:-7])
    elif harm == "changed":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "longer":
        file.write_bytes(content + b"?")
    elif harm == "more":
        (written / "artifact" / "more.so").write_bytes(b"?")
    elif harm == "beside":
        (written / "more.so").write_bytes(b"?")
    elif harm == "folder":
        shutil.move(written / "artifact", tmp_path / "elsewhere")
        (written / "artifact").symlink_to(tmp_path / "elsewhere")
    else:
        file.unlink()
        if harm == "hard link":
            (tmp_path / "elsewhere").write_bytes(content)
            os.link(tmp_path / "elsewhere", file)
        elif harm == "socket":
            with contextlib.chdir(file.parent), socket.socket(socket.AF_UNIX) as bound:
                bound.bind(file.name)
        if harm == "link":
            (tmp_path / "elsewhere").write_bytes(content)
            file.symlink_to(tmp_path / "elsewhere")
        elif harm == "fifo":
            os.mkfifo(file)
    with pytest.raises(ArtifactError, match="damaged"):
        autotune.load_bundle(written, device="cpu")


def test_a_manifest_larger_than_any_is_not_read(written, monkeypatch):
    monkeypatch.setattr(bundle_manifest, "MOST_BYTES", 100)
    with pytest.raises(ArtifactError, match="more than the 100"):
        autotune.load_bundle(written, device="cpu")


def test_a_manifest_is_no_link(written, tmp_path):
    shutil.move(written / "manifest.json", tmp_path / "elsewhere")
    (written / "manifest.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match=r"no manifest\.json"):
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
