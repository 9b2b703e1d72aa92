"""The estimated times of a search's builds, and their correction by measurements: KernelPrior."""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np

from autotune.kernel import KernelSpace
from autotune.kernels.cost import CostEstimate, KernelCost
from autotune.kernels.features import features
from autotune.kernels.model import Floats, ResidualModel
from autotune.kernels.rates import DeviceRates
from autotune.records.configuration import Configuration, Scalar
from autotune.records.kernel_problem import GemmProblem

TIE = 1e-4
"""The difference of log times within which estimates are in random order."""

_SHARES = ("decomposition", "splits")
"""The launch parameters that an estimate depends on."""


class KernelPrior:
    """The builds of a space, their estimated log times, and their features.

    A build counts with its launch of the best estimate, because a kernel that can split k may be faster than its
    plainest launch. Without ``rates`` all builds have the same estimate. Thousands of estimates take most of a second:
    they are computed on first use.
    """

    def __init__(self, space: KernelSpace, problem: GemmProblem, rates: DeviceRates | None, seed: int) -> None:
        self.builds = tuple(space.builds)
        self._space, self._problem, self._rates, self._seed = space, problem, rates, seed
        self._number = {build: number for number, build in enumerate(self.builds)}
        self._names = {build.backend: frozenset(dict(build.values)) for build in self.builds}
        self._cost = KernelCost(rates, problem) if rates else None
        self._splittings: dict[tuple[str, Scalar | None, Scalar | None], tuple[dict[str, Scalar], ...]] = {}

    @cached_property
    def _plain(self) -> list[CostEstimate | None]:
        return [self._estimate(build) for build in self.builds]

    @cached_property
    def _log_us(self) -> Floats:
        draw = random.Random(self._seed)
        logs = [math.log(estimate.us) for estimate in self._plain if estimate]
        middle = float(np.median(logs)) if logs else 0.0
        return np.array(
            [(math.log(estimate.us) if estimate else middle) + draw.uniform(0, TIE) for estimate in self._plain]
        )

    @cached_property
    def saved(self) -> Floats:
        """The log of the estimated time of each build's best launch relative to its plainest one."""
        return np.array([self._saved_by_launch(*pair) for pair in zip(self.builds, self._plain, strict=True)])

    def saved_of(self, build: Configuration) -> float:
        """Return :attr:`saved` of one build alone."""
        return self._saved_by_launch(build, self._estimate(build))

    @cached_property
    def _rows(self) -> list[dict[str, float]]:
        return [features(self._problem, *pair) for pair in zip(self.builds, self._plain, strict=True)]

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(sorted({name for row in self._rows for name in row}))}

    @cached_property
    def _places(self) -> Floats:
        return self._matrix(self._rows)

    def __contains__(self, build: Configuration) -> bool:
        return build in self._number

    def build_of(self, candidate: Configuration) -> Configuration | None:
        """Return the build of a candidate, ``None`` if it is no build of this space."""
        names = self._names.get(candidate.backend, frozenset())
        build = Configuration.of(candidate.backend, {n: value for n, value in candidate.values if n in names})
        return build if build in self._number else None

    def number(self, build: Configuration) -> int:
        """Return the index of a build among the builds."""
        return self._number[build]

    def us(self, candidate: Configuration) -> float | None:
        """Return the estimated time of a candidate, ``None`` without an estimate."""
        estimate = self._estimate(candidate)
        return estimate.us if estimate else None

    def corrected(
        self, plain_us: Mapping[Configuration, float], elsewhere: Iterable[tuple[GemmProblem, Configuration, float]]
    ) -> tuple[Floats, Floats]:
        """Predict the log time of every build at its best launch: mean and standard deviation.

        ``plain_us`` are the times of the plainest launches of this space's builds; ``elsewhere`` are candidates that
        were timed on other problems, which count only if they have an estimate.
        """
        numbers = [self._number[build] for build in plain_us]
        residuals = [math.log(us) - self._log_us[number] for us, number in zip(plain_us.values(), numbers, strict=True)]
        others = list(self._residuals_of(elsewhere))
        if others:
            places = np.vstack([self._places[numbers], self._matrix([row for row, _ in others])])
        else:
            places = self._places[numbers]
        model = ResidualModel(places, [*residuals, *(residual for _, residual in others)])
        mean, deviation = model.predict(self._places)
        return self._log_us + self.saved + mean, deviation

    def _residuals_of(
        self, elsewhere: Iterable[tuple[GemmProblem, Configuration, float]]
    ) -> Iterator[tuple[dict[str, float], float]]:
        for problem, candidate, us in elsewhere:
            estimate = KernelCost(self._rates, problem).estimate(candidate) if self._rates else None
            if estimate is not None:
                yield features(problem, candidate, estimate), math.log(us / estimate.us)

    def _estimate(self, candidate: Configuration) -> CostEstimate | None:
        return self._cost.estimate(candidate) if self._cost else None

    def _matrix(self, rows: Sequence[Mapping[str, float]]) -> Floats:
        """Return one row of features each; a feature that no build of this space has is left out."""
        places = np.zeros((len(rows), len(self._columns)))
        for number, row in enumerate(rows):
            for name, value in row.items():
                if name in self._columns:
                    places[number, self._columns[name]] = value
        return places

    def _saved_by_launch(self, build: Configuration, plain: CostEstimate | None) -> float:
        """Return the log of the best launch's estimated time relative to the plainest one's: 0 or less."""
        if plain is None or self._cost is None:
            return 0.0
        values = dict(build.values)
        times_of_splits = (
            self._cost.us(build.backend, {**values, **splitting}) for splitting in self._splittings_of(build, values)
        )
        times = [us for us in times_of_splits if us is not None]
        return min(math.log(min(times, default=plain.us) / plain.us), 0.0)

    def _splittings_of(self, build: Configuration, values: Mapping[str, Scalar]) -> tuple[dict[str, Scalar], ...]:
        """Return each way to split k.

        Builds with the same kind, scheduler and depth of a tile have the same ways, so one of them decides.
        """
        key = build.backend, values.get("scheduler"), values.get("tile_k")
        if key not in self._splittings:
            splittings = [
                tuple((n, v) for n, v in launch.values if n in _SHARES) for launch in self._space.launches(build)
            ]
            self._splittings[key] = tuple(dict(splitting) for splitting in dict.fromkeys(splittings))
        return self._splittings[key]
