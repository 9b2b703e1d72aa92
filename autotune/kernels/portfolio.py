"""The choice of the builds that are compiled next, for all problems of a tuning at once: BuildPortfolio.

A binary does not depend on most of a problem, so one compilation serves many problems. A build is chosen for its
expected gain summed over all problems that it fits: for each of them the expected improvement of its time, weighted by
its share of the model's time in kernels. The builds that are compiled or being compiled count as if each had lowered
the problem's best time by its own expected improvement, so the next ones are worth less. Problems with few builds count
more than their share (breadth first).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autotune.backend import KernelKind
from autotune.kernels.model import Prediction, expected_gain
from autotune.kernels.tile_table import Floats, Truths, Wholes
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem

ENOUGH = 8
"""The builds that each problem has before any has more. With eight of the first builds by the estimate, 90 problems on
an H200 lost 0.6% on average against all that were tried."""

MOST_BUILDS = 32
"""The most builds of one problem; the search over tiles promises to need no more."""

BREADTH = 3.0
"""The weight of a problem without enough builds, in shares of an average problem."""

REACH = 0.25
"""A build is near the best of a problem if its predicted log time is at most so much above the best predicted one; the
:data:`ENOUGH` best predicted ones always are."""

FIRST_GAIN = 0.3
"""The log time by which a problem's first build, and one that was good elsewhere, is expected to be better."""

CONSIDERED = 24
"""The most builds, the best predicted ones, that lower a problem's expected best time."""

NEARNESS = 1e-3
"""The gain of a build without expected improvement for a problem without enough builds, if it is the best predicted."""

LEAST_GAIN = 0.0002
"""The share of the model's time in kernels that a build must be expected to save, once all problems have enough."""

SLOW_S = 2.0
"""A build that compiles for longer than this must promise more, in proportion."""


def binary_of(kind: KernelKind, problem: GemmProblem, build: Configuration) -> tuple[object, ...]:
    """Return all that decides the binary of a build, besides the architecture."""
    shared = problem.dtype, problem.output, problem.window is not None, build
    return (*shared, problem.bias, problem.residual, problem.activation) if kind.fixed_epilogue else shared


@dataclass(slots=True, kw_only=True)
class _ProblemBuilds:
    """A problem with its builds, whose binaries have ``ids``.

    ``there`` marks builds that are compiled or being compiled, ``tried`` those with a trial, ``barred`` those that
    cannot be compiled here, ``near`` those that are near the best predicted one. ``best`` is the log of the best time
    of a build so far, ``bonus`` the gain of builds that were good elsewhere.
    """

    problem: GemmProblem
    weight: float
    builds: Sequence[Configuration]
    ids: Wholes
    numbers: Mapping[Configuration, int]
    mean: Floats
    deviation: Floats
    best: float | None
    there: Truths
    tried: Truths
    barred: Truths
    bonus: Floats
    odds: Floats
    most: int
    reached: float = 0.0
    count: int = 0
    gains: Floats = field(default_factory=lambda: np.zeros(0))
    improvements: Floats = field(default_factory=lambda: np.zeros(0))
    near: Truths = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def refresh(self) -> None:
        """Find the builds that are near the best predicted one, and weigh all."""
        possible = self.mean[~self.barred]
        limit = float(self.mean.min()) + REACH
        if len(possible):
            last = min(ENOUGH, len(possible)) - 1
            limit = max(limit, float(np.partition(possible, last)[last]))
        self.near = (self.mean <= limit) | (self.bonus > 0)
        self.weigh()

    def weigh(self) -> None:
        """Compute the expected gain of each build beside those that are there."""
        least = float(self.mean.min())
        self.reached = least + FIRST_GAIN if self.best is None else self.best
        self.improvements = expected_gain(self.mean, self.deviation, self.reached)
        waiting = np.flatnonzero(self.there & ~self.tried & self.near)
        for number in waiting[np.argsort(self.mean[waiting])][:CONSIDERED]:
            here = slice(number, number + 1)
            self.reached -= float(expected_gain(self.mean[here], self.deviation[here], self.reached)[0])
        self.count = int(self.tried.sum()) + len(waiting)
        gains = expected_gain(self.mean, self.deviation, self.reached)
        if self.count < ENOUGH:
            gains = gains + NEARNESS * np.exp((least - self.mean) / REACH)
        gains = gains * self.odds + self.bonus
        closed = self.there | self.tried | self.barred
        self.gains = np.where(closed, 0.0, gains) if self.count < self.most else np.zeros(len(self.mean))

    @property
    def is_wanting(self) -> bool:
        """Whether it has fewer builds than every problem is to have, and can get more."""
        return self.count < ENOUGH and bool(self.gains.any())


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildState:
    """The builds of a problem: how many are ``ready`` to be timed, and whether more are ``outstanding``.

    ``gain`` is the expected improvement of the log time by the best that is ready.
    """

    ready: int
    outstanding: bool
    gain: float


class BuildPortfolio:
    """Chooses builds to compile; ``most`` is the limit of builds of one problem.

    Not thread-safe; deterministic.
    """

    def __init__(self, kinds: Mapping[str, KernelKind], *, most: int) -> None:
        self._kinds, self._most = kinds, most
        self._ids: dict[tuple[object, ...], int] = {}
        self._entries: dict[GemmProblem, _ProblemBuilds] = {}
        self._costs: list[float] = []
        self._there: set[int] = set()

    def put(
        self,
        problem: GemmProblem,
        weight: float,
        builds: Sequence[Configuration],
        prediction: Prediction,
        *,
        best: float | None,
        there: Truths,
        tried: Truths,
        hinted: Sequence[Configuration] = (),
    ) -> None:
        """Add a problem, or replace it: builds with their predicted log times, and which are compiled and tried.

        The ``hinted`` ones, which were good elsewhere, come first, in their order.
        """
        ids = np.array([self._id(problem, build) for build in builds], dtype=np.int64)
        entry = _ProblemBuilds(
            problem=problem, weight=weight, builds=builds, ids=ids,
            numbers={build: number for number, build in enumerate(builds)}, mean=prediction.mean,
            deviation=prediction.deviation, best=best, there=there, tried=tried,
            barred=np.zeros(len(builds), dtype=bool), most=self._most,
            bonus=np.zeros(len(builds)), odds=np.ones(len(builds)),
        )  # fmt: skip
        # A binary that is being compiled for other problems will serve this one too.
        entry.there |= np.isin(ids, list(self._there))
        for rank, build in enumerate(hinted):
            entry.bonus[entry.numbers[build]] = FIRST_GAIN * (1 - rank / (len(hinted) + 1))
        entry.refresh()
        self._entries[problem] = entry

    def learn(
        self, problem: GemmProblem, prediction: Prediction, *, best: float | None, tried: Truths, odds: Floats
    ) -> None:
        """Take new results of a problem into account, and the odds that its builds work."""
        entry = self._entries[problem]
        entry.mean, entry.deviation, entry.best, entry.tried = prediction.mean, prediction.deviation, best, tried
        entry.odds = odds
        entry.refresh()

    def finish(self, problem: GemmProblem) -> None:
        """Compile no more builds for a problem alone."""
        if problem in self._entries:
            entry = self._entries[problem]
            entry.most = 0
            entry.weigh()

    def choose(
        self, count: int, barred: frozenset[str] = frozenset(), *, least_gain: float = LEAST_GAIN
    ) -> tuple[GemmProblem, tuple[Configuration, ...]] | None:
        """Return the next builds to compile together, for the problem that gains most; ``None`` at the end.

        They are all of one kind, of none in ``barred``, and count as being compiled. Once all problems have enough
        builds, each promises to save more than ``least_gain``, a share of the model's time in kernels.
        """
        chosen: list[Configuration] = []
        owner: _ProblemBuilds | None = None
        while len(chosen) < (count if owner is None or self._is_quick(chosen[0]) else 1):
            best = self._best(owner, chosen[0].backend if chosen else None, barred, least_gain)
            if best is None:
                break
            owner, build = best
            chosen.append(build)
            self.mark_there(owner.problem, build)
        return (owner.problem, tuple(chosen)) if owner is not None else None

    @property
    def is_wanting(self) -> bool:
        """Whether a problem has fewer builds than every problem is to have, and can get more."""
        return any(entry.is_wanting for entry in self._entries.values())

    def mark_there(self, problem: GemmProblem, build: Configuration) -> None:
        """Count a build as compiled or being compiled, for all problems that its binary serves."""
        self._there.add(self._id(problem, build))
        for entry, number in self._served(problem, build):
            entry.there[number] = True
            entry.weigh()

    def drop(self, problem: GemmProblem, build: Configuration) -> None:
        """Take back a build that could not be compiled, for all problems that its binary would serve."""
        self._there.discard(self._id(problem, build))
        for entry, number in self._served(problem, build):
            entry.there[number], entry.barred[number] = False, True
            entry.refresh()

    def served(self, problem: GemmProblem, build: Configuration) -> list[GemmProblem]:
        """Return the problems that a build's binary serves."""
        return [entry.problem for entry, _ in self._served(problem, build)]

    def bar(self, problem: GemmProblem, build: Configuration) -> None:
        """Take a build back for one problem, for which its binary turned out not to serve."""
        entry = self._entries[problem]
        entry.there[entry.numbers[build]], entry.barred[entry.numbers[build]] = False, True
        entry.refresh()

    def reached_us(self, problem: GemmProblem) -> float:
        """Return the time that a problem is expected to reach; 0 without builds."""
        entry = self._entries.get(problem)
        return math.exp(entry.reached) if entry is not None else 0.0

    def within_reach(self, problem: GemmProblem, builds: Iterable[Configuration]) -> list[Configuration]:
        """Return those of some builds that are near the best predicted; all of them if no others will come."""
        entry = self._entries.get(problem)
        if entry is None:
            return []
        offered = [build for build in builds if build in entry.numbers]
        near = [build for build in offered if entry.near[entry.numbers[build]]]
        return near if near or entry.is_wanting else offered

    def state(self, problem: GemmProblem, compiled: Truths | None) -> BuildState:
        """Return the state of a problem's builds, some of which are ``compiled``."""
        entry = self._entries.get(problem)
        if entry is None or compiled is None:
            return BuildState(ready=0, outstanding=False, gain=0.0)
        ready = compiled & ~entry.tried & ~entry.barred
        reachable = ready & entry.near
        count = int(reachable.sum()) or (0 if entry.is_wanting else int(ready.sum()))
        coming = bool((entry.there & ~compiled & ~entry.tried & entry.near).any())
        gain = float(entry.improvements[reachable].max()) if reachable.any() else 0.0
        return BuildState(ready=count, outstanding=coming or entry.is_wanting, gain=gain)

    def _served(self, problem: GemmProblem, build: Configuration) -> list[tuple[_ProblemBuilds, int]]:
        binary = self._id(problem, build)
        served = []
        for entry in self._entries.values():
            number = entry.numbers.get(build)
            if number is not None and entry.ids[number] == binary:
                served.append((entry, number))
        return served

    def _best(
        self, owner: _ProblemBuilds | None, kind: str | None, barred: frozenset[str], least_gain: float
    ) -> tuple[_ProblemBuilds, Configuration] | None:
        """Return the build that promises most, among all or among an owner's of one kind, and its owner."""
        entries = [entry for entry in self._entries.values() if len(entry.gains)]
        if not entries:
            return None
        times = np.array([entry.weight * math.exp(entry.reached) for entry in entries])
        shares = times / times.sum()
        wanting = np.array([entry.is_wanting for entry in entries])
        least_gain = 0.0 if wanting.any() else least_gain
        factors = shares + np.where(wanting, BREADTH / len(entries), 0.0)
        total = np.zeros(len(self._ids))
        for entry, factor in zip(entries, factors, strict=True):
            total[entry.ids] += factor * entry.gains
        total /= np.array(self._costs)
        for entry in entries if barred else ():
            total[entry.ids[np.array([build.backend in barred for build in entry.builds])]] = 0.0
        if owner is not None:
            offered = total[owner.ids] * np.array([build.backend == kind for build in owner.builds])
            number = int(offered.argmax())
            return (owner, owner.builds[number]) if offered[number] > least_gain else None
        binary = int(total.argmax())
        if not total[binary] > least_gain:
            return None
        places = [(entry, np.flatnonzero(entry.ids == binary)) for entry in entries]
        owners = [
            (factor * entry.gains[number[0]], entry, int(number[0]))
            for factor, (entry, number) in zip(factors, places, strict=True)
            if len(number)
        ]
        _, entry, number_there = max(owners, key=lambda choice: choice[0])
        return entry, entry.builds[number_there]

    def _kind(self, name: str) -> KernelKind:
        return self._kinds.get(name) or KernelKind(name=name)

    def _is_quick(self, build: Configuration) -> bool:
        return self._kind(build.backend).compile_s <= SLOW_S

    def _id(self, problem: GemmProblem, build: Configuration) -> int:
        kind = self._kind(build.backend)
        binary = binary_of(kind, problem, build)
        if binary not in self._ids:
            self._ids[binary] = len(self._ids)
            self._costs.append(max(1.0, kind.compile_s / SLOW_S))
        return self._ids[binary]
