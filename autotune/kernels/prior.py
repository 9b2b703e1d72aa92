"""What a search over tiles believes before it measures, and how measurements correct it."""

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
"""Log time within which estimates are in random order."""

_SHARES = ("decomposition", "splits")
"""What an estimate sees of a launch."""


class KernelPrior:
    """The builds of a space, their estimated log times, and their places among one another.

    A build counts with the launch that its estimate likes best, because a kernel that can split k promises more than it
    shows when it is launched plainly. Without ``rates`` all builds are estimated alike. Thousands of estimates take
    most of a second: they wait until the first of them is asked for.
    """

    def __init__(self, space: KernelSpace, problem: GemmProblem, rates: DeviceRates | None, seed: int) -> None:
        self.builds = tuple(space.builds)
        self._space, self._problem, self._rates, self._seed = space, problem, rates, seed
        self._number = {build: number for number, build in enumerate(self.builds)}
        self._names = {build.backend: frozenset(dict(build.values)) for build in self.builds}
        self._cost = KernelCost(rates, problem) if rates else None
        self._ways: dict[tuple[str, Scalar | None, Scalar | None], tuple[dict[str, Scalar], ...]] = {}

    @cached_property
    def _plain(self) -> list[CostEstimate | None]:
        return [self._estimate(build) for build in self.builds]

    @cached_property
    def _log_us(self) -> Floats:
        draw = random.Random(self._seed)
        known = [math.log(each.us) for each in self._plain if each]
        middle = float(np.median(known)) if known else 0.0
        return np.array([(math.log(each.us) if each else middle) + draw.uniform(0, TIE) for each in self._plain])

    @cached_property
    def saved(self) -> Floats:
        """Log of the share of its plain time that the best launch of each build is estimated to leave."""
        return np.array([self._saved_by_launch(*pair) for pair in zip(self.builds, self._plain, strict=True)])

    def saved_of(self, build: Configuration) -> float:
        """:attr:`saved` of one build alone."""
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
        """Where a build stands among the builds."""
        return self._number[build]

    def us(self, candidate: Configuration) -> float | None:
        """The estimated time of a candidate, where there is an estimate."""
        estimate = self._estimate(candidate)
        return estimate.us if estimate else None

    def corrected(
        self, plain_us: Mapping[Configuration, float], elsewhere: Iterable[tuple[GemmProblem, Configuration, float]]
    ) -> tuple[Floats, Floats]:
        """Predict the log time of every build at its best launch: mean and standard deviation.

        ``plain_us`` are the times of builds of this space, plainly launched; ``elsewhere`` candidates timed on other
        problems, which count only where there is an estimate of theirs.
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
        """One row each; a feature that no build of this space has separates nothing here and is left out."""
        places = np.zeros((len(rows), len(self._columns)))
        for number, row in enumerate(rows):
            for name, value in row.items():
                if name in self._columns:
                    places[number, self._columns[name]] = value
        return places

    def _saved_by_launch(self, build: Configuration, plain: CostEstimate | None) -> float:
        """Log of the share of the plain time that the best launch leaves, as estimated: 0 or less."""
        if plain is None or self._cost is None:
            return 0.0
        values = dict(build.values)
        ways = (self._cost.us(build.backend, {**values, **way}) for way in self._ways_of(build, values))
        times = [us for us in ways if us is not None]
        return min(math.log(min(times, default=plain.us) / plain.us), 0.0)

    def _ways_of(self, build: Configuration, values: Mapping[str, Scalar]) -> tuple[dict[str, Scalar], ...]:
        """Each way to share k out.

        Builds alike in kind, scheduler and depth of a tile are offered the same ways, so one of them is asked.
        """
        alike = build.backend, values.get("scheduler"), values.get("tile_k")
        if alike not in self._ways:
            ways = [tuple((n, v) for n, v in each.values if n in _SHARES) for each in self._space.launches(build)]
            self._ways[alike] = tuple(dict(way) for way in dict.fromkeys(ways))
        return self._ways[alike]
