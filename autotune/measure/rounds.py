"""The worker's half of the finals: every finalist once a round, in random order."""

import math
import random
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from autotune.measure.block import Block, BlockRecorder, InputSets
from autotune.measure.clock import Clock
from autotune.measure.timer import SINGLE, Sample, Timer

BLOCK_MS = 5.0
FEWEST_CALLS, MOST_CALLS = 3, 30
SLOW_CALL_MS = 20.0


class Finalist(Protocol):
    """A runner with the global switches that it needs."""

    def prepare(self) -> None:
        """Set threads and every other global switch; called before each of its blocks, not timed."""
        ...

    def __call__(self, *inputs: Any) -> Any:
        """Answer one call; exactly this is timed."""
        ...


def run_rounds(
    finalists: Mapping[str, Finalist],
    input_sets: InputSets,
    timer: Timer,
    rng: random.Random,
    rounds: int,
    *,
    clock: Clock,
    frozen: Collection[str] = frozenset(),
    limit_s: float | None = None,
    announce: Callable[[str], None] | None = None,
) -> list[dict[str, Block]]:
    """Run whole rounds and return one block a finalist for each; frozen ones are left out.

    A block is ``prepare()``, one call that is not kept (three in the first block of a quick finalist), and then enough
    samples for 5 ms, from 3 to 30; one alone where a call takes 20 ms. With ``limit_s`` no round is begun that,
    going by the longest so far, would end too late; the first always runs. ``announce`` hears each name before its
    turn, so that a crash or hang has a name. Whatever a finalist raises passes through.
    """
    names = sorted(name for name in finalists if name not in frozen)
    if not names:
        raise ValueError(f"a round needs a finalist, but all of {sorted(finalists)} are frozen")
    turns = {name: _Turn(finalists[name], input_sets, timer, clock) for name in names}
    done: list[dict[str, Block]] = []
    started_ns = clock.now_ns()
    longest_ns = 0
    for number in range(rounds):
        begun_ns = clock.now_ns()
        if done and limit_s is not None and begun_ns - started_ns + longest_ns > limit_s * 1e9:
            break
        rng.shuffle(names)
        blocks: dict[str, Block] = {}
        for position, name in enumerate(names):
            if announce is not None:
                announce(name)
            blocks[name] = turns[name].block(first=number, position=position)
        done.append(blocks)
        longest_ns = max(longest_ns, clock.now_ns() - begun_ns)
    return done


class _Turn:
    """One finalist's blocks in one process; its fastest warm-up call so far decides how calls are grouped."""

    def __init__(self, finalist: Finalist, input_sets: InputSets, timer: Timer, clock: Clock) -> None:
        self._finalist, self._input_sets, self._timer, self._clock = finalist, input_sets, timer, clock
        self._fastest: Sample | None = None

    def block(self, *, first: int, position: int) -> Block:
        """Prepare, warm up and take one block; inputs rotate on from set ``first``."""
        self._finalist.prepare()
        fastest = self._warm_up(first)
        grouping = self._timer.grouping(fastest)
        recorder = BlockRecorder(self._timer, self._clock, self._input_sets, grouping, first=first + 1)
        for _ in range(_samples_for(fastest.wall_ms, grouping.grouped)):
            recorder.take(self._finalist)
        return recorder.block(position=position)

    def _warm_up(self, first: int) -> Sample:
        """Make one call, two more in the first block of a quick finalist, and return the fastest of all so far."""
        fresh = self._fastest is None
        recorder = BlockRecorder(self._timer, self._clock, self._input_sets, SINGLE, first=first)
        calls = [recorder.take(self._finalist)]
        if fresh and calls[0].wall_ms < BLOCK_MS:
            calls += [recorder.take(self._finalist) for _ in range(2)]
        self._fastest = min([*calls, *([self._fastest] if self._fastest else [])], key=lambda call: call.wall_ms)
        return self._fastest


def _samples_for(call_ms: float, grouped: int) -> int:
    if call_ms >= SLOW_CALL_MS:
        return 1
    return min(MOST_CALLS, max(FEWEST_CALLS, math.ceil(BLOCK_MS / (call_ms * grouped))))
