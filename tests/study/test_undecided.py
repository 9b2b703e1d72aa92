"""Finals that cannot decide: nothing is promoted, nothing is lost, and the same call repeats only the finals."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from autotune.database.store import Store
from autotune.deploy.api import optimize
from autotune.errors import UndecidedError
from autotune.model.inputs import InputSpec
from autotune.runtime import discovery
from autotune.study.request import StudyRequest
from autotune.study.study import run_study
from tests.study.test_study import TOY, Recorder
from tests.toy import make

REQUEST = StudyRequest(
    name="toy", batch=2, device=discovery.cpu(), factory=TOY, inputs=(InputSpec(name="input", shape=("batch", 16)),),
    backends=("eager", "torchscript"), trials=4, budget_s=60.0,
)  # fmt: skip


@pytest.fixture
def too_short(monkeypatch):
    """Finals that end after a round a process, which are fewer than any winner needs."""
    monkeypatch.setattr("autotune.execute.finals.LIMIT_S", {"cpu": 0.0})
    monkeypatch.setattr("autotune.execute.finals.LONGEST_S", 1e-3)
    monkeypatch.setattr("autotune.measure.paired.MATERIAL", -math.inf)  # whoever seems to be slower may lead, too


def settled(request, store, progress=None):
    """Run a study until its finals decide: on a busy host they may need another go."""
    for _ in range(4):
        outcome = run_study(request, store, progress)
        if not outcome.undecided:
            break
    return outcome


def test_nothing_is_promoted_and_the_same_call_repeats_only_the_finals(tmp_path, monkeypatch, too_short):
    with Store.open(str(tmp_path / "autotune.db"), create=True) as store:
        first = run_study(REQUEST, store)
        assert (first.status, first.plan) == ("undecided", None)
        assert "rounds in the time that finals have" in first.reason and "finals" in first.run
        assert {one.backend for one in first.finalists} == {"eager", "torchscript"}
        assert not store.plans()
        study = store.studies("toy", 2)[0]
        assert study.state == "running" and study.timings["undecided"] == first.reason
        built = store.trials(study.uid)
        complete = [trial for trial in built if trial.state == "complete"]
        assert all(trial.artifact and store.artifacts.has(trial.artifact) for trial in complete)
        shown = subprocess.run(
            [sys.executable, "-m", "autotune.cli.main", "plan", "show", "toy", "--db", str(tmp_path / "autotune.db")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert shown.returncode == 2 and f"could not decide: {first.reason}" in shown.stderr
        monkeypatch.undo()
        recorder = Recorder()
        second = settled(REQUEST, store, recorder)
        assert second.plan is not None and second.status in ("promoted", "tie", "baseline")
        assert "trial_started" not in recorder.kinds() and "finals_started" in recorder.kinds()
        assert [trial.uid for trial in store.trials(study.uid)] == [trial.uid for trial in built]
        assert "undecided" not in store.study(study.uid).timings


def test_an_incumbent_is_kept(tmp_path, too_short, monkeypatch):
    with Store.open(str(tmp_path / "autotune.db"), create=True) as store:
        with monkeypatch.context() as quiet:
            quiet.setattr("autotune.execute.finals.LIMIT_S", {"cpu": 20.0})
            quiet.setattr("autotune.execute.finals.LONGEST_S", 900.0)
            quiet.setattr("autotune.measure.paired.MATERIAL", math.inf)
            incumbent = settled(REQUEST, store).plan
        again = run_study(replace(REQUEST, trials=5, budget_s=90.0), store)
        if again.cached:
            pytest.skip("the space has no fifth candidate")
        assert again.status == "undecided" and again.plan is not None and again.plan.uid == incumbent.uid
        assert [plan.uid for plan in store.plans()] == [incumbent.uid]


def test_optimize_without_an_incumbent_says_that_it_could_not_decide(tmp_path, too_short):
    with pytest.raises(UndecidedError, match="rounds in the time that finals have") as raised:
        optimize(make(), torch.randn(2, 16), db=str(tmp_path / "a.db"), trials=4, backends=("eager", "torchscript"))
    assert "only the finals" in str(raised.value)
