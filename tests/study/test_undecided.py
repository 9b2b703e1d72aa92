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
from autotune.execute import finals
from autotune.study.study import run_study
from tests.finished import REQUEST
from tests.study.test_study import Recorder
from tests.toy import make


@pytest.fixture
def too_short(monkeypatch):
    """Finals that end after a round a process, which are fewer than any winner needs."""
    monkeypatch.setitem(finals.LIMIT_S, "cpu", 0.0)
    monkeypatch.setattr("autotune.execute.finals.LONGEST_S", 1e-3)
    monkeypatch.setattr("autotune.measure.paired.MATERIAL", -math.inf)  # even one that seems slower may lead


def test_nothing_is_promoted_and_the_same_call_repeats_only_the_finals(tmp_path, monkeypatch, too_short):
    with Store.open(str(tmp_path / "autotune.db"), create=True) as store:
        first = run_study(REQUEST, store)
        assert (first.status, first.plan) == ("undecided", None)
        assert "rounds in the time that finals have" in first.reason and "finals" in first.run
        assert {one.backend for one in first.finalists} == {"eager", "torchscript"}
        assert not store.plans.list()
        study = store.studies.list("toy", 2)[0]
        assert study.state == "running" and study.timings["undecided"] == first.reason
        built = store.trials.of_study(study.uid)
        complete = [trial for trial in built if trial.state == "complete"]
        assert all(trial.artifact and store.artifacts.has(trial.artifact) for trial in complete)
        shown = subprocess.run(
            [sys.executable, "-m", "autotune.cli.main", "plan", "show", "toy", "--db", str(tmp_path / "autotune.db")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert shown.returncode == 2 and f"could not decide: {first.reason}" in shown.stderr
        monkeypatch.undo()
        recorder = Recorder()
        second = run_study(REQUEST, store, recorder)
        assert second.plan is not None and second.status == second.plan.status
        assert "trial_started" not in recorder.kinds() and "finals_started" in recorder.kinds()
        assert [trial.uid for trial in store.trials.of_study(study.uid)] == [trial.uid for trial in built]
        assert "undecided" not in store.studies.get(study.uid).timings


def test_an_incumbent_is_kept(finished_study, too_short):
    with Store.open(str(finished_study)) as store:
        (incumbent,) = store.plans.list()
        again = run_study(replace(REQUEST, trials=5, budget_s=90.0), store)
        assert not again.cached, "the space has a fifth candidate"
        assert again.status == "undecided" and again.plan is not None and again.plan.uid == incumbent.uid
        assert [plan.uid for plan in store.plans.list()] == [incumbent.uid]


def test_optimize_without_an_incumbent_says_that_it_could_not_decide(tmp_path, too_short):
    with pytest.raises(UndecidedError, match="rounds in the time that finals have") as raised:
        optimize(make(), torch.randn(2, 16), db=str(tmp_path / "a.db"), trials=4, backends=("eager", "torchscript"))
    assert "only the finals" in str(raised.value)
