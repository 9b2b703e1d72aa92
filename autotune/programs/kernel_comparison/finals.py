"""Kernels against libraries' calls, timed against each other in fresh processes: what is run, and what follows from it.

Each process runs every problem, and in it rounds in which each finalist has a block of calls, in random order. What is
compared is the ratio of two finalists' medians in a round. Rounds of one process share what that process happens to be:
so the interval of a ratio is the wider of that of all rounds' median and Student's of the processes' medians.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from autotune import registry
from autotune.errors import WorkError
from autotune.execute.channel import ChannelClosed
from autotune.kernels.executor import CANDIDATE_S, START_S, KernelExecutor
from autotune.kernels.report import TunedProblem
from autotune.measure.statistics import holm, median, median_interval, middle, paired_test
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem

log = logging.getLogger(__name__)

PROCESSES, ROUNDS, SAMPLES = 5, 12, 5
"""Fresh processes, rounds of each, and calls of a finalist in a round."""

OURS, LIBRARIES = 2, 3
"""Finalists of each side: the best of hundreds is a lucky one. The best of each library takes part in any case."""

ALPHA = 0.05


@dataclass(slots=True, kw_only=True)
class Race:
    """One problem's finalists and what processes told of them.

    ``chosen`` is what the tuning found fastest of all, which a model would run. ``runs`` has for each process the
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
        ours = [each for each in complete if each.backend not in registry.library_kinds()]
        theirs = [each for each in complete if each.backend in registry.library_kinds()]
        if not ours or not theirs:
            return None
        best = {each.backend: each for each in reversed(theirs)}
        finalists = dict.fromkeys([*ours[:OURS], *theirs[:LIBRARIES], *best.values()])
        return cls(problem=tuned.problem, finalists=tuple(finalists), chosen=complete[0])

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "problem": self.problem.as_dict(), "finalists": [each.as_dict() for each in self.finalists],
            "chosen": self.chosen.as_dict(), "runs": self.runs, "failures": self.failures,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Race":
        """Read the output of :meth:`as_dict`."""
        return cls(
            problem=GemmProblem.from_dict(data["problem"]), chosen=Configuration.from_dict(data["chosen"]),
            finalists=tuple(Configuration.from_dict(each) for each in data["finalists"]), runs=list(data["runs"]),
            failures=list(data["failures"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The number of times as long the one takes as the other, with a 95% interval; above 1 the other is faster."""

    ratio: float
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceResult:
    """One problem: the best of ours and the best library's call by their finals, and the library over each.

    ``of_ours`` is the library's time over that of our best kernel, ``of_chosen`` over that of what the tuning chose.
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
    """The geometric means over the problems, and the problems on which what was chosen is significantly slower."""

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
    """Run what is missing of every race, process after process, until the time is up; ``save`` after each.

    A problem whose finalists fail is left out from then on, and why stands in its race.
    """
    for number in range(processes):
        missing = [race for race in races if len(race.runs) <= number and not race.failures]
        while missing and clock() < until and not executor.server.closed:
            missing = _run(missing, executor, number, rounds, until, save, clock)


def _run(
    races: Sequence[Race], executor: KernelExecutor, number: int, rounds: int, until: float, save: Callable[[], object],
    clock: Callable[[], float],
) -> list[Race]:  # fmt: skip
    """Run a process; returns what is left for another one, where it crashed."""
    known = {race.problem.digest: race for race in races}
    waiting = dict(known)
    request = {
        "backend": executor.backend, "device": executor.device.as_dict(), "folder": str(executor.folder),
        "rounds": rounds,
        "seed": executor.seed + number, "samples": SAMPLES,
        "work": [
            {"problem": race.problem.as_dict(), "finalists": [each.as_dict() for each in race.finalists]}
            for race in races
        ],
    }  # fmt: skip
    session = executor.server.start("kernel_rounds", request, stage="load")
    heard: dict[str, dict[str, Any]] = {}
    expected, left_s = set(known), max(1.0, until - clock())
    try:
        while "result" not in (message := session.receive(START_S + CANDIDATE_S, left_s)):
            if "turn" in message:
                session.turn = message["turn"]
                if session.turn in expected:
                    expected.remove(session.turn)
                    session.begin_part()
            elif "kernel" in message:
                told = message["kernel"]
                digest, _, finalist = told["candidate"].partition("/")
                race = known[digest]
                if "failure" in told:
                    race.failures.append(f"{finalist[:12]} {told['failure']['detail']}".strip())
                    waiting.pop(digest, None)
                    continue
                heard.setdefault(digest, {})[finalist] = told
                if len(heard[digest]) == len(race.finalists):
                    race.runs.append(_taken(heard[digest], number))
                    waiting.pop(digest)
            elif "error" in message:
                break
    except ChannelClosed:
        log.debug("a process that compared kernels is gone")
    finally:
        session.finish()
        save()
    if clock() >= until or executor.server.closed or not waiting:
        return []
    culprit = waiting.pop(session.turn or "", None)
    failure = session.failure(START_S)
    if culprit is None:
        raise WorkError(
            f"kernels could not be compared on {executor.device.name}", found=str(failure), run="autotune doctor"
        )
    culprit.failures.append(str(failure))
    save()
    return list(waiting.values())


def _taken(told: Mapping[str, Mapping[str, Any]], number: int) -> dict[str, Any]:
    """One process's part: blocks of each finalist, and the conditions, which they share."""
    blocks = {
        name: [
            list(each["samples_us"][first : first + SAMPLES]) for first in range(0, len(each["samples_us"]), SAMPLES)
        ]
        for name, each in told.items()
    }
    conditions = next(iter(told.values()))["conditions"]
    return {"number": number, "samples_us": blocks, "conditions": conditions}


def result_of(race: Race) -> RaceResult | None:
    """What a race came to; ``None`` if nothing was run."""
    if not race.runs or race.failures:
        return None

    def figure_us(each: Configuration) -> float:
        return median([median(block) for run in race.runs for block in run["samples_us"][each.digest]])

    ours = min((each for each in race.finalists if each.backend not in registry.library_kinds()), key=figure_us)
    library = min((each for each in race.finalists if each.backend in registry.library_kinds()), key=figure_us)
    return RaceResult(
        problem=race.problem, ours=ours, library=library, chosen=race.chosen, ours_us=figure_us(ours),
        library_us=figure_us(library), chosen_us=figure_us(race.chosen), of_ours=ratio_of(race, library, ours),
        of_chosen=ratio_of(race, library, race.chosen),
        rounds=sum(len(run["samples_us"][ours.digest]) for run in race.runs),
    )  # fmt: skip


def ratio_of(race: Race, one: Configuration, other: Configuration) -> Ratio:
    """The number of times as long the one takes as the other, paired within the rounds."""
    processes = [
        [
            math.log(median(mine) / median(theirs))
            for mine, theirs in zip(run["samples_us"][one.digest], run["samples_us"][other.digest], strict=True)
        ]
        for run in race.runs
    ]
    logs = [each for process in processes for each in process]
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
    """Join the problems, of which there is one at least.

    Slower is what the test says, adjusted for that many problems, where the whole interval says so too.
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
    """The geometric mean; the problems' intervals, which are independent, add up as the root of their squares."""
    logs = [math.log(each.ratio) for each in ratios]
    centre = fmean(logs)
    down, up = (
        math.hypot(*(abs(math.log(each.interval[side] / each.ratio)) for each in ratios)) / len(ratios)
        for side in (0, 1)
    )
    return Ratio(
        ratio=math.exp(centre), interval=(math.exp(centre - down), math.exp(centre + up)), p_value=paired_test(logs)
    )
