"""The search over one kernel problem's tiles: first builds, then launches of the best builds: KernelSearch.

A build takes most of a minute and a launch no time, so :meth:`KernelSearch.ask` proposes builds, each timed at its
plainest launch, and :meth:`KernelSearch.ask_launches` then varies the launch of the few best. Builds are
chosen by expected improvement: the estimate of :mod:`~autotune.kernels.cost`, corrected by measurements
(:mod:`~autotune.kernels.model`), times the odds that a build of its kind works at all.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from autotune.kernel import KernelSpace
from autotune.kernels.model import Prediction, expected_gain
from autotune.kernels.prior import KernelPrior
from autotune.kernels.rates import DeviceRates
from autotune.kernels.tile_table import Floats, Truths
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial

HINTS = 4
"""The most builds from hints: with more, too few of a search's builds would follow the rule."""

FINALISTS, WITHIN = 4, 0.15
"""The most builds whose launches are varied, and how much slower than the best they may be expected to be."""

SUGGESTED = 2
"""Builds from advisers: an H200 has timed 13 of nvMatmulHeuristics' tiles, 6 to 65% slower than the best."""

HOPELESS = 1.5
"""A launch is not tried if its estimate is this multiple of its build's best launch so far."""

NEIGHBOURS = 200
"""The most trials of other problems in the model, of the nearest shapes: its work grows with their cube."""

_TOGETHER = frozenset({"decomposition", "splits"})
"""Launch parameters that are meaningful only together, and so count as one."""


class KernelSearch:
    """Proposes builds and launches of one problem, none twice; a function of the seed and of the recorded trials.

    ``earlier`` are trials of the same device class and toolchain: those of this problem count as its own, those of
    others only correct the estimates. ``hints`` are builds or candidates that were best elsewhere, best first; those
    that are not in the space are skipped, and the suggestions of the space's advisers follow. ``rates`` are the
    device's; without them all builds have the same estimate, and the search begins with the space's own rule
    (:meth:`~autotune.kernel.KernelSpace.first`). ``first`` are the builds that it begins with. Not thread-safe.
    """

    def __init__(
        self,
        space: KernelSpace,
        problem: GemmProblem,
        *,
        earlier: Sequence[KernelTrial] = (),
        hints: Sequence[Configuration] = (),
        rates: DeviceRates | None = None,
        seed: int = 0,
    ) -> None:
        self._space, self._problem = space, problem
        self._prior = KernelPrior(space, problem, rates, seed)
        self._plainest: dict[Configuration, Configuration] = {}
        self._trials: dict[Configuration, KernelTrial] = {}
        self._elsewhere: dict[tuple[GemmProblem, Configuration], KernelTrial] = {}
        self._proposed: set[Configuration] = set()
        self._tried: set[Configuration] = set()
        self._prediction: Prediction | None = None
        self._outdated = False
        first = space.first(HINTS) if self._prior.builds and rates is None else ()
        hinted = dict.fromkeys(build for each in hints if (build := self.build_of(each)) is not None)
        ruled = dict.fromkeys(build for each in first if (build := self.build_of(each)) is not None)
        advised = [build for build in space.suggested(SUGGESTED) if build in self._prior]
        self.first = tuple(dict.fromkeys((*tuple(hinted)[:HINTS], *advised, *ruled)))
        self.tell(earlier)

    @property
    def best(self) -> KernelTrial | None:
        """The fastest trial of this problem, also of a candidate that needs no build."""
        complete = (trial for trial in self._trials.values() if trial.state == "complete")
        return min(complete, key=_median_us, default=None)

    @property
    def builds(self) -> tuple[Configuration, ...]:
        """The builds, in the order of every array over them."""
        return self._prior.builds

    @property
    def tried(self) -> Truths:
        """True at the builds with a trial, failed ones included."""
        return self.numbers(self._tried)

    @property
    def reached(self) -> float | None:
        """The log of the time that the best timed build may reach; ``None`` before any."""
        return min(self._expected(self._plain_us()).values(), default=None)

    @property
    def spent(self) -> int:
        """The number of builds with a trial, failed ones included."""
        return len(self._tried)

    def build_of(self, candidate: Configuration) -> Configuration | None:
        """Return the build of a candidate, ``None`` if it is no build of this space."""
        return self._prior.build_of(candidate)

    def plainest(self, build: Configuration) -> Configuration:
        """Return the candidate that is timed first of a build."""
        if build not in self._plainest:
            self._plainest[build] = self._space.launches(build)[0]
        return self._plainest[build]

    def ask(self, count: int, among: Collection[Configuration] | None = None) -> tuple[Configuration, ...]:
        """Return the next builds, each to be timed as :meth:`plainest`; none if none is left.

        They are taken from those ``among`` which the caller can time, by default from the whole space. Proposed builds
        without a trial are assumed to have the predicted time.
        """
        chosen = [build for build in self.first if build not in self._proposed and (among is None or build in among)]
        chosen = chosen[:count]
        if chosen:
            self._propose(chosen)
        if len(chosen) == count:
            return tuple(chosen)
        free = self._free() if among is None else self.numbers(among)
        free &= self._free()
        if self._outdated:
            self._prediction = None
        while len(chosen) < count and free.any():
            number = int(np.where(free, self.gains() * self.odds(), -1.0).argmax())
            free[number] = False
            chosen.append(self._prior.builds[number])
            self._propose(chosen[-1:])
        return tuple(chosen)

    def gains(self) -> Floats:
        """Return the expected improvement of each build's log time over the best build, unfinished ones included.

        It takes this problem's trials into account, and those of others as far as they were known at the last
        :meth:`ask`.
        """
        prediction = self.predicted()
        pending = [self._prior.number(build) for build in self._pending()]
        reached = [*self._expected(self._plain_us()).values(), *prediction.mean[pending]]
        return expected_gain(prediction.mean, prediction.deviation, min(reached, default=float(prediction.mean.min())))

    def ask_launches(self, count: int) -> tuple[Configuration, ...]:
        """Return the next launches to time of the best builds, none twice; none if all worth trying were tried.

        Each differs in one parameter from its build's best launch so far: call it again after :meth:`tell`, until it is
        empty.
        """
        chosen: list[Configuration] = []
        for build in self._finalists():
            room = count - len(chosen)
            chosen += [each for each in self._neighbours(build) if each not in self._proposed][:room]
        self._proposed.update(chosen)
        return tuple(chosen)

    def tell(self, trials: Iterable[KernelTrial]) -> None:
        """Record trials, of this problem or of others; a second trial of a candidate replaces the first.

        A failed candidate is not proposed again and does not change the estimates of its neighbours. The trial of a
        build that the compiler refused may be of the build or of its plainest launch.
        """
        for trial in trials:
            candidate = trial.configuration
            if trial.problem != self._problem:
                self._elsewhere[trial.problem, candidate] = trial
                self._outdated = True
                continue
            self._prediction = None
            self._trials[candidate] = trial
            self._proposed.add(candidate)
            build = self.build_of(candidate)
            if build is not None:
                self._proposed.add(build)
                self._tried.add(build)

    def _propose(self, builds: Sequence[Configuration]) -> None:
        self._proposed.update(builds)
        if self._prediction is not None:
            for build in builds:
                self._prediction.believe(self._prior.number(build))

    def _pending(self) -> list[Configuration]:
        return [build for build in self._proposed if build in self._prior and build not in self._tried]

    def _free(self) -> Truths:
        return ~self.numbers(self._proposed)

    def numbers(self, builds: Iterable[Configuration]) -> Truths:
        """Return true at the numbers of some builds; others than those of this space are left out."""
        marked = np.zeros(len(self._prior.builds), dtype=bool)
        marked[[self._prior.number(build) for build in builds if build in self._prior]] = True
        return marked

    def _times_us(self) -> dict[Configuration, dict[Configuration, float]]:
        """Return the times of complete candidates by build."""
        times_us: dict[Configuration, dict[Configuration, float]] = {}
        for candidate, trial in self._trials.items():
            build = self.build_of(candidate)
            if build is not None and trial.state == "complete":
                times_us.setdefault(build, {})[candidate] = _median_us(trial)
        return times_us

    def _plain_us(self) -> dict[Configuration, float]:
        """Return the time of each build's plainest launch; if only others were timed, the slowest of them."""
        return {build: us.get(self.plainest(build), max(us.values())) for build, us in self._times_us().items()}

    def predicted(self) -> Prediction:
        """Return the predicted log times of the builds, in their order, and their deviations; see :meth:`gains`."""
        if self._prediction is None:
            self._prediction = self._prior.corrected(self._plain_us(), self._nearest())
            self._outdated = False
            for build in sorted(map(self._prior.number, self._pending())):
                self._prediction.believe(build)
        return self._prediction

    def odds(self) -> Floats:
        """Return the odds that each build works: Laplace's rule for its kind, without unfinished builds' success.

        So a kind that fails throughout costs few builds, and the first batch is not all of one kind.
        """
        worked = Counter(build.backend for build in self._times_us())
        proposed = Counter(build.backend for build in self._proposed if build in self._prior)
        odds = {kind: (worked[kind] + 1) / (proposed[kind] + 1) for kind in self._prior.kinds}
        return np.array([odds[kind] for kind in self._prior.kinds])[self._prior.kind_numbers]

    def _expected(self, plain_us: dict[Configuration, float]) -> dict[Configuration, float]:
        """Return the log time that each timed build may reach: of its best launch, measured or estimated."""
        expected = {}
        for build, us in self._times_us().items():
            saved = self._prior.saved_of(build) if len(us) == 1 else 0.0
            expected[build] = min(math.log(min(us.values())), math.log(plain_us[build]) + saved)
        return expected

    def _nearest(self) -> list[tuple[GemmProblem, Configuration, float]]:
        """The complete trials of other problems, those of the nearest shapes."""

        def distance(problem: GemmProblem) -> float:
            pairs = ((getattr(problem, side), getattr(self._problem, side)) for side in ("m", "n", "k"))
            return math.fsum(abs(math.log2(size / own)) for size, own in pairs)

        complete = [key for key, trial in self._elsewhere.items() if trial.state == "complete"]
        nearest = sorted(complete, key=lambda key: distance(key[0]))[:NEIGHBOURS]
        return [(*key, _median_us(self._elsewhere[key])) for key in nearest]

    def _finalists(self) -> list[Configuration]:
        """Return the builds whose launches are worth varying, the most promising first."""
        expected = self._expected(self._plain_us())
        ranked = sorted(expected, key=lambda build: expected[build])[:FINALISTS]
        return [build for build in ranked if expected[build] <= expected[ranked[0]] + math.log1p(WITHIN)]

    def _neighbours(self, build: Configuration) -> Iterator[Configuration]:
        """Return the launches that differ in one parameter from the best so far, those with the best estimate first."""
        times_us = self._times_us()[build]
        best = min(times_us, key=lambda candidate: times_us[candidate])
        near = [each for each in self._space.launches(build) if _differ_in_one(each, best)]
        estimates = {each: self._prior.us(each) or 0.0 for each in near}
        limit = HOPELESS * (self._prior.us(best) or math.inf)
        return (each for each in sorted(near, key=lambda each: estimates[each]) if estimates[each] <= limit)


def _differ_in_one(left: Configuration, right: Configuration) -> bool:
    differing = {
        name for (name, value), (_, other_value) in zip(left.values, right.values, strict=True) if value != other_value
    }
    return len(differing) == 1 or (bool(differing) and differing <= _TOGETHER)


def _median_us(trial: KernelTrial) -> float:
    median_us = trial.median_us
    if median_us is None:
        raise ValueError(f"a kernel trial of {trial.configuration} is {trial.state} and has no samples")
    return median_us
