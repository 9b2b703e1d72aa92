import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from autotune.errors import WorkError
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import Parameter, SearchSpace
from autotune.records.trial import Trial
from autotune.search.history import TrialOutcome
from autotune.search.search import Search
from autotune.study.built_trial import BuiltTrial
from autotune.study.context import in_thread
from autotune.study.generation import ThreadDoorbell
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
    """Notes the parts that it tunes, builds and times; every build ends at once."""

    def __init__(self, device, state="complete", objective="latency_p50"):
        request = SimpleNamespace(device=device, name="study", factory=None, objective=SimpleNamespace(name=objective))
        self.state = state
        defaults = frozenset(default.digest for space in (OURS, OTHERS) for default in space.defaults)
        trials = SimpleNamespace(
            hand_back=lambda trials: self.handed_back.extend(trials),
            withdraw=lambda trial: self.withdrawn.append(trial),
        )
        store = SimpleNamespace(studies=None, trials=trials)
        split = SimpleNamespace(worked_s=lambda begin, end: end - begin)
        server = SimpleNamespace(stop=lambda: None)
        super().__init__(
            SimpleNamespace(
                request=request, spaces=(OURS, OTHERS), defaults=defaults, hints=(), store=store,
                stop=threading.Event(), executor=SimpleNamespace(split=split, server=server), clock=time.monotonic,
                progress=SimpleNamespace(event=lambda kind, **data: self.events.append(kind)),
                background=in_thread, doorbell=ThreadDoorbell,
            )
        )  # fmt: skip
        self.notes, self.handed_back, self.withdrawn, self.events = [], [], [], []
        self._kernels = SimpleNamespace(prepare=self.prepare, find_problems=lambda batch: None)

    def prepare(self, configurations, budget_s, crowded):
        self.notes.append(("tune", configurations))
        return dict.fromkeys(configurations)

    def _claimed(self, batch, finished):
        return [
            Trial(uid=configuration.digest, number=number, configuration=configuration, state="running")
            for number, configuration in enumerate(batch)
        ]

    def _build(self, run, trials, kernels, then):
        self.notes.append(("build", [trial.configuration for trial in trials]))
        for trial in trials:
            then(BuiltTrial(trial=trial, built=None, target=None))

    def _time(self, run, turn):
        self.notes.append(("time", [turn.trial.configuration]))
        ended = SimpleNamespace(uid=turn.trial.uid, state=self.state, configuration=turn.trial.configuration)
        run.finished.append(ended)
        return self.state == "complete" and turn.trial.configuration["precision"] != "fp32"

    def generation(self, batch, left_s=100.0):
        self._built_and_finished(batch, left_s, 60.0, {}, None)
        return {kind: [part for noted, part in self.notes if noted == kind] for kind in ("build", "tune", "time")}


@pytest.fixture
def baseline(monkeypatch):
    """The others' default in fp32 is the baseline of the study."""
    monkeypatch.setattr(
        "autotune.study.search.is_baseline", lambda configuration, _: configuration == OTHERS.defaults[0]
    )


@pytest.mark.usefixtures("baseline")
def test_candidates_without_tuned_kernels_are_built_beside_the_tuning_and_full_precision_but_the_baseline_can_wait():
    search = Parts(replace(H200, cores=16))
    others = [*OTHERS.defaults, OURS.defaults[1], *OTHERS.hints]
    seen = search.generation([OURS.defaults[0], *others, *OURS.hints])
    assert seen["build"] == [[OURS.defaults[0], *others], list(OURS.hints)]
    assert seen["tune"] == [list(OURS.hints)]
    timed = [configuration for (configuration,) in seen["time"]]
    assert sorted(timed, key=str) == sorted([OURS.defaults[0], *others, *OURS.hints], key=str)
    assert timed.index(OURS.defaults[0]) > max(map(timed.index, others)) and not search.handed_back


@pytest.mark.usefixtures("baseline")
def test_under_an_objective_that_builds_would_disturb_nothing_is_timed_beside_them():
    others, ours = list(OTHERS.defaults), [OURS.defaults[0]]
    search = Parts(replace(H200, cores=16), objective="throughput")
    search.generation([*ours, *others, *OURS.hints])
    first, later = [("build", [*ours, *others])], [("tune", list(OURS.hints)), ("build", list(OURS.hints))]
    assert search.notes[:1] == first and search.notes[4:6] == later
    assert [kind for kind, _ in search.notes] == ["build", "time", "time", "time", "tune", "build", "time", "time"]
    assert [part for kind, part in search.notes[1:4] for part in part] == [*ours, *others]


@pytest.mark.usefixtures("baseline")
def test_candidates_with_tuned_kernels_are_not_begun_if_nothing_is_left_for_them():
    search = Parts(replace(H200, cores=16))
    batch = [OURS.defaults[0], *OTHERS.defaults, *OURS.hints]
    seen = search.generation(batch, left_s=0.0)
    assert seen["build"] == [[OURS.defaults[0], *OTHERS.defaults]] and len(seen["time"]) == 3
    assert [trial.configuration for trial in search.withdrawn] == list(OURS.hints)
    assert search.events == ["trial_left_out"] * len(OURS.hints), "the user is told"
    search = Parts(replace(H200, cores=16))
    search._pacing.note_timing(200.0)
    later = search.generation(batch)["build"][1:]
    assert later == [list(OURS.hints)], "it was worth the tuning, whatever other builds and timings took"


@pytest.mark.usefixtures("baseline")
def test_later_proposals_are_built_at_once_unless_they_want_tuned_kernels():
    batch = [Configuration.of("ours", values(kernels=kernels, precision="fp32")) for kernels in ("torch", "tuned")]
    batch[0] = Configuration.of("ours", values(cuda_graph=True, precision="fp32"))
    assert Parts(replace(H200, cores=16)).generation(batch)["build"] == [batch[:1], batch[1:]]
    together = Parts(replace(H200, cores=16), objective="throughput").generation(batch)
    assert together["tune"] == [batch] and together["build"] == [batch]


@pytest.mark.usefixtures("baseline")
def test_a_study_that_is_stopped_begins_no_tuning_and_hands_its_trials_back():
    search = Parts(replace(H200, cores=16))
    search.context.stop.set()
    seen = search.generation([*OTHERS.defaults, *OURS.hints])
    assert len(seen["build"]) == 1 and not seen["tune"] and not seen["time"]
    assert [trial.configuration for trial in search.handed_back] == list(OTHERS.defaults)


@pytest.mark.usefixtures("baseline")
def test_after_an_error_what_runs_is_ended_and_no_trial_counts_as_cut_off_by_a_death():
    search = Parts(replace(H200, cores=16))
    ended = []
    search.context.executor.server.stop = lambda: ended.append("stopped")

    def broken(run, turn):
        raise WorkError("the database is gone")

    search._time = broken
    with pytest.raises(WorkError, match="database is gone"):
        search.generation([*OTHERS.defaults, *OURS.hints])
    assert ended == ["stopped"]
    assert {trial.configuration for trial in search.handed_back} >= set(OTHERS.defaults)
