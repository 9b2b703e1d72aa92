import threading
from types import SimpleNamespace

import pytest

from autotune.errors import RequestError, SpaceError, StudyInterruptedError, StudyTakenOverError, WorkError
from autotune.execute.timing import TimeSplit
from autotune.kernel import wants_kernels
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.study.study import kernel_tuning as study_kernels

ONE, TWO = GemmProblem(m=8, n=16, k=32), GemmProblem(m=8, n=32, k=16)


def asked(fused, **values):
    return Configuration.of("native", {"kernels": "tuned", "norm": fused, **values})


class FakeSupply:
    """Knows of each graph how many problems were tuned when it was asked."""

    def __init__(self, tuned):
        self.tuned, self.asked = tuned, []

    def problems(self, configuration):
        self.asked.append(configuration)
        return {ONE: 3.0} if configuration["norm"] else {ONE: 1.0, TWO: 5.0}

    def of(self, configuration):
        return len(self.tuned) if wants_kernels(configuration) else None


@pytest.fixture
def study(monkeypatch):
    """A study whose graphs have one problem fused and two otherwise; it notes what is tuned."""
    tuned = []

    def tune(counts, *_, budget_s, **values):
        tuned.append((dict(counts), budget_s))
        return SimpleNamespace(spans=())

    monkeypatch.setattr(study_kernels, "tune_kernels", tune)
    executor = SimpleNamespace(server=None, split=TimeSplit())
    request = SimpleNamespace(device=SimpleNamespace(cores=4), seed=0, tune_kernels=True)
    on = SimpleNamespace(
        executor=executor, supply=FakeSupply(tuned), request=request, store=None, progress=None, stop=threading.Event()
    )
    return study_kernels.StudyKernels(on), tuned, on


def test_a_problem_is_tuned_once_for_all_before_builds_are_handed_their_kernels(study):
    kernels, tuned, _ = study
    wanting = [asked(True), asked(True, cuda_graph=False), asked(False)]
    assert kernels.prepare(wanting, 100.0) == dict.fromkeys(wanting, 1)
    ((counts, budget_s),) = tuned
    assert counts == {ONE: 3.0, TWO: 5.0} and 0 < budget_s <= study_kernels.SHARE * 100.0
    assert kernels.prepare([asked(True, threads=2)], 90.0) == {asked(True, threads=2): 1}
    assert len(tuned) == 1


def test_each_graph_that_wants_kernels_is_looked_at_once(study):
    kernels, _, on = study
    plain = Configuration.of("native", {"kernels": "torch", "norm": True})
    kernels.look([plain])
    assert on.supply.asked == []
    kernels.look([asked(True), plain, asked(True, cuda_graph=False), asked(False)])
    assert sorted(one["norm"] for one in on.supply.asked) == [False, True]


def test_a_study_that_is_to_tune_none_hands_on_what_is_known(study):
    kernels, tuned, on = study
    on.request.tune_kernels = False
    assert kernels.prepare([asked(True)], 100.0) == {asked(True): 0} and not tuned


def test_nothing_is_tuned_for_who_asks_for_nothing_or_is_stopped(study):
    kernels, tuned, on = study
    plain = Configuration.of("native", {"kernels": "torch", "norm": True})
    assert kernels.prepare([plain], 100.0) == {plain: None} and not tuned
    on.stop.set()
    kernels.prepare([asked(True)], 100.0)
    assert not tuned


@pytest.mark.parametrize("kind", [SpaceError, RequestError, WorkError])
def test_what_cannot_be_tuned_costs_tuned_kernels_and_is_told_once(study, monkeypatch, kind):
    kernels, tuned, on = study
    told, tried = [], []

    def refuse(counts, *_, **__):
        tried.append(dict(counts))
        raise kind("tuning", found="no rates of this GPU")

    on.progress = SimpleNamespace(event=lambda what, **data: told.append((what, data["text"])))
    monkeypatch.setattr(study_kernels, "tune_kernels", refuse)
    wanting = [asked(True), asked(False)]
    assert kernels.prepare(wanting, 100.0) == dict.fromkeys(wanting, 0) and not tuned
    ((what, text),) = told
    assert what == "message" and text.startswith("native: ") and "no rates of this GPU" in text
    assert kernels.prepare([asked(True, threads=2)], 90.0) == {asked(True, threads=2): 0}
    assert len(tried) == len(told) == 1


@pytest.mark.parametrize("kind", [StudyInterruptedError, StudyTakenOverError])
def test_a_study_that_is_stopped_or_taken_over_in_tuning_ends(study, monkeypatch, kind):
    def end(*_, **__):
        raise kind("the study ends")

    monkeypatch.setattr(study_kernels, "tune_kernels", end)
    with pytest.raises(kind):
        study[0].prepare([asked(True)], 100.0)
