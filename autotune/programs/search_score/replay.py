"""Replays of a search, and of random search, on a recorded table; each trial costs its recorded seconds.

Trials are charged one after another: on a GPU a study builds several at once, so that it is faster than its replay. The
tuning of kernels is not charged; ``kernel_replay`` does that. As in a study, the outcomes of candidates that are built
together on a GPU are known only when the last of them has ended.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedOrder:
    """The order in which a search tried a whole table.

    ``after_defaults`` is the number of its proposals beyond the defaults, ``uniform`` the number of those that a
    sampler drew uniformly because TPE proposed nothing that was recorded and new.
    """

    order: tuple[Configuration, ...]
    after_defaults: int
    uniform: int


def searched(table: Table, seed: int, hints: Sequence[Configuration] = ()) -> SearchedOrder:
    """Search a whole table, with hints that are tried right after the defaults."""
    search = Search(table.spaces, seed, hints)
    order: list[Configuration] = []
    while batch := _batch(search, table):
        order += batch
        for configuration in batch:
            search.observe(table.trials[configuration].outcome)
    after = len(order) - len(table.defaults)
    return SearchedOrder(order=tuple(order), after_defaults=after, uniform=search.uniform_draws)


def _batch(search: Search, table: Table) -> list[Configuration]:
    """Return the candidates that a study builds together: on a CPU one, on a GPU all defaults, then one for two cores.

    See ``StudySearch.parallel``.
    """
    device = table.recording.device
    parallel = 1 if device.kind == "cpu" else max(1, device.cores // 2)
    batch: list[Configuration] = []
    while (proposal := search.propose(batch)) is not None:
        is_default = proposal in table.defaults
        if batch and not is_default and (len(batch) >= parallel or batch[0] in table.defaults):
            break
        batch.append(proposal)
        if parallel == 1:
            break
    return batch


def at_random(table: Table, seed: int, first: Sequence[Configuration] = ()) -> list[Configuration]:
    """Return a random order of the whole table, each configuration once, after the ``first``."""
    others = sorted(set(table.trials) - set(first), key=lambda configuration: configuration.canonical)
    random.Random(seed).shuffle(others)
    return [*first, *others]
