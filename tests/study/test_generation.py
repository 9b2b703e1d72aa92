"""The order in which a generation builds, tunes and times its trials, with steps that the test lets end one by one."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.records.configuration import Configuration
from autotune.records.trial import Trial
from autotune.study.built_trial import BuiltTrial
from autotune.study.generation import Generation, GenerationSteps, Pending, ThreadDoorbell

SOON_S = 10.0
"""The longest wait for what must come."""


def named(*names: str) -> list[Configuration]:
    """Configurations whose names say what they are: ``exact`` ones can wait."""
    return [Configuration.of("b", {"name": name}) for name in names]


def name_of(configuration: Configuration) -> str:
    return str(configuration["name"])


class Steps:
    """Steps that wait, each until the test lets it end, and note what they did in ``notes``, in order."""

    def __init__(self, *, in_time: bool = True, passes: bool = True) -> None:
        self.notes: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.crowded: list[bool] = []
        self.errors: dict[str, Exception] = {}
        self._in_time, self._passes = in_time, passes
        self._lock = threading.Lock()

    def steps(self) -> GenerationSteps:
        return GenerationSteps(
            look=lambda batch: self._wait("look"), claim=self._claim, tune=self._tune, build=self._build,
            in_time=lambda: self._in_time, withdraw=lambda trial: self.note(f"withdraw {trial.uid}"),
            time=self._time, can_wait=lambda configuration: name_of(configuration).startswith("exact"),
        )  # fmt: skip

    def note(self, text: str) -> None:
        with self._lock:
            self.notes.append(text)

    def let(self, *names: str) -> None:
        for name in names:
            self._gate(name).set()

    def until(self, text: str) -> None:
        """Wait until something was noted."""
        end = time.monotonic() + SOON_S
        while text not in self.notes:
            assert time.monotonic() < end, f"{text!r} did not come: {self.notes}"
            time.sleep(0.001)

    def _gate(self, name: str) -> threading.Event:
        with self._lock:
            return self.gates.setdefault(name, threading.Event())

    def _wait(self, name: str) -> None:
        self.note(f"begin {name}")
        assert self._gate(name).wait(SOON_S), f"{name} was not let"
        if name in self.errors:
            raise self.errors[name]

    def _claim(self, batch: Sequence[Configuration]) -> list[Trial]:
        return [
            Trial(uid=name_of(one), number=number, configuration=one, state="running")
            for number, one in enumerate(batch) if name_of(one) != "adopted"
        ]  # fmt: skip

    def _tune(self, trials: Sequence[Trial], crowded: Callable[[], bool]) -> Mapping[Configuration, None]:
        self.crowded.append(crowded())
        self._wait("tune")
        self.crowded.append(crowded())
        return {trial.configuration: None for trial in trials}

    def _build(self, trials: Sequence[Trial], kernels: object, then: Callable[[BuiltTrial], None]) -> None:
        def one(trial: Trial) -> None:
            self._wait(name_of(trial.configuration))
            then(BuiltTrial(trial=trial, built=cast(Any, None), target=cast(Any, None)))

        with ThreadPoolExecutor(len(trials)) as pool:
            list(pool.map(one, trials))

    def _time(self, turn: BuiltTrial) -> bool:
        name = name_of(turn.trial.configuration)
        self.note(f"time {name}")
        if f"time {name}" in self.errors:
            raise self.errors[f"time {name}"]
        return self._passes and not name.startswith("exact")


class Running:
    """A generation in a thread of its own."""

    def __init__(self, steps: Steps, first: Sequence[str], second: Sequence[str] = (), *, overlap: bool = True) -> None:
        self.stop = threading.Event()
        self.bell = ThreadDoorbell()
        self._pool = ThreadPoolExecutor(16)
        self.generation = Generation(
            steps.steps(), named(*first), named(*second), overlap=overlap, stop=self.stop,
            background=self._begin, doorbell=self.bell, abort=lambda: self._abort(steps),
        )  # fmt: skip
        self._result = self._pool.submit(self.generation.run)

    def _begin(self, work: Callable[[], Any]) -> Pending[Any]:
        return self._pool.submit(work)

    def _abort(self, steps: Steps) -> None:
        steps.note("abort")
        steps.let("a", "b", "look", "tune", "own")

    @property
    def ended(self) -> bool:
        return self._result.done()

    def end(self) -> None:
        self._result.result(SOON_S)
        self._pool.shutdown()


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    made: list[tuple[Steps, Running]] = []

    def begin(steps: Steps, *given: Any, **named_ones: Any) -> Running:
        made.append((steps, Running(steps, *given, **named_ones)))
        return made[-1][1]

    yield begin
    for steps, one in made:
        steps.let(*steps.gates)
        one.stop.set()
        one.bell.ring()


def test_each_is_timed_as_soon_as_it_is_built_while_others_are_built_and_kernels_are_tuned(running):
    steps = Steps()
    one = running(steps, ["a", "b"], ["own"])
    for begun in ("begin a", "begin b", "begin look"):
        steps.until(begun)
    steps.let("b")
    steps.until("time b")
    steps.let("look")
    steps.until("begin tune")
    steps.let("a")
    steps.until("time a")
    assert "begin own" not in steps.notes and not one.ended
    steps.let("tune", "own")
    one.end()
    assert steps.notes[-2:] == ["begin own", "time own"]


def test_full_precision_waits_for_the_first_builds_and_for_the_tuning_if_another_passed(running):
    steps = Steps()
    one = running(steps, ["exact", "half"], ["own"])
    steps.let("exact", "look")
    steps.until("begin tune")
    steps.let("half")
    steps.until("time half")
    time.sleep(0.05)
    assert "time exact" not in steps.notes
    steps.let("tune")
    steps.until("begin own")
    steps.until("time exact")  # while own kernels are built
    steps.let("own")
    one.end()


def test_full_precision_that_may_win_is_timed_beside_the_tuning(running):
    steps = Steps(passes=False)
    one = running(steps, ["exact", "half"], ["own"])
    steps.let("exact", "look", "half")
    steps.until("time exact")
    assert steps.notes.index("time half") < steps.notes.index("time exact")
    steps.let("tune", "own")
    one.end()


def test_own_kernels_go_before_full_precision_that_waits(running):
    steps = Steps()
    one = running(steps, ["exact", "half"], ["own"])
    steps.let("look", "tune", "own", "half")
    steps.until("time own")
    steps.until("time half")
    steps.let("exact")
    one.end()
    assert steps.notes[-1] == "time exact"


def test_without_overlap_nothing_is_timed_or_tuned_while_models_are_built(running):
    steps = Steps()
    one = running(steps, ["a", "b"], ["own"], overlap=False)
    steps.let("a", "look", "tune", "own")
    steps.until("begin b")
    time.sleep(0.05)
    assert not {"time a", "begin look"} & set(steps.notes)
    steps.let("b")
    one.end()
    assert steps.notes[2:] == ["time a", "time b", "begin look", "begin tune", "begin own", "time own"]


def test_the_tuning_knows_whether_models_are_built_beside_it(running):
    steps = Steps()
    one = running(steps, ["a"], ["own"])
    steps.let("look")
    steps.until("begin tune")
    steps.let("a")
    steps.until("time a")
    end = time.monotonic() + SOON_S
    while one.generation._building and time.monotonic() < end:
        time.sleep(0.001)
    steps.let("tune", "own")
    one.end()
    assert steps.crowded == [True, False]


def test_those_with_tuned_kernels_are_withdrawn_if_too_little_of_the_budget_is_left(running):
    steps = Steps(in_time=False)
    one = running(steps, ["a"], ["own"])
    steps.let("a", "look", "tune")
    one.end()
    assert "withdraw own" in steps.notes and "begin own" not in steps.notes


def test_results_of_other_studies_need_no_build(running):
    steps = Steps()
    one = running(steps, ["adopted"], ["adopted"])
    steps.let("look", "tune")
    one.end()
    assert steps.notes == ["begin look", "begin tune"]


def test_a_stopped_study_times_nothing_more_and_ends_after_its_steps(running):
    steps = Steps()
    one = running(steps, ["a", "b"], ["own"])
    steps.until("begin look")
    one.stop.set()
    steps.let("a", "b", "look")
    one.end()
    assert not [note for note in steps.notes if note.startswith("time")] and "begin tune" not in steps.notes
    assert [name_of(trial.configuration) for trial in one.generation.claimed] == ["a", "b"]


@pytest.mark.parametrize("culprit", ["look", "tune", "a", "time a"])
def test_an_error_of_a_step_ends_the_others_and_is_raised(culprit, running):
    steps = Steps()
    steps.errors[culprit] = ValueError(culprit)
    one = running(steps, ["a", "b"], ["own"])
    for begun in ("begin a", "begin b", "begin look"):
        steps.until(begun)
    ends = {
        "look": ["look"],
        "tune": ["look", "tune"],
        "a": ["a", "b"],
        "time a": ["a"],
    }  # builds of a part end together
    steps.let(*ends[culprit])
    with pytest.raises(ValueError, match=culprit):
        one.end()
    assert steps.notes.count("abort") == 1 and not one.generation._running


@settings(max_examples=40, deadline=None)
@given(
    first=st.lists(st.sampled_from(["exact1", "exact2", "half1", "half2", "half3"]), unique=True),
    second=st.lists(st.sampled_from(["own1", "own2", "adopted"]), unique=True), order=st.randoms(use_true_random=False),
    overlap=st.booleans(), passes=st.booleans(),
)  # fmt: skip
def test_every_trial_is_timed_once_in_whatever_order_steps_end(first, second, order, overlap, passes):
    names = ["look", "tune", *first, *second]
    order.shuffle(names)
    steps = Steps(passes=passes)
    one = Running(steps, first, second, overlap=overlap)
    for name in names:
        steps.let(name)
        time.sleep(0.0005)
    one.end()
    timed = [note.removeprefix("time ") for note in steps.notes if note.startswith("time ")]
    assert sorted(timed) == sorted(name for name in (*first, *second) if name != "adopted")
