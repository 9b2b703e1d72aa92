"""Costs of a measurement: host time a sample, time that is not timed, seconds of a screening and of the finals."""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache

from autotune.measure.block import BlockRecorder
from autotune.measure.device_clock import DeviceTime
from autotune.measure.finals import Finals
from autotune.measure.rounds import run_rounds
from autotune.measure.screening import Screening, screen
from autotune.measure.statistics import middle
from autotune.measure.timer import Function, Sample, Timer
from autotune.measure.verdict import Verdict
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.selftest.rig import BusyWait, Rig

MOST_HOST_US = 10.0
MOST_NOT_TIMED = 0.20
LONGEST_SCREENING_S, LONGEST_FINALS_S = 4.0, 90.0
FINALISTS = 8


def _nothing(*inputs: object) -> None:
    return None


def check_overhead(rig: Rig) -> list[CheckResult]:
    """Measure the host time of a sample beyond the call itself, and the share of a screening that is not timed."""
    return [_host_time(rig), *(_not_timed(rig, name, ms) for name, ms in _screened(rig))]


def _screened(rig: Rig) -> tuple[tuple[str, float], ...]:
    return ("0.1 ms", 0.1), ("typical", rig.typical_ms)


def _host_time(rig: Rig) -> CheckResult:
    """Alternate bare calls and recorded ones; a GPU gets 50 µs of work, for which both wait in the same way."""
    function: Function = _nothing if rig.kind == "cpu" else rig.spin_for(0.05)
    wait = _waiting(rig)
    # Calls timed on the device's own clock are calls of their own, and no part of this.
    recorder = BlockRecorder(rig.timer, rig.clock, [()])
    now_ns = rig.clock.now_ns
    bare, recorded = [], []
    for _ in range(rig.pick(5_000, 500)):
        started_ns = now_ns()
        function()
        wait()
        between_ns = now_ns()
        recorder.take(function)
        recorded.append(now_ns() - between_ns)
        bare.append(between_ns - started_ns)
    bare_us, recorded_us = (middle(sorted(times)) / 1e3 for times in (bare, recorded))
    cost_us = recorded_us - bare_us
    return CheckResult(
        check="overhead/host a sample",
        figure=f"{cost_us:.2f} µs",
        limit=f"{MOST_HOST_US:.0f} µs",
        passed=cost_us <= MOST_HOST_US,
        raw={"bare_us": rounded(bare_us), "recorded_us": rounded(recorded_us)},
    )


def _waiting(rig: Rig) -> Callable[[], object]:
    if rig.kind == "cpu":
        return _nothing
    import torch

    return torch.cuda.synchronize


class _Watched:
    """A timer that adds up the milliseconds that its samples stand for."""

    def __init__(self, timer: Timer) -> None:
        self._timer, self.kind, self.l2, self.timed_ms = timer, timer.kind, timer.l2, 0.0

    def settle(self) -> None:
        """Wait as the other does."""
        self._timer.settle()

    def grouping(self, typical_ms: float) -> int:
        """Choose as the other does."""
        return self._timer.grouping(typical_ms)

    def time_call(self, function: Function, inputs: Sequence[object], grouped: int = 1) -> Sample:
        """Time as the other does."""
        sample = self._timer.time_call(function, inputs, grouped)
        self.timed_ms += sample.wall_ms * grouped
        return sample

    def time_on_device(
        self, function: Function, inputs: Sequence[object], sample: Sample, like: DeviceTime | None = None
    ) -> DeviceTime | None:
        """Time as the other does; the spin ahead of the calls is not counted."""
        timed = self._timer.time_on_device(function, inputs, sample, like)
        self.timed_ms += timed.ms * timed.unrolled if timed is not None else 0.0
        return timed


def _screening(rig: Rig, duration_ms: float, function: Function | None = None) -> tuple[Screening, float, float]:
    """Screen a spin; return its seconds too, and the share of them in which no call was timed (warm-up included)."""
    spin = function or rig.spin_for(duration_ms)
    watched = _Watched(rig.timer)
    started_ns = rig.clock.now_ns()
    screening = screen(spin, [()], watched, clock=rig.clock)
    elapsed_ms = (rig.clock.now_ns() - started_ns) / 1e6
    return screening, elapsed_ms / 1e3, 1 - watched.timed_ms / elapsed_ms


def _not_timed(rig: Rig, name: str, duration_ms: float) -> CheckResult:
    screening, seconds, share = _screening(rig, duration_ms)
    return CheckResult(
        check=f"overhead/not timed, {name}",
        figure=f"{share:.1%} of {seconds:.2f} s",
        limit=f"{MOST_NOT_TIMED:.0%} of a screening",
        passed=share <= MOST_NOT_TIMED,
        raw={"call_ms": duration_ms, "seconds": rounded(seconds), "share": rounded(share), "ended": screening.reason},
    )


def check_duration(rig: Rig) -> list[CheckResult]:
    """Time screenings of a quick and of a slow call, and finals of eight candidates."""
    results = []
    screened = (("quick", 0.05), ("typical", rig.typical_ms), ("slow", 300.0))
    for name, duration_ms in screened[: rig.pick(3, 1)]:
        # A slow call waits on the clock if it can: a busy host must not change its duration.
        waits = name == "slow" and rig.kind == "cpu"
        screening, seconds, _ = _screening(rig, duration_ms, BusyWait(rig.clock, duration_ms) if waits else None)
        results.append(
            CheckResult(
                check=f"duration/screening, {name}",
                figure=f"{seconds:.2f} s for calls of {duration_ms:g} ms",
                limit=f"{LONGEST_SCREENING_S:.0f} s",
                passed=seconds <= LONGEST_SCREENING_S,
                raw={"seconds": rounded(seconds), "ended": screening.reason},
            )
        )
    _, verdict, seconds = eight_finalists(rig)
    return [
        *results,
        CheckResult(
            check="duration/finals of eight",
            figure=f"{seconds:.1f} s, {verdict.rounds} rounds",
            limit=f"{LONGEST_FINALS_S:.0f} s",
            passed=seconds <= LONGEST_FINALS_S,
            raw={"seconds": rounded(seconds), "status": verdict.status, "rounds": verdict.rounds},
        ),
    ]


@lru_cache(maxsize=2)
def eight_finalists(rig: Rig) -> tuple[Finals, Verdict, float]:
    """Run finals of eight, each 0.2% longer than the one before, once; return them, their verdict and the seconds.

    Such a close race lasts until the last look; all rounds run in this process.
    """
    shortest = rig.amount(2.0 if not rig.quick else rig.typical_ms)
    spins = {f"candidate {place}": rig.spin(round(shortest * 1.002**place)) for place in range(FINALISTS)}
    finals = Finals(list(spins), baselines=[f"candidate {FINALISTS - 1}"], processes=1)
    rng = random.Random(rig.seed + 4)
    started_ns = rig.clock.now_ns()
    verdict = None
    while verdict is None:
        frozen = finals.freeze()
        count = finals.next_rounds()
        finals.add(0, run_rounds(spins, [()], rig.timer, rng, count, clock=rig.clock, frozen=frozen))
        verdict = finals.conclude() if rig.quick else finals.look()
    return finals, verdict, (rig.clock.now_ns() - started_ns) / 1e9
