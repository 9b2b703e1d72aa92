"""Replays of a search, and of random search, on a recorded table; each trial costs its recorded seconds.

Trials cost one after another: on a GPU a study builds several at once, so that it is faster than its replay. The tuning
of kernels is not charged; ``kernel_replay`` does that.
"""

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autotune.programs.search_score.table import Table
from autotune.records.configuration import Configuration
from autotune.search.search import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The best latency so far of one search: ``best`` holds from the second of the same place in ``seconds`` on."""

    seconds: tuple[float, ...]
    best: tuple[float, ...]

    def at(self, second: float, before: float) -> float:
        """Return the best latency at a time, ``before`` if no trial had succeeded."""
        place = bisect_right(self.seconds, second)
        return self.best[place - 1] if place else before

    def reached_s(self, latency: float) -> float:
        """Return the time at which the best is no more than a latency; infinite if it never is."""
        return next((second for second, best in zip(self.seconds, self.best, strict=True) if best <= latency), math.inf)

    def since(self, second: float, before: float) -> "Trajectory":
        """Return the rest of the search from a time on, which begins at 0 s with the best of that time."""
        later = [(end - second, best) for end, best in zip(self.seconds, self.best, strict=True) if end > second]
        start = (0.0, self.at(second, before))
        seconds, best = zip(start, *later, strict=True)
        return Trajectory(seconds=seconds, best=best)


def charged(table: Table, order: Iterable[Configuration]) -> Trajectory:
    """Return the trajectory of the trials in an order."""
    spent_s, best = 0.0, math.inf
    seconds, bests = [], []
    for configuration in order:
        trial = table.trials[configuration]
        spent_s += trial.cost_s
        score = trial.outcome.score
        if trial.outcome.state == "complete" and score is not None and score < best:
            best = score
            seconds.append(spent_s)
            bests.append(best)
    return Trajectory(seconds=tuple(seconds), best=tuple(bests))


def searched(table: Table, seed: int, hints: Sequence[Configuration] = ()) -> list[Configuration]:
    """Return the order in which a search tries the whole table; ``hints`` come before those of the spaces."""
    search = Search(table.spaces, seed, [*hints, *table.hints])
    order: list[Configuration] = []
    while (proposal := search.propose()) is not None:
        order.append(proposal)
        search.observe(table.trials[proposal].outcome)
    return order


def at_random(table: Table, seed: int, first: Sequence[Configuration] = ()) -> list[Configuration]:
    """Return a random order of the whole table, each configuration once, after the ``first``."""
    others = sorted(set(table.trials) - set(first), key=lambda configuration: configuration.canonical)
    random.Random(seed).shuffle(others)
    return [*first, *others]
