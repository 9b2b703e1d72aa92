"""The score of a search on a recorded table, and the time to a good configuration.

The score is that of Willemsen et al., "A methodology for comparing optimization algorithms for auto-tuning" (2024), on
the time axis: ``(random's expected best - the search's) / (random's - the optimum)``, 0 for random search and 1 for the
optimum at once, below 0 if the search is worse. It is averaged over equidistant times up to the one at which random
search has come 95% of the way to the optimum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from autotune.programs.search_score.replay import Trajectory

TIMES = 50
"""The number of times at which trajectories are compared."""

WAY = 0.95
"""The part of the way to the optimum at which the comparison ends."""

NEAR = 0.03
"""A configuration is good if it is at most this share slower than the best recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSearch:
    """Trajectories of random search, with the latency ``before`` the first result, and the optimum."""

    trajectories: tuple[Trajectory, ...]
    before: float
    optimum: float

    def expected(self, second: float) -> float:
        """Return the best latency that random search is expected to have at a time."""
        return fmean(trajectory.at(second, self.before) for trajectory in self.trajectories)

    def times_s(self) -> list[float]:
        """Return the times of the comparison; none if random search begins at the optimum."""
        goal = self.before - WAY * (self.before - self.optimum)
        moments = sorted({second for trajectory in self.trajectories for second in trajectory.seconds})
        low, high = 0, len(moments) - 1
        if self.before <= self.optimum or not moments or self.expected(moments[-1]) > goal:
            return []
        while low < high:  # the expected latency only falls
            middle = (low + high) // 2
            low, high = (low, middle) if self.expected(moments[middle]) <= goal else (middle + 1, high)
        return [moments[low] * (step + 1) / TIMES for step in range(TIMES)]

    def score(self, trajectory: Trajectory) -> float | None:
        """Return the score of a search; ``None`` if random search is at the optimum from the beginning."""
        shares = []
        for second in self.times_s():
            expected = self.expected(second)
            if expected > self.optimum:
                reached = trajectory.at(second, self.before)
                shares.append((expected - reached) / (expected - self.optimum))
        return fmean(shares) if shares else None


def near_s(trajectories: Sequence[Trajectory], optimum: float) -> list[float]:
    """Return for each search the time until it had a good configuration."""
    return [trajectory.reached_s(optimum * (1 + NEAR)) for trajectory in trajectories]


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean of positive values; a time of 0 s counts as 1 s, so that a ratio stays finite."""
    return math.exp(fmean(math.log(max(1.0, value)) for value in values))
