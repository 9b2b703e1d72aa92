import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autotune.kernel import wants_kernels
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import Parameter, SearchSpace
from autotune.records.trial import Trial
from autotune.search.history import TrialOutcome
from autotune.search.search import Search
from autotune.study.built_trial import BuiltTrial
from autotune.study.context import in_thread
from autotune.study.search import StudySearch

H200 = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0), power_limit_w=700)


def values(precision="fp16", kernels="torch", cuda_graph=False):
    return {"precision": precision, "kernels": kernels, "cuda_graph": cuda_graph}


PARAMETERS = (
    Parameter(name="precision", choices=("fp32", "fp16")), Parameter(name="kernels", choices=("torch", "tuned")),
    Parameter(name="cuda_graph", choices=(False, True)),
)  # fmt: skip
OURS, OTHERS = (
    SearchSpace(
        backend=backend, parameters=PARAMETERS,
        defaults=tuple(Configuration.of(backend, values(precision)) for precision in ("fp32", "fp16")),
        hints=tuple(Configuration.of(backend, hint) for hint in hints),
    )
    for backend, hints in (
        ("ours", [values(kernels="tuned"), values(kernels="tuned", cuda_graph=True)]),
        ("others", [values(cuda_graph=True)]),
    )
)  # fmt: skip


def batches(device, trials=60, budget_s=180.0, pacing=lambda search: None):
    """The configurations that a study builds together, batch by batch; all take 1 ms."""
    spaces = (OURS, OTHERS)
    request = SimpleNamespace(device=device, name="study", factory=None)
    defaults = frozenset(default.digest for space in spaces for default in space.defaults)
    search = StudySearch(
        SimpleNamespace(
            request=request, spaces=spaces, defaults=defaults, hints=(), store=SimpleNamespace(studies=None),
            clock=time.monotonic,
        )
    )  # fmt: skip
    proposals, seen = Search(spaces, 0), []
    pacing(search)
    while batch := search._next_batch(proposals, [], trials, budget_s):
        for configuration in batch:
            proposals.observe(TrialOutcome(configuration=configuration, state="complete", score=1.0, build_s=1.0))
        seen.append(batch)
    return seen


def test_on_a_gpu_defaults_and_hints_are_one_batch_from_which_the_sampler_learns():
    first, *later = batches(replace(H200, cores=16))
    assert first[:4] == [OURS.defaults[0], OTHERS.defaults[0], OURS.defaults[1], OTHERS.defaults[1]]
    assert set(first[4:]) == {*OTHERS.hints, *OURS.hints}
    assert sum(map(len, later)) == 16 - 7 and max(map(len, later)) == 8


def test_a_host_of_few_cores_builds_no_more_together_than_the_defaults_and_then_the_tuned_ones():
    first, second, *_ = batches(replace(H200, cores=4))
    assert first == [OURS.defaults[0], OTHERS.defaults[0], OURS.defaults[1], OTHERS.defaults[1], *OURS.hints]
    assert second == [*OTHERS.hints]


def test_no_more_is_begun_together_than_can_be_timed_before_the_budget_ends():
    def slow(search):
        search._pacing.note_timing(50.0)

    assert [len(batch) for batch in batches(replace(H200, cores=16), budget_s=180.0, pacing=slow)][:2] == [3, 3]
    assert batches(replace(H200, cores=16), budget_s=49.0, pacing=slow) == []


class Parts(StudySearch):
    """Notes what it builds and times; a build of tuned kernels ends when something has been timed beside it."""

    def __init__(self, device, state="complete", objective="latency_p50"):
        request = SimpleNamespace(device=device, name="study", factory=None, objective=SimpleNamespace(name=objective))
        self.state = state
        defaults = frozenset(default.digest for space in (OURS, OTHERS) for default in space.defaults)
        trials = SimpleNamespace(hand_back=lambda trials: self.handed_back.extend(trials))
        store = SimpleNamespace(studies=None, trials=trials)
        split = SimpleNamespace(worked_s=lambda begin, end: end - begin)
        super().__init__(
            SimpleNamespace(
                request=request, spaces=(OURS, OTHERS), defaults=defaults, hints=(), store=store,
                stop=threading.Event(), executor=SimpleNamespace(split=split), clock=time.monotonic,
                background=in_thread,
            )
        )  # fmt: skip
        self.notes, self.handed_back, self.beside = [], [], threading.Event()
        self._kernels = SimpleNamespace(prepare=self.prepare)

    def prepare(self, configurations, budget_s):
        self.notes.append(("tune", configurations))
        return dict.fromkeys(configurations)

    def _claimed(self, batch, finished):
        return [
            Trial(uid=str(number), number=number, configuration=configuration, state="running")
            for number, configuration in enumerate(batch)
        ]

    def _built(self, claimed, kernels, limit_s, stored, held):
        configurations = [trial.configuration for trial in claimed]
        self.notes.append(("build", configurations))
        if any(map(wants_kernels, configurations)) and self.notes[0][1]:
            assert self.beside.wait(10.0), "nothing was timed beside the build"
        return [BuiltTrial(trial=trial, built=None, target=None) for trial in claimed]

    def _time(self, turns, stored, finished):
        self.notes.append(("time", [turn.trial.configuration for turn in turns]))
        for trial in (turn.trial for turn in turns if not self.context.stop.is_set()):
            finished.append(SimpleNamespace(uid=trial.uid, state=self.state, configuration=trial.configuration))
        if len(self.notes) > 3:
            self.beside.set()


@pytest.fixture
def baseline(monkeypatch):
    """The others' default in fp32 is the baseline of the study."""
    monkeypatch.setattr(
        "autotune.study.search.is_baseline", lambda configuration, _: configuration == OTHERS.defaults[0]
    )


@pytest.mark.usefixtures("baseline")
def test_full_precision_but_the_baseline_is_timed_while_candidates_with_tuned_kernels_are_built():
    search = Parts(replace(H200, cores=16))
    others = [*OTHERS.defaults, OURS.defaults[1], *OTHERS.hints]
    batch = [OURS.defaults[0], *others, *OURS.hints]
    search._built_and_finished(batch, 100.0, 60.0, {}, None)
    first, *middle, last = search.notes
    assert first == ("build", [OURS.defaults[0], *others])
    assert middle[:2] == [("time", others), ("tune", list(OURS.hints))]
    assert sorted(middle[2:], key=str) == [("build", list(OURS.hints)), ("time", [OURS.defaults[0]])]
    assert last == ("time", list(OURS.hints)) and not search.handed_back


@pytest.mark.usefixtures("baseline")
def test_full_precision_that_may_win_is_timed_before_anything_else_is_built():
    others, ours = list(OTHERS.defaults), [OURS.defaults[0]]
    search = Parts(replace(H200, cores=16), state="failed")  # none in reduced precision passes
    search._built_and_finished([*ours, *others, *OURS.hints], 100.0, 60.0, {}, None)
    assert search.notes[:3] == [("build", [*ours, *others]), ("time", others), ("time", ours)]
    assert search.notes[3] == ("tune", list(OURS.hints))
    search = Parts(replace(H200, cores=16), objective="throughput")
    search._built_and_finished([*ours, *others, *OURS.hints], 100.0, 60.0, {}, None)
    assert search.notes[1] == ("time", [*ours, *others])


@pytest.mark.usefixtures("baseline")
def test_candidates_with_tuned_kernels_are_not_begun_if_too_little_is_left_for_them():
    search = Parts(replace(H200, cores=16))
    search._pacing.note_timing(20.0)
    batch = [OURS.defaults[0], *OTHERS.defaults, *OURS.hints]
    search._built_and_finished(batch, 39.0, 60.0, {}, None)
    assert [note for note in search.notes if note[1]] == [
        ("build", [OURS.defaults[0], *OTHERS.defaults]), ("time", list(OTHERS.defaults)), ("time", [OURS.defaults[0]]),
    ]  # fmt: skip
    search.notes.clear()
    search._built_and_finished(batch, 41.0, 60.0, {}, None)
    assert ("tune", list(OURS.hints)) in search.notes


def test_later_proposals_are_built_together_whether_they_want_tuned_kernels_or_not():
    search = Parts(replace(H200, cores=16))
    batch = [Configuration.of("ours", values(kernels=kernels, precision="fp32")) for kernels in ("torch", "tuned")]
    batch[0] = Configuration.of("ours", values(cuda_graph=True, precision="fp32"))
    search._built_and_finished(batch, 100.0, 60.0, {}, None)
    assert [note for note in search.notes if note[1]] == [("tune", batch), ("build", batch), ("time", batch)]


@pytest.mark.usefixtures("baseline")
def test_a_study_that_is_stopped_before_the_tuning_begins_none_and_hands_its_trials_back():
    search = Parts(replace(H200, cores=16))
    search.context.stop.set()
    search._built_and_finished([*OTHERS.defaults, *OURS.hints], 100.0, 60.0, {}, None)
    assert [kind for kind, _ in search.notes] == ["build", "time"]
    assert [trial.configuration for trial in search.handed_back] == list(OTHERS.defaults)
