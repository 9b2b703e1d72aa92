"""The score of a search on a recorded table: RandomSearch.

It is that of Willemsen et al., "A methodology for comparing optimization algorithms for auto-tuning" (2024), on the
time axis: ``(random's expected best - the search's) / (random's - the optimum)``, 0 for random search, 1 for the
optimum at once, and below 0 if the search is worse. It is averaged over equidistant times up to the one at which random
search has come 95% of the way to the optimum.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from autotune.programs.search_score.replay import Trajectory

TIMES = 50
"""The number of times at which trajectories are compared."""

WAY = 0.95
"""The part of the way to the optimum at which the comparison ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSearch:
    """The latency that random search is expected to have at some times; ``before`` is the one before its first result.

    There are no times if random search begins at the optimum.
    """

    before: float
    optimum: float
    times_s: tuple[float, ...]
    expected: tuple[float, ...]

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory], *, before: float, optimum: float) -> "RandomSearch":
        """Average the trajectories of many random searches."""

        def expected(second: float) -> float:
            return fmean(trajectory.at(second, before) for trajectory in trajectories)

        end_s = _reached_s(trajectories, expected, before - WAY * (before - optimum)) if before > optimum else None
        times_s = () if end_s is None else tuple(end_s * (step + 1) / TIMES for step in range(TIMES))
        return cls(before=before, optimum=optimum, times_s=times_s, expected=tuple(map(expected, times_s)))

    def score(self, trajectory: Trajectory) -> float | None:
        """Return the score of a search; ``None`` if random search begins at the optimum."""
        shares = [
            (expected - trajectory.at(second, self.before)) / (expected - self.optimum)
            for second, expected in zip(self.times_s, self.expected, strict=True)
            if expected > self.optimum
        ]
        return fmean(shares) if shares else None


def _reached_s(trajectories: Sequence[Trajectory], expected: Callable[[float], float], goal: float) -> float | None:
    """Return the first time at which random search is expected to have a latency; ``None`` if it never has."""
    moments = sorted({second for trajectory in trajectories for second in trajectory.seconds})
    if not moments or expected(moments[-1]) > goal:
        return None
    return moments[bisect.bisect_left(moments, True, key=lambda moment: expected(moment) <= goal)]
