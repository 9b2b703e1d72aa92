"""The best figure of a study's screening over the seconds of its search: SearchCurve."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from autotune.records.plain import values_in


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A trial that was better than all before it: when it ended, its figure, and its backend."""

    seconds: float
    best: float
    backend: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"seconds of search are a number that is not negative, found {self.seconds!r}")
        if not 0 < self.best < math.inf:
            raise ValueError(f"the figure of a trial is a positive number, found {self.best!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchCurve:
    """The best figure so far, by the seconds of active search; all figures are of screening.

    ``searched_s`` is the whole search, builds and the tuning of kernels included, waiting for the device and the time
    between two runs excluded. ``points`` are the improvements in their order. ``baseline`` is the fastest screening of
    a baseline. Figures are in ``unit``, the objective's; less is better. Each is one measurement, and the best of many
    is too low by chance, so they do not compare with those of the finals.
    """

    unit: str
    searched_s: float
    baseline: float
    points: tuple[CurvePoint, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a curve needs at least one point")
        for point, following in zip(self.points, self.points[1:], strict=False):
            if following.seconds <= point.seconds or following.best >= point.best:
                raise ValueError(f"a curve falls with time, found {following} after {point}")
        if not self.points[-1].seconds <= self.searched_s < math.inf:
            raise ValueError(f"a curve ends within its search of {self.searched_s!r} s, found {self.points[-1]}")
        if self.best > self.baseline:
            raise ValueError(f"the best is a baseline or better, found {self.best!r} for a baseline {self.baseline!r}")

    @classmethod
    def of(cls, ended: Iterable[CurvePoint], *, baseline: float, searched_s: float, unit: str) -> "SearchCurve":
        """Return the curve of a study whose trials ended at these moments, in any order; ``ValueError`` if none did.

        ``searched_s`` may be less than the moment of the last trial, such as one that was timed without budget.
        """
        points: list[CurvePoint] = []
        for point in sorted(ended, key=lambda point: (point.seconds, point.best, point.backend)):
            if not points or point.best < points[-1].best:
                points = [earlier for earlier in points if earlier.seconds < point.seconds]
                points.append(point)
        last_s = points[-1].seconds if points else 0.0
        return cls(unit=unit, searched_s=max(searched_s, last_s), baseline=baseline, points=tuple(points))

    @property
    def best(self) -> float:
        """The best figure of the whole search."""
        return self.points[-1].best

    def best_at(self, seconds: float) -> float | None:
        """Return the best figure after this time of search; ``None`` if no trial had ended."""
        before = [point.best for point in self.points if point.seconds <= seconds]
        return before[-1] if before else None

    def gain_at(self, seconds: float) -> float:
        """Return the share of the whole gain over the baseline that was reached by then, in [0, 1].

        It is 1 if the search has no gain.
        """
        gain = self.baseline - self.best
        if gain <= 0:
            return 1.0
        best = self.best_at(seconds)
        return 0.0 if best is None else min(1.0, max(0.0, (self.baseline - best) / gain))

    def reached_s(self, share: float) -> float | None:
        """Return the seconds after which this share of the gain was reached; ``None`` if the search has no gain."""
        if self.best >= self.baseline:
            return None
        return next(point.seconds for point in self.points if self.gain_at(point.seconds) >= min(share, 1.0))

    def lowered_in_last(self, seconds: float) -> float | None:
        """Return by which share the last seconds lowered the best figure, in [0, 1).

        ``None`` if no trial had ended before them.
        """
        before = self.best_at(self.searched_s - seconds)
        return None if before is None else 1 - self.best / before

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "SearchCurve":
        """Read what :meth:`as_dict` wrote."""
        values = values_in(data)
        points = tuple(
            CurvePoint(seconds=point["seconds"], best=point["best"], backend=point["backend"])
            for point in values["points"]
        )
        return cls(unit=values["unit"], searched_s=values["searched_s"], baseline=values["baseline"], points=points)
