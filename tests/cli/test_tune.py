"""``autotune tune``: what it refuses before it begins, and a tiny study from end to end."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.cli.tune import study_requests
from autotune.database.store import Store
from autotune.errors import DeviceError, RequestError
from autotune.report.results import verify_results
from autotune.study.file import parse_study
from autotune.study.request import StudyOutcome
from tests import model_files
from tests.database import records
from tests.read_only import run_python

STUDY = """
name: toy
model: {factory: toy.py:toy}
inputs: [{name: input, shape: [batch, 16], dtype: float32}]
batch: [2, 4]
device: cpu
space: {backends: [eager, torchscript], precision: [fp32]}
search: {trials: 2, budget: 2m, seed: 3}
"""
MODEL = """
import torch

def toy():
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))

def broken():
    raise RuntimeError("no weights to be found")
"""

LOAD = """
import sys, torch
import autotune
sys.path.insert(0, sys.argv[2])
from toy import toy
torch.manual_seed(3)
model, x = toy().eval(), torch.randn(2, 16)
print(torch.allclose(autotune.load(model, x, db=sys.argv[1], rebuild=False)(x), model(x), atol=1e-2))
"""
BENCH = "from autotune.cli.main import main; main()"


@pytest.fixture
def study(tmp_path):
    (tmp_path / "toy.py").write_text(MODEL)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def options(**changes):
    return {"batch": None, "device": None, "trials": None, "budget": None} | changes


def test_one_request_a_batch(study):
    file = parse_study(STUDY, study)
    requests = study_requests(file, **options())
    assert [request.batch for request in requests] == [2, 4]
    first = requests[0]
    assert (first.name, first.trials, first.budget_s, first.seed) == ("toy", 2, 120.0, 3)
    assert first.tune_kernels and first.warm_start
    assert (first.device.kind, first.backends, first.precisions) == ("cpu", ("eager", "torchscript"), ("fp32",))
    assert first.factory == f"{study.parent.resolve()}/toy.py:toy"
    assert first.inputs[0].sizes(2) == (2, 16)


def test_a_study_file_turns_the_warm_start_off(study):
    cold = STUDY.replace("search: {", "search: {warm_start: false, ")
    assert cold != STUDY
    assert not any(request.warm_start for request in study_requests(parse_study(cold, study), **options()))


def test_options_override_the_file(study):
    (request,) = study_requests(parse_study(STUDY, study), **options(batch=4, trials=7, budget="90s", device="auto"))
    assert (request.batch, request.trials, request.budget_s) == (4, 7, 90.0)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"batch": 3}, RequestError, "batch 2, 4"),
        ({"trials": 0}, RequestError, "at least 1"),
        ({"trials": -5}, RequestError, "-5"),
        ({"budget": "0s"}, RequestError, "more than 0"),
        ({"budget": "-3m"}, RequestError, "-3m"),
        ({"budget": "soon"}, RequestError, "90s, 3m or 1h30m"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99 is not there"),
        ({"device": "tpu"}, DeviceError, "auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_options(study, changes, error, says):
    with pytest.raises(error, match=says):
        study_requests(parse_study(STUDY, study), **options(**changes))


def test_an_unknown_backend_names_the_known_ones(study):
    text = STUDY.replace("torchscript]", "torchscrpt]")
    with pytest.raises(RequestError, match="torchscrpt") as caught:
        study_requests(parse_study(text, study), **options())
    assert "eager, torchscript, inductor" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "arguments", "says"),
    [
        ("search:", "saerch:", [], ["line 8", "did you mean search?"]),
        ("", "", ["--batch", "3"], ["batch 2, 4"]),
        ("", "", ["--inputs", "1x3"], ["--inputs beside the study file", "--inputs 1x3", "a model file"]),
        ("", "", ["--budget", "0s"], ["--budget 0s"]),
        ("", "", ["--trials", "0"], ["trials must be at least 1"]),
        ("device: cpu", "device: cuda:99", [], ["cuda:99 is not there", "cpu ("]),
    ],
)
def test_a_wrong_request_writes_nothing(autotune, study, tmp_path, old, new, arguments, says):
    study.write_text(STUDY.replace(old, new) if old else STUDY)
    database = tmp_path / "autotune.db"
    result = autotune("tune", study, "--db", database, *arguments, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("error: ") == 1
    for part in says:
        assert part in result.stderr
    assert not database.exists()


def test_a_study_file_that_is_not_there(autotune, tmp_path):
    result = autotune("tune", tmp_path / "absent.yaml", "--db", tmp_path / "a.db")
    assert result.exit_code == 2
    assert "No such file" in result.stderr


def test_a_database_that_cannot_be_written(autotune, study, tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    result = autotune("tune", study, "--db", tmp_path / "taken" / "autotune.db")
    assert result.exit_code == 2
    assert "taken" in result.stderr
    assert "--db PATH" in result.stderr


def test_results_must_go_to_a_folder(autotune, study, tmp_path):
    result = autotune("tune", study, "--db", tmp_path / "a.db", "--results", study)
    assert result.exit_code == 2
    assert not (tmp_path / "a.db").exists()


def test_a_tiny_study_from_end_to_end(autotune, study, tmp_path):
    database, results = tmp_path / "frozen" / "autotune.db", tmp_path / "results"
    arguments = ("tune", study, "--batch", "2", "--db", database, "--results", results)
    first = autotune(*arguments, "--json")
    assert first.exit_code == 0, first.stderr
    (entry,) = json.loads(first.stdout)["studies"]
    assert (entry["name"], entry["batch"], entry["objective"]) == ("toy", 2, "latency_p50")
    assert entry["trials"]["complete"] + entry["trials"]["pruned"] == 2  # a slow one is not timed to the end
    plan = entry["plan"]
    assert not plan["cached"]
    (winner,) = (one for one in entry["finalists"] if one["configuration"] == plan["configuration"])
    assert (plan["status"], plan["latency_ms"]) == (entry["status"], winner["latency_ms"])
    assert plan["speedup"] == pytest.approx(entry["baseline_latency_ms"] / plan["latency_ms"])
    assert entry["signal_error_limit"] == 0.02 >= plan["signal_error"]
    assert "trial 0" in first.stderr
    (file,) = results.glob("toy/*-b2.json")
    document = json.loads(file.read_text())
    assert verify_results(document) == []
    assert document["plan"]["latency_ms"] == plan["latency_ms"] and document["measured"]
    start, curve = entry["known_at_start"], entry["curve"]
    assert (start["kernel_trials"], start["other_kernel_trials"], start["model_trials"]) == (0, 0, 0)
    assert document["known_at_start"] == start and document["curve"] == curve
    assert 0 < curve["points"][-1]["seconds"] <= curve["searched_s"] < entry["seconds"]
    assert "known at the start: 0 kernel trials, 0 trials of this model; budget" in first.stderr

    second = autotune(*arguments, "--json")
    (again,) = json.loads(second.stdout)["studies"]
    assert again["plan"] == {**plan, "cached": True}
    assert again["deploy"] == entry["deploy"]
    assert (again["known_at_start"], again["curve"]) == (start, curve)
    shown = json.loads(autotune("plan", "show", "toy", "--device", "cpu", "--db", database, "--json").stdout)
    assert shown["latency_ms"] == plan["latency_ms"] and shown["evidence"]["known_at_start"] == start
    facts = autotune("plan", "show", "toy", "--device", "cpu", "--db", database).stdout
    assert "0 kernel trials, 0 trials of this model; budget" in " ".join(facts.split())
    table = autotune(*arguments)
    assert "nothing was measured" in table.stdout
    assert "(baseline)" in table.stdout
    assert f"next step: load the plan in your service, with\n{entry['deploy']}\n" in table.stdout

    loaded = run_python("permissions", database.parent, LOAD, str(database), str(tmp_path))
    assert (loaded.returncode, loaded.stdout) == (0, "True\n"), loaded.stderr
    timed = run_python("permissions", database.parent, BENCH, "bench", "toy", "--db", str(database), "--json")
    assert timed.returncode == 0, timed.stderr
    assert json.loads(timed.stdout)["structure"] == shown["structure"] == document["structure"]


OTHERS = """
constraints: {signal_error: {default: 0.03, output: 0.02}, integer_agreement: 0.98, metrics: [METRIC]}
serve_as: torchscript
"""
METRIC = "{function: toy.py:worst, at_most: 0.5}"
WORST = """
def worst(outputs, references):
    return max((a - b).abs().max().item() for y, r in zip(outputs, references) for a, b in zip(y.values(), r.values()))
"""


@pytest.mark.slow
def test_work_that_nobody_reads_is_done_and_the_command_it_prints_loads_the_plan(study, tmp_path):
    (tmp_path / "toy.py").write_text(MODEL + WORST)
    study.write_text(STUDY + OTHERS.replace("METRIC", METRIC))
    environment = {
        **os.environ, "COLUMNS": "30", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUTOTUNE_DB": "", "XDG_RUNTIME_DIR": str(tmp_path),
    }  # fmt: skip
    command = f"set -o pipefail; {sys.executable} -m autotune.cli.main tune study.yaml --batch 4 --db here/a.db"

    def bash(text):
        call = ["bash", "-c", text]
        return subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    unread = bash(f"{command} 2>&1 | head -1")
    assert (unread.returncode, unread.stderr, unread.stdout[:5]) == (0, "", "toy, ")
    again = bash(command)
    assert again.returncode == 0 and "nothing was measured" in " ".join(again.stdout.split())
    heads = [again.stdout.index(head) for head in ("speedup (from the database", "accuracy:", "next step:", "trials:")]
    assert heads == sorted(heads)
    snippet = again.stdout[again.stdout.index("python - <<'END'") : again.stdout.index("END\n", heads[2] + 80) + 4]
    with Store.open(str(tmp_path / "here" / "a.db"), create=False) as store:
        (plan,) = store.plans.list(name="toy")
        trials = len(store.trials.of_study(plan.evidence.study))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    loaded = bash(f"cd {elsewhere}\n{snippet}")
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.startswith(f"<OptimizedModel toy: {plan.configuration}, {plan.latency_ms:.3f} ms")
    with Store.open(str(tmp_path / "here" / "a.db"), create=False) as store:
        (after,) = store.plans.list(name="toy")
        assert after.uid == plan.uid and len(store.trials.of_study(plan.evidence.study)) == trials  # exactly this plan


def test_undecided_finals_end_with_1_after_all_batches_were_run_and_printed(autotune, study, tmp_path, monkeypatch):
    def run(request, store, progress):
        plan = dataclasses.replace(records.plan(), name=request.name, batch=request.batch)
        values = {"name": "toy", "batch": request.batch, "device": request.device, "objective": request.objective}
        if request.batch == 2:
            values |= {"plan": None, "status": "undecided", "reason": "busy host", "run": "autotune tune it"}
        else:
            values |= {"plan": plan, "status": plan.status}
        return StudyOutcome(**values, cached=False, trials={}, seconds=1.0)

    monkeypatch.setattr("autotune.study.study.run_study", run)
    monkeypatch.setattr("autotune.cli.tune._write_results", lambda outcome, folder: wrote.append(outcome.batch))
    wrote = []
    shown = autotune("tune", study, "--db", tmp_path / "a.db", "--results", tmp_path / "results")
    assert shown.exit_code == 1 and wrote == [2, 4]
    words = " ".join(shown.stdout.split())  # a line with the path of the database may be wrapped
    assert "undecided: busy host there is no plan yet run again: autotune " in words
    assert "plan show toy --batch 4" in words
    monkeypatch.undo()
    monkeypatch.setattr("autotune.study.study.run_study", run)
    told = autotune("tune", study, "--batch", "2", "--db", tmp_path / "a.db", "--results", tmp_path / "r", "--json")
    (entry,) = json.loads(told.stdout)["studies"]
    assert told.exit_code == 1 and (entry["status"], entry["plan"]) == ("undecided", None)
    assert entry["deploy"] is None and entry["signal_error_limit"] == 0.02
    assert "no results are written for toy at batch 2: it is undecided" in told.stderr
    assert not (tmp_path / "r").exists()


def test_a_factory_that_raises(autotune, study, tmp_path):
    study.write_text(STUDY.replace("toy.py:toy", "toy.py:broken"))
    result = autotune("tune", study, "--batch", "2", "--db", tmp_path / "autotune.db", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no weights to be found" in result.stderr


def test_a_model_file_that_is_wrong_is_refused_before_any_work(autotune, tmp_path):
    def refused(*arguments):
        result = autotune("tune", *arguments, "--db", tmp_path / "a.db", "--json")
        assert (result.exit_code, result.stdout) == (2, "") and not (tmp_path / "a.db").exists()
        return result.stderr

    path, _ = model_files.write("convolutional", "traced", tmp_path)
    assert "no shape of image" in refused(path)
    assert "--batch 4 beside the model file" in refused(path, "--inputs", "2x3x12x12", "--batch", "4")
    assert "the shape '2,3'" in refused(path, "--inputs", "2,3")
    assert "no file" in refused(tmp_path / "absent.pt")
