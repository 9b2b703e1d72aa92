"""The search, with and without hints from other studies, beside random search on one recording: compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from autotune.programs.search_score.recording import StudyRecording
from autotune.programs.search_score.replay import Trajectory, at_random, charged, searched
from autotune.programs.search_score.score import RandomSearch
from autotune.programs.search_score.table import Table, table_of
from autotune.records.configuration import Configuration
from autotune.records.plan import Plan
from autotune.search.warm_start import NEAR, warm_start
from autotune.study.hints import past_finals

RANDOM_SEARCHES = 200

FEWEST = 8
"""With fewer configurations beyond the defaults, an order of them is luck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFigures:
    """The figures of one way to search, one of a list for each seed.

    ``scores`` are against random search after the defaults, ``cold_scores`` against random search without them;
    ``near_s`` are the seconds after the defaults until a configuration was within 3% of the best, ``best`` the mean
    latency at the times of the comparison.
    """

    scores: tuple[float, ...]
    cold_scores: tuple[float, ...]
    near_s: tuple[float, ...]
    best: tuple[float, ...]

    @property
    def score(self) -> float | None:
        """The mean score; ``None`` if a default is the optimum."""
        return fmean(self.scores) if self.scores else None

    @property
    def cold_score(self) -> float | None:
        """The mean score against random search without defaults."""
        return fmean(self.cold_scores) if self.cold_scores else None

    @property
    def error(self) -> float:
        """The standard error of the mean score over the seeds."""
        return stdev(self.scores) / len(self.scores) ** 0.5 if len(self.scores) > 1 else 0.0

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "score": self.score,
            "scores": list(self.scores),
            "cold_score": self.cold_score,
            "near_s": list(self.near_s),
            "best": list(self.best),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingScore:
    """The search on one recording, beside random search after the same defaults.

    ``hints`` are those of a warm start from the other studies that were recorded; ``not_recorded`` is the number of
    further hints for which the recording has no trial. ``uniform`` is the share of uniform draws in the proposals
    beyond the defaults.
    """

    table: Table
    optimum: float
    best_default: float
    defaults_s: float
    random: RandomSearch
    random_near_s: float
    search: SearchFigures
    warm: SearchFigures
    hints: tuple[Configuration, ...]
    not_recorded: int
    uniform: float

    @property
    def beyond(self) -> int:
        """The number of recorded configurations beyond the defaults."""
        return len(self.table.trials) - len(self.table.defaults)

    @property
    def silence(self) -> str:
        """The reason why this recording says nothing about a search; empty if it does."""
        if self.best_default <= NEAR * self.optimum:
            return "a default is within 3% of the best"
        return f"only {self.beyond} beyond the defaults" if self.beyond < FEWEST else ""

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        recording = self.table.recording
        return {
            "name": recording.workload.name,
            "batch": recording.workload.batch,
            "device_class": recording.device.device_class,
            "structure": recording.workload.structure,
            "studies": recording.studies,
            "spread": recording.spread,
            "trials": len(self.table.trials),
            "of": self.table.size,
            "outside": self.table.outside,
            "beyond_defaults": self.beyond,
            "silence": self.silence,
            "optimum_ms": self.optimum,
            "best_default_ms": self.best_default,
            "defaults_s": self.defaults_s,
            "times_s": list(self.random.times_s),
            "random": {"near_s": self.random_near_s, "best": list(self.random.expected)},
            "search": self.search.as_dict(),
            "warm": {
                **self.warm.as_dict(),
                "hints": [hint.as_dict() for hint in self.hints],
                "not_recorded": self.not_recorded,
            },
            "uniform_share": self.uniform,
        }


def compare(recording: StudyRecording, plans: Sequence[Plan], *, seeds: int) -> RecordingScore | None:
    """Search a recording with every seed, without hints and with those of plans of other workloads or devices.

    ``None`` if no default worked.
    """
    table = table_of(recording)
    optimum, best_default = table.best_of(table.trials), table.best_of(table.defaults)
    if optimum is None or best_default is None:
        return None
    hints = _hints_from_others(table, plans)
    recorded = tuple(hint for hint in hints if hint in table.trials)
    orders = [searched(table, seed) for seed in range(seeds)]
    warm_orders = [searched(table, seed, recorded) for seed in range(seeds)]
    first = orders[0].order[: len(table.defaults)]
    defaults_s = sum(table.trials[configuration].cost_s for configuration in first)
    lone = [charged(table, at_random(table, seed)) for seed in range(RANDOM_SEARCHES)]
    after = [
        charged(table, at_random(table, seed, first)).since(defaults_s, best_default) for seed in range(RANDOM_SEARCHES)
    ]
    cold = RandomSearch.of(lone, before=_median(table), optimum=optimum)
    random = RandomSearch.of(after, before=best_default, optimum=optimum)

    def figures(tried: Sequence[tuple[Configuration, ...]]) -> SearchFigures:
        whole = [charged(table, order) for order in tried]
        rest = [trajectory.since(defaults_s, best_default) for trajectory in whole]
        return SearchFigures(
            scores=_scores(random, rest),
            cold_scores=_scores(cold, whole),
            near_s=tuple(trajectory.reached_s(NEAR * optimum) for trajectory in rest),
            best=tuple(fmean(each.at(second, best_default) for each in rest) for second in random.times_s),
        )

    return RecordingScore(
        table=table,
        optimum=optimum,
        best_default=best_default,
        defaults_s=defaults_s,
        random=random,
        random_near_s=median(trajectory.reached_s(NEAR * optimum) for trajectory in after),
        search=figures([order.order for order in orders]),
        warm=figures([order.order for order in warm_orders]),
        hints=recorded,
        not_recorded=len(hints) - len(recorded),
        uniform=sum(order.uniform for order in orders) / max(1, sum(order.after_defaults for order in orders)),
    )


def _hints_from_others(table: Table, plans: Sequence[Plan]) -> list[Configuration]:
    """Return the hints of a warm start from the plans, without those of this model and batch on this device class."""
    workload, device = table.recording.workload, table.recording.device
    own = (workload.name, workload.batch, device.device_class)
    past = [
        past_finals(plan, device) for plan in plans
        if plan.device.kind == device.kind and (plan.name, plan.batch, plan.device.device_class) != own
    ]  # fmt: skip
    hints = warm_start(past, table.whole, name=workload.name, device_class=device.device_class)
    return [hint.configuration for hint in hints]


def _scores(random: RandomSearch, trajectories: Sequence[Trajectory]) -> tuple[float, ...]:
    scores = [random.score(trajectory) for trajectory in trajectories]
    return tuple(score for score in scores if score is not None)


def _median(table: Table) -> float:
    """Return the median of all latencies, which stands for a search that has no result yet."""
    return median(trial.outcome.score for trial in table.trials.values() if trial.outcome.score is not None)
