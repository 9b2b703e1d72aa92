"""The worker's half of the finals: every finalist once a round, in random order."""

import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from autotune.measure.block import Block, BlockRecorder, InputSets
from autotune.measure.clock import Clock
from autotune.measure.device_clock import DeviceTime
from autotune.measure.flags import flags, invalid
from autotune.measure.observers import Observers
from autotune.measure.timer import Timer

BLOCK_MS = 5.0
FEWEST_CALLS, MOST_CALLS = 3, 30
SLOW_CALL_MS = 20.0

FEWEST_UNDISTURBED, LONGEST_BLOCK_MS = 3, 50.0
"""While others use the device, a block continues until this number of its samples is undisturbed, up to this time."""

RETAKES = 6
RETAKE_AFTER_S = 0.2
"""The number of rounds that one call takes again, each after a pause in which the disturbance may end."""


class Meter(Protocol):
    """Measures the figure that an objective other than latency compares; lower is better."""

    def __call__(self, name: str, finalist: "TimedRunner") -> float:
        """Measure the prepared finalist of this name once."""
        ...


class TimedRunner(Protocol):
    """A runner with the global switches that it needs, as rounds time it."""

    def prepare(self) -> None:
        """Set threads and every other global switch; called before each of its blocks, not timed."""
        ...

    def __call__(self, *inputs: Any) -> object:  # Any: a runner may ask for tensors
        """Answer one call; exactly this is timed."""
        ...


def run_rounds(
    finalists: Mapping[str, TimedRunner],
    input_sets: InputSets,
    timer: Timer,
    rng: random.Random,
    rounds: int,
    *,
    clock: Clock,
    frozen: Collection[str] = frozenset(),
    limit_s: float = math.inf,
    longest_s: float = math.inf,
    least: int = 1,
    announce: Callable[[str], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    observers: Observers | None = None,
    meter: Meter | None = None,
    samples: int = 0,
) -> list[dict[str, Block]]:
    """Run whole rounds and return one block a finalist for each; frozen ones are left out.

    A block is ``prepare()``, one call that is not kept (three in the first block of a quick finalist), and then enough
    samples for 5 ms, from 3 to 30; only one if a call takes 20 ms. A round takes as long as the longest so far: after
    ``least`` rounds, none begins that would end after ``limit_s``; and except the first, none that would end after
    ``longest_s``. ``announce`` gets each name before its turn, so that a crash or hang has a name. An error of a
    finalist passes through.

    ``observers`` look around each round; an invalid one (a foreign process, a canary that drifts) is taken again, up to
    :data:`RETAKES` times in all, and then kept with its flags: pairs stay pairs. A round in which others used the cores
    and a block has no undisturbed sample is also taken again, while that helps and the limit leaves time. ``meter``
    measures the figure of an objective other than latency after each block. ``samples`` is the size of every block if a
    tail is compared, because a tail statistic grows with the size.
    """
    names = sorted(name for name in finalists if name not in frozen)
    if not names:
        raise ValueError(f"a round needs a finalist, but all of {sorted(finalists)} are frozen")
    turns = {
        name: _FinalistTurn(name, finalists[name], input_sets, timer, clock, meter=meter, samples=samples)
        for name in names
    }
    taker = _Taker(names, turns, announce, observers, sleep)
    done: list[dict[str, Block]] = []
    started_ns, longest_ns = clock.now_ns(), 0

    def is_late() -> bool:
        return (clock.now_ns() - started_ns + longest_ns) / 1e9 > min(limit_s, longest_s)

    for number in range(rounds):
        begun_ns = clock.now_ns()
        ends_s = (begun_ns - started_ns + longest_ns) / 1e9
        if (number >= least and ends_s > limit_s) or (done and ends_s > longest_s):
            break
        rng.shuffle(names)
        done.append(taker.take(number, is_late))
        longest_ns = max(longest_ns, clock.now_ns() - begun_ns)
    return done


class _Taker:
    """Takes rounds, and takes disturbed ones again, as long as retakes are left."""

    def __init__(
        self,
        names: Sequence[str],
        turns: Mapping[str, "_FinalistTurn"],
        announce: Callable[[str], None] | None,
        observers: Observers | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._names, self._turns, self._announce = names, turns, announce
        self._observers, self._sleep = observers, sleep
        self._left, self._shared = RETAKES, False

    def take(self, number: int, is_late: Callable[[], bool]) -> dict[str, Block]:
        """Take a round in the present order of the names."""
        fewest = len(self._names) + 1
        while True:
            blocks, valid = _observed(lambda: self._once(number), self._observers)
            disturbed = sum(not block.undisturbed_ms for block in blocks.values())
            self._shared = any(block.shared for block in blocks.values())
            hopeless = disturbed == 0 or disturbed >= fewest or is_late()
            if (valid and hopeless) or self._left == 0:
                return blocks
            fewest = min(fewest, disturbed)
            self._left -= 1
            self._sleep(RETAKE_AFTER_S)

    def _once(self, number: int) -> dict[str, Block]:
        blocks: dict[str, Block] = {}
        for position, name in enumerate(self._names):
            if self._announce is not None:
                self._announce(name)
            blocks[name] = self._turns[name].block(first=number, position=position, shared=self._shared)
        return blocks


def _observed(take: Callable[[], dict[str, Block]], observers: Observers | None) -> tuple[dict[str, Block], bool]:
    """Take a round between the observers' looks; returns it with their readings, and whether it is valid."""
    if observers is None:
        return take(), True
    observers.before()
    blocks = take()
    readings = observers.after()
    raised = flags(readings)
    blocks = {name: replace(block, readings=readings, flags=raised) for name, block in blocks.items()}
    return blocks, not invalid(readings)


class _FinalistTurn:
    """One finalist's blocks in one process; its fastest warm-up call so far decides how calls are grouped."""

    def __init__(
        self,
        name: str,
        finalist: TimedRunner,
        input_sets: InputSets,
        timer: Timer,
        clock: Clock,
        *,
        meter: Meter | None,
        samples: int,
    ) -> None:
        self._name, self._finalist, self._input_sets, self._timer, self._clock = (
            name,
            finalist,
            input_sets,
            timer,
            clock,
        )
        self._meter, self._samples = meter, samples
        self._fastest_ms: float | None = None
        self._device_time: DeviceTime | None = None

    def block(self, *, first: int, position: int, shared: bool) -> Block:
        """Prepare, warm up and take one block; inputs rotate from set ``first``.

        ``shared`` says that others used the device in the round before.
        """
        self._finalist.prepare()
        fastest_ms = self._warm_up(first)
        grouped = self._timer.grouping(fastest_ms)
        recorder = BlockRecorder(self._timer, self._clock, self._input_sets, grouped, first=first + 1)
        for _ in range(self._samples or _samples_for(fastest_ms, grouped)):
            recorder.take(self._finalist)
        if shared and not self._samples:
            while recorder.undisturbed < FEWEST_UNDISTURBED and recorder.elapsed_ms < LONGEST_BLOCK_MS:
                recorder.take(self._finalist)
        self._device_time = recorder.take_on_device(self._finalist, self._device_time)
        block = recorder.block(position=position)
        if self._meter is None:
            return block
        return replace(block, figures=(self._meter(self._name, self._finalist),))

    def _warm_up(self, first: int) -> float:
        """Make one call, two more in the first block of a quick finalist, and return the fastest of all so far."""
        recorder = BlockRecorder(self._timer, self._clock, self._input_sets, first=first)
        calls_ms = [recorder.take(self._finalist).wall_ms]
        if self._fastest_ms is None and calls_ms[0] < BLOCK_MS:
            calls_ms += [recorder.take(self._finalist).wall_ms for _ in range(2)]
        self._fastest_ms = min([*calls_ms, *([self._fastest_ms] if self._fastest_ms is not None else [])])
        return self._fastest_ms


def _samples_for(call_ms: float, grouped: int) -> int:
    if call_ms >= SLOW_CALL_MS:
        return 1
    return min(MOST_CALLS, max(FEWEST_CALLS, math.ceil(BLOCK_MS / (call_ms * grouped))))
