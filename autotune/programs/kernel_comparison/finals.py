"""Kernels and libraries' calls, timed against each other in fresh processes: the races and their results.

Each process runs every problem in rounds, in which each finalist has a block of calls, in random order. The ratio of
two finalists' medians in a round is compared. Rounds of one process share its accidental conditions, so the interval of
a ratio is the wider of that of all rounds' median and Student's of the processes' medians.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from autotune import registry
from autotune.kernels.executor import KernelExecutor
from autotune.kernels.report import TunedProblem
from autotune.kernels.requests import ProblemFinalists
from autotune.kernels.rounds import ComparedProblem
from autotune.measure.statistics import holm, median, median_interval, middle, paired_test
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem

PROCESSES, ROUNDS, SAMPLES = 5, 12, 5
"""Fresh processes, rounds of each, and calls of a finalist in a round."""

OURS, LIBRARIES = 2, 3
"""The finalists of each side: the best of hundreds may be so by chance. The best of each library always takes part."""

ALPHA = 0.05


@dataclass(slots=True, kw_only=True)
class Race:
    """One problem's finalists and their results by process.

    ``chosen`` is the fastest configuration of the tuning, which a model would run. ``runs`` has for each process the
    blocks of each finalist, by its configuration's digest, and its conditions.
    """

    problem: GemmProblem
    finalists: tuple[Configuration, ...]
    chosen: Configuration
    runs: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, tuned: TunedProblem) -> "Race | None":
        """Choose the finalists of a tuned problem; ``None`` if it has none of ours, or no library's call."""
        complete = [trial.configuration for trial in tuned.complete]
        library_kinds = registry.library_kinds()
        ours = [configuration for configuration in complete if configuration.backend not in library_kinds]
        theirs = [configuration for configuration in complete if configuration.backend in library_kinds]
        if not ours or not theirs:
            return None
        best = {configuration.backend: configuration for configuration in reversed(theirs)}
        finalists = dict.fromkeys([*ours[:OURS], *theirs[:LIBRARIES], *best.values()])
        return cls(problem=tuned.problem, finalists=tuple(finalists), chosen=complete[0])

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "problem": self.problem.as_dict(), "finalists": [finalist.as_dict() for finalist in self.finalists],
            "chosen": self.chosen.as_dict(), "runs": self.runs, "failures": self.failures,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Race":
        """Read the output of :meth:`as_dict`."""
        return cls(
            problem=GemmProblem.from_dict(data["problem"]), chosen=Configuration.from_dict(data["chosen"]),
            finalists=tuple(Configuration.from_dict(finalist) for finalist in data["finalists"]),
            runs=list(data["runs"]), failures=list(data["failures"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The ratio of two finalists' times, with a 95% interval; above 1 the second one is faster."""

    ratio: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceResult:
    """One problem: the best of ours and the best library's call by their finals, and the library over each.

    ``of_ours`` is the library's time over that of our best kernel, ``of_chosen`` over that of the tuning's choice.
    """

    problem: GemmProblem
    ours: Configuration
    library: Configuration
    chosen: Configuration
    ours_us: float
    library_us: float
    chosen_us: float
    of_ours: Ratio
    of_chosen: Ratio
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overall:
    """The geometric means over the problems, and the problems on which the tuning's choice is significantly slower."""

    ours: Ratio
    chosen: Ratio
    slower: tuple[GemmProblem, ...]


def run_races(
    races: Sequence[Race],
    executor: KernelExecutor,
    *,
    until: float,
    save: Callable[[], object],
    processes: int = PROCESSES,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run the missing processes of every race until the time is up; ``save`` is called after each.

    A problem whose finalists fail is left out afterwards, and its race has the reason.
    """
    for number in range(processes):
        missing = [race for race in races if len(race.runs) <= number and not race.failures]
        if missing and clock() < until and not executor.server.closed:
            _run(missing, executor, number, rounds, until - clock(), save)


def _run(
    races: Sequence[Race],
    executor: KernelExecutor,
    number: int,
    rounds: int,
    limit_s: float,
    save: Callable[[], object],
) -> None:
    """Run one process, or more if finalists crash."""
    by_problem = {race.problem: race for race in races}

    def note(compared: ComparedProblem) -> None:
        race = by_problem[compared.problem]
        if compared.failures:
            race.failures += compared.failures
            return
        blocks = {finalist.digest: [list(block) for block in us] for finalist, us in compared.blocks_us.items()}
        race.runs.append({"number": number, "samples_us": blocks, "conditions": dict(compared.conditions)})

    work = [ProblemFinalists(problem=race.problem, finalists=race.finalists) for race in races]
    try:
        executor.compare(
            work, note, rounds=rounds, samples=SAMPLES, limit_s=max(1.0, limit_s), seed=executor.seed + number
        )
    finally:
        save()


def result_of(race: Race) -> RaceResult | None:
    """Return the result of a race; ``None`` if nothing was run."""
    if not race.runs or race.failures:
        return None

    def figure_us(finalist: Configuration) -> float:
        return median([median(block) for run in race.runs for block in run["samples_us"][finalist.digest]])

    library_kinds = registry.library_kinds()
    ours = min((finalist for finalist in race.finalists if finalist.backend not in library_kinds), key=figure_us)
    library = min((finalist for finalist in race.finalists if finalist.backend in library_kinds), key=figure_us)
    return RaceResult(
        problem=race.problem, ours=ours, library=library, chosen=race.chosen, ours_us=figure_us(ours),
        library_us=figure_us(library), chosen_us=figure_us(race.chosen), of_ours=ratio_of(race, library, ours),
        of_chosen=ratio_of(race, library, race.chosen),
        rounds=sum(len(run["samples_us"][ours.digest]) for run in race.runs),
    )  # fmt: skip


def ratio_of(race: Race, numerator: Configuration, denominator: Configuration) -> Ratio:
    """Return the ratio of two finalists' times, paired within the rounds."""
    processes = [
        [
            math.log(median(mine) / median(theirs))
            for mine, theirs in zip(
                run["samples_us"][numerator.digest], run["samples_us"][denominator.digest], strict=True
            )
        ]
        for run in race.runs
    ]
    logs = [log_ratio for process in processes for log_ratio in process]
    low, high = (math.log(end) for end in median_interval(map(math.exp, logs)))
    if len(processes) > 1:
        from scipy.stats import t  # type: ignore[import-untyped, unused-ignore]

        medians = [middle(sorted(process)) for process in processes]
        way = float(t.isf(0.025, len(medians) - 1)) * stdev(medians) / math.sqrt(len(medians))
        low, high = min(low, fmean(medians) - way), max(high, fmean(medians) + way)
    return Ratio(
        ratio=math.exp(middle(sorted(logs))), interval=(math.exp(low), math.exp(high)), p_value=paired_test(logs)
    )


def overall(results: Sequence[RaceResult]) -> Overall:
    """Combine the results of at least one problem.

    A problem is slower if the test, adjusted for the number of problems, and the whole interval say so.
    """
    adjusted = holm([result.of_chosen.p_value for result in results])
    slower = tuple(
        result.problem
        for result, p_value in zip(results, adjusted, strict=True)
        if p_value < ALPHA and result.of_chosen.interval[1] < 1
    )
    return Overall(
        ours=_mean([result.of_ours for result in results]), chosen=_mean([result.of_chosen for result in results]),
        slower=slower,
    )  # fmt: skip


def _mean(ratios: Sequence[Ratio]) -> Ratio:
    """Return the geometric mean; the problems' intervals, which are independent, are added as root of squares."""
    logs = [math.log(ratio.ratio) for ratio in ratios]
    centre = fmean(logs)
    down, up = (
        math.hypot(*(abs(math.log(ratio.interval[side] / ratio.ratio)) for ratio in ratios)) / len(ratios)
        for side in (0, 1)
    )
    return Ratio(
        ratio=math.exp(centre), interval=(math.exp(centre - down), math.exp(centre + up)), p_value=paired_test(logs)
    )
