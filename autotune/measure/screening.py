"""The first measurement of a candidate: warm up, sample until the median is precise, give up on a hopeless one."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from autotune.measure.block import Block, BlockRecorder, InputSets, protocol_of
from autotune.measure.clock import Clock
from autotune.measure.flags import flags, invalid
from autotune.measure.observers import Observers
from autotune.measure.statistics import median
from autotune.measure.stopping import FirstOf, Hopeless, IntervalReached, NoiseSettled, StoppingRule, TimeLimit
from autotune.measure.timer import Function, Timer
from autotune.records.trial import Measurement

RETAKES, RETAKE_AFTER_S = 2, 0.2
WAIT_S, LOOK_EVERY_S = 10.0, 0.5
"""The time that a measurement waits for a device that others use; then it begins and is flagged."""

WINDOW_MS = 20.0
"""A warm-up window lasts this long, at least one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """The result of a warm-up: ``settled`` says that five windows agreed, ``typical_ms`` is the last one's median."""

    calls: int
    elapsed_ms: float
    settled: bool
    typical_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Screening:
    """A screening measurement and the reason of its end; ``pruned`` if the candidate was given up."""

    measurement: Measurement
    pruned: bool
    reason: str


def warm_up(
    function: Function,
    input_sets: InputSets,
    timer: Timer,
    *,
    clock: Clock,
    min_ms: float = 200.0,
    limit_s: float = 1.0,
    agreement: float = 0.01,
    sm_clock_mhz: Callable[[], float | None] = lambda: None,
) -> WarmUp:
    """Call until five window medians in a row lie within ``agreement`` of one another, or the limit.

    So must the device's clock at the end of each of these windows, if ``sm_clock_mhz`` can read it. At least three
    calls and ``min_ms`` of work; a single call if it alone takes longer than the limit.
    """
    recorder = BlockRecorder(timer, clock, input_sets)
    started_ns = clock.now_ns()
    medians: list[float] = []
    clocks: list[float | None] = []
    window: list[float] = []
    typical_ms: float | None = None
    calls, worked_ms, settled = 0, 0.0, False
    while True:
        window.append(recorder.take(function).wall_ms)
        calls += 1
        worked_ms += window[-1]
        if sum(window) >= WINDOW_MS:
            typical_ms, window = median(window), []
            medians.append(typical_ms)
            clocks.append(sm_clock_mhz())
            read = [mhz for mhz in clocks[-5:] if mhz is not None]
            settled = _agree(medians[-5:], agreement) and (not read or _agree(read, agreement))
        elapsed_ms = (clock.now_ns() - started_ns) / 1e6
        too_slow = calls == 1 and elapsed_ms > limit_s * 1e3
        done = (settled and worked_ms >= min_ms) or elapsed_ms >= limit_s * 1e3
        if too_slow or (done and calls >= 3):
            typical_ms = typical_ms if typical_ms is not None else median(window)
            return WarmUp(calls=calls, elapsed_ms=elapsed_ms, settled=settled, typical_ms=typical_ms)


def _agree(medians: list[float], agreement: float) -> bool:
    return len(medians) == 5 and max(medians) - min(medians) <= agreement * min(medians)


def screening_rule(clock: Clock, limit_s: float, grouped: int) -> StoppingRule:
    """Stop at 30 samples, 100 ms and a median precise to 1%; or settled noise; or the time limit, after 3 samples."""
    return FirstOf([IntervalReached(calls=grouped), NoiseSettled(calls=grouped), TimeLimit(clock, limit_s)])


def screen(
    function: Function,
    input_sets: InputSets,
    timer: Timer,
    *,
    clock: Clock,
    limit_s: float = 2.0,
    abandon_ms: float | None = None,
    rule: Callable[[int], StoppingRule] | None = None,
    conditions: Mapping[str, object] | None = None,
    observers: Observers | None = None,
    sleep: Callable[[float], None] = time.sleep,
    wait_s: float = WAIT_S,
) -> Screening:
    """Warm up, then sample until the rule (default :func:`screening_rule`) is finished; inputs take turns.

    If after 5 samples during which no core was taken away even the fastest is slower than ``abandon_ms``, the candidate
    is pruned. ``conditions`` (such as the seed) are stored with those that are recorded here. An error of the function
    passes through.

    With ``observers`` it waits up to ``wait_s`` for a device that others use, samples up to :data:`RETAKES` times
    again if the readings make the samples invalid, and keeps the last, flagged.
    """
    if observers is not None:
        wait_for_quiet(observers, clock, sleep, wait_s)
    sm_clock_mhz = observers.sm_clock_mhz if observers is not None else lambda: None
    warm = warm_up(function, input_sets, timer, clock=clock, sm_clock_mhz=sm_clock_mhz)
    grouped = timer.grouping(warm.typical_ms)
    make_rule = rule if rule is not None else partial(screening_rule, clock, limit_s)
    retakes = RETAKES
    while True:
        sampling = _sample(
            function, BlockRecorder(timer, clock, input_sets, grouped), make_rule(grouped), abandon_ms, observers
        )
        if sampling.valid or sampling.pruned or retakes == 0:
            break
        retakes -= 1
        sleep(RETAKE_AFTER_S)
    block = sampling.block
    around = {
        **(conditions or {}),
        "process": os.getpid(),
        "warm_up": {"calls": warm.calls, "elapsed_ms": warm.elapsed_ms, "settled": warm.settled},
        "cpu_ms": list(block.cpu_ms),
        "switches": list(block.switches),
        "input_sets": list(block.input_sets),
        "queued": block.queued,
        "stopped": sampling.reason,
        "readings": dict(block.readings),
        "flags": list(block.flags),
        "retaken": RETAKES - retakes,
    }
    measurement = Measurement(
        samples_ms=(block.samples_ms,),
        device_samples_ms=(block.device_samples_ms,) if block.device_samples_ms else (),
        conditions=around,
        protocol=protocol_of(
            "screening", timer.kind, len(input_sets), grouped=grouped, unrolled=block.unrolled, l2=timer.l2
        ),
    )
    return Screening(measurement=measurement, pruned=sampling.pruned, reason=sampling.reason)


def wait_for_quiet(observers: Observers, clock: Clock, sleep: Callable[[float], None], wait_s: float = WAIT_S) -> bool:
    """Wait until no other process uses the device, up to ``wait_s``; returns whether it is quiet."""
    started_ns = clock.now_ns()
    while True:
        observers.before()
        quiet = not invalid(observers.after())
        if quiet or (clock.now_ns() - started_ns) / 1e9 >= wait_s:
            return quiet
        sleep(LOOK_EVERY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sampling:
    """One attempt at sampling: the block with its readings, and the reason of its end."""

    block: Block
    reason: str
    pruned: bool
    valid: bool


def _sample(
    function: Function,
    recorder: BlockRecorder,
    rule: StoppingRule,
    abandon_ms: float | None,
    observers: Observers | None,
) -> _Sampling:
    hopeless = Hopeless(abandon_ms) if abandon_ms is not None else None
    reason, pruned = None, False
    if observers is not None:
        observers.before()
    while reason is None:
        sample = recorder.take(function)
        rule.observe(sample.wall_ms)
        reason = rule.finished()
        if hopeless is not None and recorder.escaped:
            hopeless.observe(sample.wall_ms)
            given_up = hopeless.finished()
            if given_up is not None:
                reason, pruned = given_up, True
        if observers is not None:
            observers.during()
    recorder.take_on_device(function)
    block = recorder.block()
    if observers is None:
        return _Sampling(block=block, reason=reason, pruned=pruned, valid=True)
    readings = observers.after()
    block = replace(block, readings=readings, flags=flags(readings))
    return _Sampling(block=block, reason=reason, pruned=pruned, valid=not invalid(readings))
