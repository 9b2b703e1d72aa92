"""The order in which kernel problems get builds: KernelSchedule.

The rule is that of Ansor and MetaSchedule: with w a problem's weight and t(n) its best time after n builds, it scores

``w · (GRADIENT · (t(n - Δ) - t(n)) / Δ + OPTIMISM · t(n) / n)``

microseconds that a build is expected to save in one call of the model. The first term is the saving of the last batch
of Δ builds, the second the largest saving of one more: a problem that takes much of the model's time and was searched
little comes first. Ansor: Zheng et al., OSDI 2020, section 6.
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
"""The most builds of one problem; the search over tiles promises to need no more."""

Ending = Literal["budget", "gain", "builds"]


@dataclass(slots=True, kw_only=True)
class _Progress:
    weight: float
    batches: int = 0
    builds: int = 0
    unfinished: int = 0
    best_us: float | None = None
    saved_us: float = 0.0
    finished: bool = False

    def score(self) -> float:
        """Return the microseconds that the next build is expected to save; unfinished builds count as done."""
        best = self.best_us or 0.0
        return self.weight * (GRADIENT * self.saved_us + OPTIMISM * best / (self.builds + self.unfinished + 1))


class KernelSchedule:
    """Assigns batches of builds: first one to every problem, then to the problems that promise most.

    ``weights`` are the number of times that one call of the model computes each problem. ``earlier`` has, by problem,
    the builds and the best time of earlier runs. The budget begins with the first call of :meth:`next`.
    Deterministic except for the clock; not thread-safe.
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
        """Seconds since the first batch was requested."""
        return 0.0 if self._began_s is None else self._clock() - self._began_s

    def next(self, count: int = 4) -> tuple[GemmProblem, int] | None:
        """Return the problem that gets the next batch and how many builds, at most ``count``; ``None`` at the end.

        Every batch ends with a call of :meth:`tell`; several may be unfinished. At the end :attr:`ended` has the
        reason: no time is left (``budget``), no problem promises enough (``gain``), or all have had their builds
        (``builds``).
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
        problem = max(untried or rest, key=lambda each: self._rank(each, bool(untried)))  # a tie: the first problem
        if not untried and self._score(problem) < self._least_gain * self._total_us():
            self.ended = "gain"
            return None
        progress = rest[problem]
        size = min(count, self._left(progress))
        progress.batches += 1
        progress.unfinished += size
        return problem, size

    def tell(self, problem: GemmProblem, *, requested: int, built: int, best_us: float | None) -> None:
        """Record the result of a batch: its requested and built builds, and the problem's best time now.

        Fewer built than requested means that the space has no more; failed builds count as built.
        """
        progress = self._progress[problem]
        if requested > progress.unfinished or built > requested:
            raise ValueError(f"{built} of {requested} builds were reported, and {progress.unfinished} are unfinished")
        progress.unfinished -= requested
        progress.builds += built
        progress.finished = progress.finished or built < requested
        saved_us = progress.best_us - best_us if best_us is not None and progress.best_us is not None else 0.0
        progress.saved_us = max(saved_us, 0.0) / max(built, 1)
        progress.best_us = progress.best_us if best_us is None else best_us

    def finish(self, problem: GemmProblem) -> None:
        """Assign no more builds to a problem."""
        self._progress[problem].finished = True

    def _left(self, progress: _Progress) -> int:
        return 0 if progress.finished else self._most_builds - progress.builds - progress.unfinished

    def _rank(self, problem: GemmProblem, untried: bool) -> float:
        """Return the rank of a problem: by its work before its first batch, then by its score."""
        weight = self._progress[problem].weight
        return weight * problem.flops if untried else self._score(problem)

    def _score(self, problem: GemmProblem) -> float:
        """Return the score; a problem without a time counts as an average one."""
        progress = self._progress[problem]
        if progress.best_us is None:
            known_us = [each.weight * each.best_us for each in self._progress.values() if each.best_us is not None]
            average_us = sum(known_us) / len(known_us) if known_us else 0.0
            return OPTIMISM * average_us / (progress.builds + progress.unfinished + 1)
        return progress.score()

    def _total_us(self) -> float:
        """Return the model's time in all kernels with a known time."""
        return sum(each.weight * each.best_us for each in self._progress.values() if each.best_us is not None)
