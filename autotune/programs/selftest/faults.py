"""Faults of a measurement are refused or reported, never averaged in; all of them happen on a fake clock."""

import math
import random
from collections.abc import Callable
from itertools import chain, repeat

from autotune.measure.block import Block, BlockRecorder
from autotune.measure.observers import Observers
from autotune.measure.rounds import run_rounds
from autotune.measure.screening import screen
from autotune.measure.statistics import median
from autotune.measure.timer import CpuTimer, Sample
from autotune.measure.verdict import verdict_from_samples
from autotune.programs.check_result import CheckResult
from autotune.programs.selftest.fake import ManualClock
from autotune.programs.selftest.rig import Rig

CAPTURE_MESSAGE = "operation not permitted when stream is capturing"


def check(rig: Rig) -> list[CheckResult]:
    """Cause each fault, and look whether it is refused or reported."""
    reported = {name: fault() for name, fault in FAULTS.items()}
    missed = sorted(name for name, is_reported in reported.items() if not is_reported)
    names = f", not: {', '.join(missed)}" if missed else ""
    return [
        CheckResult(
            check="faults",
            figure=f"{len(reported) - len(missed)} of {len(reported)} reported{names}",
            limit="all refused or reported",
            passed=not missed,
            raw={"told": reported},
        )
    ]


def _refused(function: Callable[[], object], message: str = "", kind: type[Exception] = ValueError) -> bool:
    try:
        function()
    except kind as error:
        return message in str(error)
    return False


def _bad_time(value: float) -> Callable[[], bool]:
    places: tuple[Callable[[], object], ...] = (
        lambda: Sample(wall_ms=value),
        lambda: Sample(wall_ms=1.0, queue_ms=value),
        lambda: Block(samples_ms=(1.0, value)),
        lambda: median([1.0, value]),
        lambda: verdict_from_samples({"a": [[1.0], [value]], "b": [[1.0], [1.0]]}, baselines=["a"]),
    )
    return lambda: all(_refused(place) for place in places)


def _clock_stands_still() -> bool:
    clock = ManualClock()
    return _refused(lambda: CpuTimer(clock).time_call(clock.call(0.0), ()))


def _clock_goes_backwards() -> bool:
    clock = ManualClock()
    clock.advance(10.0)
    recorder = BlockRecorder(CpuTimer(clock), clock, [()])
    call = clock.call(1.0, 1.0, -3.0)
    recorder.take(call)
    recorder.take(call)
    refused = _refused(lambda: recorder.take(call))
    return refused and recorder.block().samples_ms == (1.0, 1.0)


class _Failing:
    """A finalist that raises on its n-th call."""

    def __init__(self, clock: ManualClock, number: int, error: Exception) -> None:
        self._clock, self._number, self._error, self._calls = clock, number, error, 0

    def prepare(self) -> None:
        """Need no switch."""

    def __call__(self, *inputs: object) -> None:
        """Take a millisecond, or raise."""
        self._calls += 1
        if self._calls == self._number:
            raise self._error
        self._clock.advance(1.0)


def _raises_in_screening(number: int) -> Callable[[], bool]:
    def is_refused() -> bool:
        clock = ManualClock()
        call = _Failing(clock, number, RuntimeError(f"call {number}"))
        return _refused(lambda: screen(call, [()], CpuTimer(clock), clock=clock), f"call {number}", RuntimeError)

    return is_refused


def _raises_in_finals() -> bool:
    clock = ManualClock()
    turns: list[str] = []
    finalists = {"good": _Failing(clock, -1, RuntimeError()), "bad": _Failing(clock, 20, RuntimeError("call 20"))}

    def race() -> None:
        run_rounds(finalists, [()], CpuTimer(clock), random.Random(0), 20, clock=clock, announce=turns.append)

    return _refused(race, "call 20", RuntimeError) and turns[-1] == "bad"


def _capture_fails() -> bool:
    clock = ManualClock()
    timer = CpuTimer(clock)
    call = _Failing(clock, 1, RuntimeError(CAPTURE_MESSAGE))
    refused = _refused(lambda: timer.time_call(call, ()), CAPTURE_MESSAGE, RuntimeError)
    return refused and timer.time_call(call, ()).wall_ms == 1.0


def _every_call_is_slow() -> bool:
    """Calls of 1,000 s: one to warm up, and the fewest samples that the time limit lets pass."""
    clock = ManualClock()
    screening = screen(clock.call(1e6), [()], CpuTimer(clock), clock=clock)
    return screening.reason == "time limit" and len(screening.measurement.flat_ms) == 3 and clock.now_ns() == 4e12


def _slows_down_after_warm_up() -> bool:
    clock = ManualClock()
    durations = chain(repeat(1.0, 210), repeat(1e5))
    screening = screen(clock.call(endless=durations), [()], CpuTimer(clock), clock=clock)
    return screening.reason == "time limit" and len(screening.measurement.flat_ms) <= 11


def _never_settles() -> bool:
    """Noise of a factor of a thousand: the limit of 1 s to warm up and 2 s to sample ends it, within one call."""
    clock = ManualClock()
    rng = random.Random(0)
    noise = (10 ** rng.uniform(-1, 2) for _ in repeat(None))
    screening = screen(clock.call(endless=noise), [()], CpuTimer(clock), clock=clock)
    return screening.reason in ("time limit", "noise settled") and clock.now_ns() <= 3.3e9


class _GivenReadings:
    """An observer with given readings, one for each block; the last one is repeated."""

    name = "gpu"

    def __init__(self, *readings: dict[str, object]) -> None:
        self._readings = list(readings)

    def before(self) -> None:
        """Begin nothing."""

    def during(self) -> None:
        """Read nothing."""

    def after(self) -> dict[str, object]:
        """Return the next reading."""
        reading = self._readings.pop(0) if len(self._readings) > 1 else self._readings[0]
        return {"available": True, **reading}


QUIET: dict[str, object] = {}
FOREIGN: dict[str, object] = {"other_processes": [{"pid": 4321, "sm_percent": 60}]}


def _throttled_is_flagged() -> bool:
    clock = ManualClock()
    observers = Observers([_GivenReadings({"throttle_reasons": ["hw_thermal_slowdown"]})], clock)
    screening = screen(clock.call(endless=repeat(1.0)), [()], CpuTimer(clock), clock=clock, observers=observers)
    conditions = screening.measurement.conditions
    return bool(conditions["flags"] == ["throttled"] and conditions["retaken"] == 0)


def _foreign_process_is_waited_for() -> bool:
    """Busy at the first three looks: the measurement waits, and takes no sample while it does."""
    clock = ManualClock()
    call = clock.call(endless=repeat(1.0))
    slept: list[float] = []
    observers = Observers([_GivenReadings(FOREIGN, FOREIGN, FOREIGN, QUIET)], clock)
    screening = screen(call, [()], CpuTimer(clock), clock=clock, observers=observers, sleep=slept.append)
    return len(slept) == 3 and screening.measurement.conditions["flags"] == []


def _foreign_process_that_stays_is_flagged() -> bool:
    clock = ManualClock()
    observers = Observers([_GivenReadings(FOREIGN)], clock)
    screening = screen(
        clock.call(endless=repeat(1.0)), [()], CpuTimer(clock), clock=clock, observers=observers,
        sleep=lambda seconds: clock.advance(1e3 * seconds),
    )  # fmt: skip
    conditions = screening.measurement.conditions
    return bool(conditions["flags"] == ["shared_device"] and conditions["retaken"] > 0)


def _disturbed_round_is_repeated() -> bool:
    """A foreign process in the second round of three: that round is taken again, whole, and the rest is clean."""
    clock = ManualClock()
    finalists = {name: _Failing(clock, -1, RuntimeError()) for name in ("first", "second")}
    observers = Observers([_GivenReadings(QUIET, FOREIGN, QUIET)], clock)
    rounds = run_rounds(
        finalists, [()], CpuTimer(clock), random.Random(0), 3, clock=clock, observers=observers, sleep=lambda _: None
    )
    return len(rounds) == 3 and all(block.flags == () for blocks in rounds for block in blocks.values())


FAULTS: dict[str, Callable[[], bool]] = {
    "zero time": _bad_time(0.0),
    "negative time": _bad_time(-1.0),
    "time that is not a number": _bad_time(math.nan),
    "infinite time": _bad_time(math.inf),
    "a clock that stands still": _clock_stands_still,
    "a clock that goes backwards": _clock_goes_backwards,
    "a callable that raises at once": _raises_in_screening(1),
    "a callable that raises while warming up": _raises_in_screening(30),
    "a callable that raises while sampled": _raises_in_screening(220),
    "a finalist that raises": _raises_in_finals,
    "a capture that fails": _capture_fails,
    "calls too slow to warm up": _every_call_is_slow,
    "calls that become slow": _slows_down_after_warm_up,
    "noise that never settles": _never_settles,
    "a throttled device": _throttled_is_flagged,
    "a foreign process that leaves": _foreign_process_is_waited_for,
    "a foreign process that stays": _foreign_process_that_stays_is_flagged,
    "a foreign process in one round": _disturbed_round_is_repeated,
}
