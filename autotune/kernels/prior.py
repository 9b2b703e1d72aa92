"""The estimated times of a search's builds, and their correction by measurements: KernelPrior."""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np

from autotune.kernel import KernelSpace
from autotune.kernels.cost import CostTable, KernelCost
from autotune.kernels.features import features_of_parts, features_of_problem, features_of_tile
from autotune.kernels.model import Prediction, ResidualModel
from autotune.kernels.rates import DeviceRates
from autotune.kernels.tile_table import Floats, Tiles, Wholes, spreads
from autotune.records.configuration import Configuration, Scalar
from autotune.records.kernel_problem import GemmProblem

TIE = 1e-4
"""The difference of log times within which estimates are in random order."""

ESTIMATED = 16384
"""Trials of other problems whose features are kept: each problem of a model is corrected by the same ones."""


class KernelPrior:
    """The builds of a space, their estimated log times, and their features.

    A build counts with its launch of the best estimate, because a kernel that can split k may be faster than its
    plainest launch. Without ``rates`` all builds have the same estimate. Thousands of estimates take some hundredths of
    a second: they are computed on first use.
    """

    def __init__(self, space: KernelSpace, problem: GemmProblem, rates: DeviceRates | None, seed: int) -> None:
        self.builds = tuple(space.builds)
        self._space, self._problem, self._rates, self._seed = space, problem, rates, seed
        self._number = {build: number for number, build in enumerate(self.builds)}
        self._names = {build.backend: frozenset(dict(build.values)) for build in self.builds}
        self._cost = KernelCost(rates, problem) if rates else None
        self._splittings: dict[tuple[Scalar | None, ...], tuple[tuple[int, bool], ...]] = {}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the builds."""
        return tuple(dict.fromkeys(build.backend for build in self.builds))

    @cached_property
    def kind_numbers(self) -> Wholes:
        """The index of each build's kind in :attr:`kinds`."""
        numbers = {kind: number for number, kind in enumerate(self.kinds)}
        return np.array([numbers[build.backend] for build in self.builds], dtype=np.int64)

    @cached_property
    def _tiles(self) -> Tiles:
        assert self._cost is not None  # without rates nothing is estimated
        return self._cost.tiles(self.builds)

    @cached_property
    def _plain(self) -> CostTable | None:
        return self._cost.table(self._tiles) if self._cost and self.builds else None

    @cached_property
    def _log_us(self) -> Floats:
        draw = random.Random(self._seed)
        ties = np.array([draw.uniform(0, TIE) for _ in self.builds])
        logs = np.zeros(len(self.builds)) if self._plain is None else np.log(self._plain.us)
        known = ~np.isnan(logs)
        filled: Floats = np.where(known, logs, np.median(logs[known]) if known.any() else 0.0) + ties
        return filled

    @cached_property
    def saved(self) -> Floats:
        """The log of the estimated time of each build's best launch relative to its plainest one: 0 or less."""
        if self._plain is None or self._cost is None:
            return np.zeros(len(self.builds))
        best_us = self._plain.us.copy()
        by_splitting: dict[tuple[int, bool], list[int]] = {}
        for number, build in enumerate(self.builds):
            for splitting in self._splittings_of(build):
                by_splitting.setdefault(splitting, []).append(number)
        for (splits, spread), numbers in by_splitting.items():
            chosen = np.array(numbers)
            split_us = self._cost.table(self._tiles.rows(chosen).split(splits, spread=spread)).us
            best_us[chosen] = np.fmin(best_us[chosen], split_us)
        return np.where(np.isnan(best_us), 0.0, np.minimum(np.log(best_us / self._plain.us), 0.0))

    def saved_of(self, build: Configuration) -> float:
        """Return :attr:`saved` of one build."""
        return float(self.saved[self._number[build]])

    @cached_property
    def _columns(self) -> dict[str, int]:
        names = {name for row in self._rows for name in row}
        return {name: column for column, name in enumerate(sorted(names))}

    @cached_property
    def _rows(self) -> list[Mapping[str, float]]:
        shared = features_of_problem(self._problem)
        parts = {} if self._plain is None else self._plain.parts
        names, columns = zip(*features_of_parts(parts).items(), strict=True) if parts else ((), ())
        shares = zip(*(column.tolist() for column in columns), strict=True) if columns else ((),) * len(self.builds)
        return [
            {**shared, **features_of_tile(build), **dict(zip(names, row, strict=True))}
            for build, row in zip(self.builds, shares, strict=True)
        ]

    @cached_property
    def _places(self) -> Floats:
        return self._matrix(self._rows)

    def __contains__(self, build: Configuration) -> bool:
        return build in self._number

    def build_of(self, candidate: Configuration) -> Configuration | None:
        """Return the build of a candidate, ``None`` if it is no build of this space."""
        if candidate in self._number:
            return candidate
        names = self._names.get(candidate.backend, frozenset())
        build = Configuration.of(candidate.backend, {n: value for n, value in candidate.values if n in names})
        return build if build in self._number else None

    def number(self, build: Configuration) -> int:
        """Return the index of a build among the builds."""
        return self._number[build]

    def us(self, candidate: Configuration) -> float | None:
        """Return the estimated time of a candidate, ``None`` without an estimate."""
        estimate = self._cost.estimate(candidate) if self._cost else None
        return estimate.us if estimate else None

    def corrected(
        self, plain_us: Mapping[Configuration, float], elsewhere: Iterable[tuple[GemmProblem, Configuration, float]]
    ) -> Prediction:
        """Predict the log time of every build at its best launch.

        ``plain_us`` are the times of the plainest launches of this space's builds; ``elsewhere`` are candidates that
        were timed on other problems, which count only if they have an estimate.
        """
        numbers = [self._number[build] for build in plain_us]
        residuals = [math.log(us) - self._log_us[number] for us, number in zip(plain_us.values(), numbers, strict=True)]
        others = [] if self._rates is None else [
            (row, math.log(us / estimated_us))
            for problem, candidate, us in elsewhere
            for row, estimated_us in (_estimated(self._rates, problem, candidate),) if estimated_us is not None
        ]  # fmt: skip
        places = self._places[numbers]
        if others:
            places = np.vstack([places, self._matrix([row for row, _ in others])])
        model = ResidualModel(places, [*residuals, *(residual for _, residual in others)])
        return model.predict(self._places, offset=self._log_us + self.saved)

    def _matrix(self, rows: Sequence[Mapping[str, float]]) -> Floats:
        """Return one row of features each; a feature that no build of this space has is left out."""
        places = np.zeros((len(rows), len(self._columns)))
        columns = self._columns
        for number, row in enumerate(rows):
            for name, value in row.items():
                if name in columns:
                    places[number, columns[name]] = value
        return places

    def _splittings_of(self, build: Configuration) -> tuple[tuple[int, bool], ...]:
        """Return each way to split k: the splits, and true if the scheduler spreads what is left.

        Builds with the same kind, scheduler, depth of a tile and size of a cluster have the same ways, so one of them
        decides.
        """
        given = dict(build.values).get
        cluster = int(given("cluster_m", 1)) * int(given("cluster_n", 1))
        key = build.backend, given("scheduler"), given("tile_k"), cluster
        if key not in self._splittings:
            self._splittings[key] = tuple(dict.fromkeys(map(_splitting, self._space.launches(build))))
        return self._splittings[key]


def _splitting(launch: Configuration) -> tuple[int, bool]:
    given = dict(launch.values).get
    splits = max(1, int(given("splits", given("split_k", 1))))
    return splits, spreads(splits, str(given("decomposition", "heuristic")))


@lru_cache(ESTIMATED)
def _estimated(
    rates: DeviceRates, problem: GemmProblem, candidate: Configuration
) -> tuple[Mapping[str, float], float | None]:
    """Return the features and the estimated time of a candidate of any problem."""
    estimate = KernelCost(rates, problem).estimate(candidate)
    if estimate is None:
        return {}, None
    parts = features_of_parts(estimate.parts)
    return {**features_of_problem(problem), **features_of_tile(candidate), **parts}, estimate.us
