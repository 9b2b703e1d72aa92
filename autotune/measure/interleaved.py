"""Callables timed in turns, so that a change of the machine's speed meets all of them: interleaved."""

from collections.abc import Callable, Mapping

from autotune.measure.timer import Timer

WARM_UP_CALLS = 3


def interleaved(
    calls: Mapping[str, Callable[[], object]], timer: Timer, *, rounds: int, samples: int = 3
) -> dict[str, list[list[float]]]:
    """Time each of the calls in every round, by turns first and last; returns a block of milliseconds a round.

    A call's time is what its caller waits for; short calls are grouped, and the group is ``grouping`` of the timer.
    """
    names = list(calls)
    grouped: dict[str, int] = {}
    for name in names:
        for _ in range(WARM_UP_CALLS):
            typical_ms = timer.time_call(calls[name], ()).wall_ms
        grouped[name] = timer.grouping(typical_ms)
    blocks: dict[str, list[list[float]]] = {name: [] for name in names}
    for at in range(rounds):
        for name in names if at % 2 == 0 else reversed(names):
            taken_ms = [timer.time_call(calls[name], (), grouped[name]).wall_ms for _ in range(samples)]
            blocks[name].append(taken_ms)
    return blocks
