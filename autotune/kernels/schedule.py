"""Which kernel problem gets the next builds.

The rule is that of Ansor and MetaSchedule: with w a problem's weight and t(n) its best time after n builds, it scores

``w · (GRADIENT · (t(n - Δ) - t(n)) / Δ + OPTIMISM · t(n) / n)``

microseconds that a build is expected to save in one call of the model. The first term is what the last batch of Δ
builds brought, the second what one more could bring at best: a problem that takes much of the model's time and was
searched little comes first. Ansor: Zheng et al., OSDI 2020, section 6.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from autotune.records.kernel_problem import GemmProblem

GRADIENT, OPTIMISM = 0.2, 0.8

LEAST_GAIN = 0.002
"""Share of the model's time in kernels that a build must be expected to save."""

MOST_BUILDS = 16
"""Builds of one problem; the search over tiles promises to be done with them."""

Ending = Literal["budget", "gain", "builds"]


@dataclass(slots=True, kw_only=True)
class _Progress:
    weight: float
    batches: int = 0
    builds: int = 0
    under_way: int = 0
    best_us: float | None = None
    saved_us: float = 0.0
    finished: bool = False

    def score(self) -> float:
        """Microseconds of the model that the next build is expected to save; what is under way counts as done."""
        best = self.best_us or 0.0
        return self.weight * (GRADIENT * self.saved_us + OPTIMISM * best / (self.builds + self.under_way + 1))


class KernelSchedule:
    """Hands out batches of builds, first one to every problem, then where they promise most.

    ``weights`` say how often one call of the model computes each problem. ``earlier`` tells the builds and the best
    time that are known from before, by problem. The budget begins with the first call of :meth:`next`.
    Deterministic but for the clock; not thread-safe.
    """

    def __init__(
        self,
        weights: Mapping[GemmProblem, float],
        *,
        budget_s: float,
        earlier: Mapping[GemmProblem, tuple[int, float | None]] | None = None,
        least_gain: float = LEAST_GAIN,
        most_builds: int = MOST_BUILDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for problem, weight in weights.items():
            if not weight > 0:
                raise ValueError(f"the weight of {problem.canonical} is a positive number of calls, found {weight!r}")
        if most_builds < 1:
            raise ValueError(f"a problem needs at least one build, found {most_builds}")
        self._progress = {problem: _Progress(weight=weight) for problem, weight in weights.items()}
        for problem, (builds, best_us) in (earlier or {}).items():
            progress = self._progress[problem]
            progress.builds, progress.best_us, progress.batches = builds, best_us, int(builds > 0)
        self._budget_s, self._least_gain, self._most_builds, self._clock = budget_s, least_gain, most_builds, clock
        self._began_s: float | None = None
        self.ended: Ending | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first batch was asked for."""
        return 0.0 if self._began_s is None else self._clock() - self._began_s

    def next(self, count: int = 4) -> tuple[GemmProblem, int] | None:
        """Return the problem that gets the next batch and how many builds, at most ``count``; ``None`` at the end.

        Every batch is answered by :meth:`tell`; several may be under way. At the end :attr:`ended` says why: no time
        is left (``budget``), nothing promises enough (``gain``), or every problem has had its builds (``builds``).
        """
        if self._began_s is None:
            self._began_s = self._clock()
        if self.elapsed_s >= self._budget_s:
            self.ended = "budget"
            return None
        rest = {problem: each for problem, each in self._progress.items() if self._left(each) > 0}
        if not rest:
            self.ended = "builds"
            return None
        untried = [problem for problem, each in rest.items() if not each.batches]
        problem = max(untried or rest, key=lambda each: self._rank(each, bool(untried)))  # a tie: the one named first
        if not untried and self._score(problem) < self._least_gain * self._total_us():
            self.ended = "gain"
            return None
        progress = rest[problem]
        size = min(count, self._left(progress))
        progress.batches += 1
        progress.under_way += size
        return problem, size

    def tell(self, problem: GemmProblem, *, asked: int, built: int, best_us: float | None) -> None:
        """Take in what became of a batch: how many builds were handed out and made, and the problem's best time now.

        Fewer made than handed out says that the space has no more; failed builds count as made.
        """
        progress = self._progress[problem]
        if asked > progress.under_way or built > asked:
            raise ValueError(f"told {built} of {asked} builds, with {progress.under_way} under way")
        progress.under_way -= asked
        progress.builds += built
        progress.finished = progress.finished or built < asked
        saved_us = progress.best_us - best_us if best_us is not None and progress.best_us is not None else 0.0
        progress.saved_us = max(saved_us, 0.0) / max(built, 1)
        progress.best_us = progress.best_us if best_us is None else best_us

    def finish(self, problem: GemmProblem) -> None:
        """Hand out no more builds of a problem."""
        self._progress[problem].finished = True

    def _left(self, progress: _Progress) -> int:
        return 0 if progress.finished else self._most_builds - progress.builds - progress.under_way

    def _rank(self, problem: GemmProblem, untried: bool) -> float:
        """Problems without any batch go by their work, the others by their score."""
        weight = self._progress[problem].weight
        return weight * problem.flops if untried else self._score(problem)

    def _score(self, problem: GemmProblem) -> float:
        """The rule; a problem of which nothing is known yet counts as an average one."""
        progress = self._progress[problem]
        if progress.best_us is None:
            known = [each.weight * each.best_us for each in self._progress.values() if each.best_us is not None]
            average_us = sum(known) / len(known) if known else 0.0
            return OPTIMISM * average_us / (progress.builds + progress.under_way + 1)
        return progress.score()

    def _total_us(self) -> float:
        """The model's time in the kernels that are known."""
        return sum(each.weight * each.best_us for each in self._progress.values() if each.best_us is not None)
