"""Two finalists of a plan's evidence compared in pairs of rounds: paired_ratio, PairedRatio."""

import math
from dataclasses import dataclass

from autotune.execute.finals import statistic_of
from autotune.measure.paired import RoundFigures
from autotune.measure.statistics import median, median_interval
from autotune.records.evidence import FinalistRecord
from autotune.records.plan import Plan

FEWEST_ROUNDS = 6
"""The fewest rounds for an interval: with fewer values no two of them are a 95% interval of their median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRatio:
    """The median of one finalist over another, round by round, with its 95% interval.

    ``interval`` is ``None`` if the rounds are too few. ``differs`` says that the ratio exceeds the noise of rounds and
    of processes.
    """

    value: float
    interval: tuple[float, float] | None
    differs: bool


def paired_ratio(plan: Plan, above: FinalistRecord, below: FinalistRecord) -> PairedRatio | None:
    """Return ``above`` over ``below`` in what the plan's objective compares; ``None`` if they share no round."""
    pair = {"above": above, "below": below}
    blocks = {name: finalist.figures or finalist.samples_ms for name, finalist in pair.items()}
    if len({len(rounds) for rounds in blocks.values()}) != 1 or not all(map(any, blocks.values())):
        return None
    disturbed = {name: finalist.disturbed for name, finalist in pair.items()}
    processes = plan.evidence.processes if len(plan.evidence.processes) == len(blocks["above"]) else None
    figures = RoundFigures(blocks, statistic_of(plan.objective), processes, disturbed)
    ratios = [math.exp(ratio) for ratio in figures.log_ratios("above", "below")]
    if not ratios:
        return None
    interval = median_interval(ratios) if len(ratios) >= FEWEST_ROUNDS else None
    return PairedRatio(value=median(ratios), interval=interval, differs=figures.differ("above", "below"))
