"""Replays of the search over tiles on recorded spaces: its distance from the best for numbers of builds.

Its score is that of Willemsen et al., "A methodology for comparing optimization algorithms for auto-tuning" (2024):
(random's expected time - the search's) / (random's - the best), 0 for random search and 1 for the optimum, averaged
over the numbers of builds. Random search draws builds, and gets the best launch of each for free.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from autotune.kernels.search import KernelSearch
from autotune.programs.kernel_search.space_file import RecordedBuild, RecordedLaunch, RecordedSpace
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.trial import Failure

BATCH = 4
CHECKPOINTS = (4, 8, 12, 16)
LAUNCHES = 32
"""The launches of one request."""

Half = Literal["settle", "report", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedProblem:
    """One problem searched with one seed: regrets (0.03 is 3% slower than the best) after each number of builds."""

    problem: GemmProblem
    seed: int
    best_us: float
    regrets: tuple[float, ...]
    random_regrets: tuple[float, ...]
    launches: int

    @property
    def score(self) -> float | None:
        """The score between random search (0) and the optimum (1); ``None`` if random finds the optimum."""
        pairs = zip(self.regrets, self.random_regrets, strict=True)
        shares = [1 - regret / chance for regret, chance in pairs if 0 < chance < math.inf]
        return fmean(shares) if shares else None


class ReplaySpace:
    """The :class:`~autotune.kernel.KernelSpace` of one recorded problem."""

    def __init__(self, recorded: RecordedSpace, problem: GemmProblem) -> None:
        place = recorded.problems.index(problem)
        self.ready: tuple[Configuration, ...] = ()
        self._recorded = {each.build: each for each in recorded.builds if _offered(each, place)}
        self._launches = {
            build: tuple(launch.candidate for launch in each.launches if _has(launch, place)) or (build,)
            for build, each in self._recorded.items()
        }
        self._outcomes = {
            launch.candidate: launch.times_us.get(place) or launch.failures[place]
            for each in self._recorded.values()
            for launch in each.launches
            if _has(launch, place)
        }
        self._problem, self._device_class, self._toolchain = problem, recorded.device_class, recorded.toolchain

    @property
    def builds(self) -> tuple[Configuration, ...]:
        """Every build that was recorded for the problem, refused ones too."""
        return tuple(self._recorded)

    def first(self, count: int) -> tuple[Configuration, ...]:
        """The first ones: a recording knows no rule."""
        return self.builds[:count]

    def suggested(self, count: int) -> tuple[Configuration, ...]:
        """Return none: a recording has no adviser."""
        return ()

    def launches(self, build: Configuration) -> tuple[Configuration, ...]:
        """The recorded launches, the plainest first; of a refused build itself."""
        return self._launches[build]

    def best_us(self, build: Configuration) -> float:
        """Return the best time of a build over its launches, infinite if none worked."""
        outcomes = (self._outcomes.get(each) for each in self._launches[build])
        return min((each for each in outcomes if isinstance(each, float | int)), default=math.inf)

    def trial(self, candidate: Configuration) -> KernelTrial:
        """Return the recorded trial of a candidate."""
        outcome = self._outcomes.get(candidate)
        if outcome is None:  # the launch that stands for a build that was refused
            why = self._recorded[candidate].refusal or "not recorded"
            outcome = Failure(stage="build", kind="error", detail=why)
        failure = outcome if isinstance(outcome, Failure) else None
        return KernelTrial(
            problem=self._problem,
            device_class=self._device_class,
            toolchain=self._toolchain,
            configuration=candidate,
            state="failed" if failure else "complete",
            samples_us=() if isinstance(outcome, Failure) else (outcome,),
            failure=failure,
        )


def replay(
    recorded: RecordedSpace, problem: GemmProblem, *, seed: int, checkpoints: Sequence[int] = CHECKPOINTS
) -> ReplayedProblem:
    """Search one recorded problem anew for each number of builds, as a search with that budget would end.

    Raises ``ValueError`` if nothing recorded works on the problem.
    """
    space = ReplaySpace(recorded, problem)
    ranked_us = sorted((space.best_us(build) for build in space.builds), reverse=True)
    if not ranked_us or not math.isfinite(ranked_us[-1]):
        raise ValueError(f"no build that was recorded works on {problem.canonical}")
    best_us = ranked_us[-1]
    regrets, launches = [], 0
    for builds in checkpoints:
        reached_us, launches = _searched(KernelSearch(space, problem, rates=recorded.rates, seed=seed), space, builds)
        regrets.append(reached_us / best_us - 1)
    return ReplayedProblem(
        problem=problem,
        seed=seed,
        best_us=best_us,
        regrets=tuple(regrets),
        random_regrets=tuple(expected_of_random(ranked_us, builds) / best_us - 1 for builds in checkpoints),
        launches=launches,
    )


def expected_of_random(worst_first: Sequence[float], draws: int) -> float:
    """The best of some draws out of all values, expected: at index round(M·(N + 1) / (M + 1)) from the worst."""
    count = len(worst_first)
    draws = min(draws, count)
    return worst_first[min(round(draws * (count + 1) / (draws + 1)), count) - 1]


def half_of(recorded: RecordedSpace, half: Half) -> tuple[GemmProblem, ...]:
    """The problems on which a method is settled, or the others, on which it is reported: every second by digest."""
    ordered = sorted(recorded.problems, key=lambda problem: problem.digest)
    return {"settle": tuple(ordered[::2]), "report": tuple(ordered[1::2]), "all": tuple(ordered)}[half]


def _searched(search: KernelSearch, space: ReplaySpace, builds: int) -> tuple[float, int]:
    """Return the best time after ``builds`` builds and a sweep of launches, and the number of timed launches."""
    timed = 0
    while search.spent < builds and (proposed := search.ask(min(BATCH, builds - search.spent))):
        search.tell(space.trial(search.plainest(build)) for build in proposed)
        timed += len(proposed)
    while launches := search.ask_launches(LAUNCHES):
        search.tell(space.trial(candidate) for candidate in launches)
        timed += len(launches)
    best = search.best
    return (best.median_us if best and best.median_us else math.inf), timed


def _has(launch: RecordedLaunch, place: int) -> bool:
    return place in launch.times_us or place in launch.failures


def _offered(build: RecordedBuild, place: int) -> bool:
    return build.refusal is not None or any(_has(launch, place) for launch in build.launches)
