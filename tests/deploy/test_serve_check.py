"""``autotune serve-check``: a bundle started cold in a fresh process."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from autotune.cli.main import app
from autotune.database.store import Store
from autotune.deploy import bundle, serve_check
from autotune.errors import ArtifactError, SignatureError, WorkError
from tests.deploy.test_on_miss import far, rewrite
from tests.deploy.test_signing import write_keys


@pytest.fixture(scope="module")
def exported(tuned_net, tmp_path_factory):
    with Store.open(tuned_net.database) as store:
        (plan,) = store.plans.list(name="net")
        return bundle.write_bundle(plan, store, tmp_path_factory.mktemp("exported") / "net.plan")


@pytest.fixture
def written(exported, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(exported, tmp_path / "net.plan")


def check(*arguments):
    return CliRunner().invoke(app, ["serve-check", *map(str, arguments)])


def test_the_command_shows_times_memory_and_accuracy(written):
    done = check(written)
    assert done.exit_code == 0, done.output
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.split(maxsplit=1)[1:])
    assert {"plan", "portability", "signature", "latency", "manifest", "memory", "accuracy"} <= set(lines)
    assert lines["portability"].startswith("optimal") and lines["signature"] == "none"
    assert "aim 1.5 s" in done.stdout and "limit 0.02" in lines["accuracy"]


def test_json_has_the_figures_beside_those_of_the_manifest(written):
    done = check(written, "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    plan = json.loads((written / "manifest.json").read_text())["plan"]
    assert document["plan"] == plan["uid"] and document["stored_ms"] == plan["latency_ms"]
    assert 0 < document["import_s"] < 60 and 0 < document["first_answer_s"] < 60
    low, high = document["interval_ms"]
    assert 0 < low <= document["latency_ms"] <= high
    assert 50e6 < document["peak_bytes"] < 10e9 and document["device_bytes"] is None
    assert document["accurate"] is True and set(document["errors"]) == {"second", "hidden"}
    assert all(error < 1e-4 for error in document["errors"].values())


def test_an_answer_outside_the_limit_is_exit_code_1(written):
    answers = written / "artifact" / "answer.safetensors"
    stored = load_file(str(answers))
    save_file({**stored, "0": stored["0"] + torch.ones_like(stored["0"])}, str(answers))
    rewrite(written)
    done = check(written)
    assert done.exit_code == 1 and "accuracy      refused: output second is off by" in done.stdout
    answers.unlink()
    document = json.loads((written / "manifest.json").read_text())
    document["files"] = [entry for entry in document["files"] if entry["name"] != answers.name]
    (written / "manifest.json").write_text(json.dumps(document))
    rewrite(written)
    done = check(written, "--json")
    assert done.exit_code == 1 and "keeps no answer" in json.loads(done.stdout)["failure"]


def test_a_plan_of_another_device_that_runs_is_checked_and_one_that_does_not_is_refused(written, monkeypatch):
    far(written)
    assert json.loads(check(written, "--json").stdout)["verdict"] == "works"
    rewrite(written, toolchain={"torch": "0.1"})
    monkeypatch.setattr(serve_check.subprocess, "run", lambda *_, **__: pytest.fail("it was started"))
    with pytest.raises(ArtifactError, match="made for torch"):
        serve_check.serve_check(written)


def test_a_signature_is_verified_by_both_processes(tuned_net, written, tmp_path):
    private, public = write_keys(tmp_path, "own")
    given = ["export", "net", "--db", tuned_net.database, "--out", str(tmp_path / "b"), "--sign", str(private)]
    assert CliRunner().invoke(app, given).exit_code == 0
    assert serve_check.serve_check(tmp_path / "b", require_signature=[public.read_bytes()]).signature == "verified"
    with pytest.raises(SignatureError):
        serve_check.serve_check(written, require_signature=public)


def test_a_process_that_fails_is_an_error_with_its_last_lines(written, tmp_path, monkeypatch):
    monkeypatch.setattr(serve_check.sys, "path", [str(tmp_path / "empty"), *serve_check.sys.path])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "torch.py").write_text("raise SystemExit('no torch here')")
    assert os.listdir(tmp_path / "empty") == ["torch.py"]
    with pytest.raises(WorkError, match=r"did not serve[\s\S]*no torch here"):
        serve_check.serve_check(written)
