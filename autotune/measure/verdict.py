"""The winner of the finals, from their raw samples alone: Verdict.

A finalist beats another if the p-value of Wilcoxon's test on the log-ratios of the rounds that count, Holm-adjusted, is
less than :data:`~autotune.measure.paired.ALPHA`, its median is lower, and the median ratio is at least half a percent,
the detectable effect 2.8 * sqrt(s_b^2 / k + s_d^2 / n), and some standard errors of the processes' medians.
:mod:`autotune.measure.paired` decides which rounds and processes count. Everything else is a tie.

Rounds of one process share the properties of that process, and the deployed process is a new one, so n rounds of k
processes count for less than n rounds. Pairing does not remove this: in ten committed finals on an H200 the paired
log-ratios of two fresh processes differ by 2.0% in the median and 19% in the 90th percentile (by 0.5% and 3.4% if both
are CUDA graphs).

Finals are *undecided* if noise leaves an important question open: no candidate beats the baseline, and one may lead it
by 10% or more; or a candidate does, and a finalist that was disturbed in nearly every round may be even faster.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from autotune.measure.paired import MIN_EFFECT, Comparison, Disturbed, RoundFigures, Samples, Statistic
from autotune.measure.statistics import median, median_interval

VerdictStatus = Literal["promoted", "tie", "baseline", "undecided"]

TieKeys = Mapping[str, tuple[object, ...]]
"""The key of each finalist that decides a tie, smallest first: memory in bytes, rank of its backend, digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalistResult:
    """The result of one finalist.

    ``figure`` is the median of its figures, one a round, and ``interval`` their 95% interval: milliseconds if
    latencies are compared, else in the objective's own unit. ``p_value`` (Holm-adjusted) and ``detectable_effect`` (a
    log-ratio, differences between processes included) compare it with the winner; they are ``None`` for the winner
    itself, and for a finalist that was ``frozen``, that is, took no part in the last round. ``speedup`` is the
    baseline's figure over its own.
    """

    name: str
    figure: float
    interval: tuple[float, float]
    rounds: int
    speedup: float
    p_value: float | None
    detectable_effect: float | None
    frozen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of the finals; ``finalists`` are ordered by latency.

    ``status`` is ``promoted`` (the winner beats all others), ``tie`` (it beats the baseline, not all others),
    ``baseline`` (no candidate beats the baseline, which is then the winner) or ``undecided`` (a candidate may beat it,
    and noise hides that; the winner is the baseline for want of another). ``tied_with`` are the others that do not
    differ from the best, or those that may be faster than the baseline. ``settled`` says that more rounds would not
    change the outcome: finalists that are not beaten are equal within half a percent. ``disturbed`` are the processes
    in which others used the device for most rounds, or which lie apart from the rest.
    """

    winner: str
    baseline: str
    status: VerdictStatus
    tied_with: tuple[str, ...]
    settled: bool
    rounds: int
    finalists: tuple[FinalistResult, ...]
    disturbed: tuple[int, ...] = ()

    def of(self, name: str) -> FinalistResult:
        """Return the result of one finalist; ``KeyError`` if it is none."""
        for result in self.finalists:
            if result.name == name:
                return result
        raise KeyError(f"{name!r} is not a finalist; there are {[result.name for result in self.finalists]}")

    @property
    def speedup(self) -> float:
        """Baseline over winner, exactly 1.0 when the baseline won."""
        return self.of(self.winner).speedup

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        data = asdict(self)
        data["tied_with"] = list(self.tied_with)
        data["disturbed"] = list(self.disturbed)
        data["finalists"] = [{**result, "interval": list(result["interval"])} for result in data["finalists"]]
        return data


def verdict_from_samples(
    samples: Samples,
    *,
    baselines: Collection[str],
    tie_keys: TieKeys | None = None,
    statistic: Statistic = median,
    processes: Sequence[int] | None = None,
    disturbed: Disturbed | None = None,
    beside: Collection[str] = (),
) -> Verdict:
    """Decide the finals from raw samples; the order of the finalists does not matter.

    ``samples`` may be any positive figures of which less is better; ``statistic`` reduces a block to a single figure.
    ``processes`` names the process of each round; without it all count as rounds of one process. ``disturbed`` says for
    each finalist and round whether its block was disturbed; without it no block was. Those ``beside`` have a result and
    decide nothing.

    The baseline is the fastest of ``baselines``. The leader is the finalist that beats it by most, paired within the
    rounds; it is promoted if it beats all others too. Otherwise the smallest tie key wins among the leader and those
    that also beat the baseline and lie within half a percent of the leader, so that a simpler winner costs next to
    nothing, however large the noise; without keys, the leader wins. Raises ``ValueError`` for samples that are not
    positive, unequal numbers of rounds, and baselines that took no part in the last round.
    """
    unknown = set(baselines) - set(samples)
    if unknown:
        raise ValueError(f"baselines {sorted(unknown)} are not among the finalists {sorted(samples)}")
    return _Decision(RoundFigures(samples, statistic, processes, disturbed), baselines, tie_keys, beside).verdict()


class _Decision:
    """The rules, over the figures of one race."""

    def __init__(
        self, figures: RoundFigures, baselines: Collection[str], tie_keys: TieKeys | None, beside: Collection[str]
    ) -> None:
        self._figures, self._tie_keys = figures, tie_keys
        self._baseline = figures.fastest(baselines)
        self._other_baselines = [n for n in figures.running if n in baselines and n != self._baseline]
        self._candidates = [name for name in figures.running if name not in baselines and name not in beside]
        self._against = figures.against(self._baseline, self._candidates)

    def verdict(self) -> Verdict:
        """Decide."""
        better = [name for name in self._candidates if self._faster(name, self._baseline, self._against[name])]
        if not better:
            return self._nothing_better()
        # By pairs: if the host's speed changes between rounds, medians over rounds may have another order.
        leader = min(better, key=lambda name: (self._against[name].log_ratio, name))
        rivals = self._figures.against(leader, [name for name in self._candidates if name != leader])
        baselines = self._figures.against(leader, self._other_baselines)
        tied = [name for name, rival in rivals.items() if not self._faster(leader, name, rival, sign=1)]
        hidden = [name for name, rival in {**rivals, **baselines}.items() if rival.in_doubt]
        if hidden:
            return self._outcome(self._baseline, "undecided", [leader, *tied, *hidden], settled=False)
        if not tied:
            return self._outcome(leader, "promoted", [], settled=True)
        near = [name for name in tied if name in better and abs(rivals[name].log_ratio) < MIN_EFFECT]
        keys = self._tie_keys
        winner = min((leader, *near), key=lambda name: (*keys[name], name)) if keys is not None else leader
        settled = all(rivals[name].equal for name in tied)
        return self._outcome(winner, "tie", [name for name in (leader, *tied) if name != winner], settled=settled)

    def _nothing_better(self) -> Verdict:
        open_ = [name for name in self._candidates if self._against[name].could_lead]
        if open_:
            return self._outcome(self._baseline, "undecided", open_, settled=False)
        tied = [name for name in self._candidates if not self._against[name].differs(1)]
        settled = all(self._against[name].equal for name in tied)
        return self._outcome(self._baseline, "baseline", tied, settled=settled)

    def _faster(self, fast: str, slow: str, comparison: Comparison, *, sign: int = -1) -> bool:
        """Return whether ``fast`` beats ``slow``; ``sign`` is -1 if ``slow`` is the comparison's reference, else 1."""
        return comparison.differs(sign) and self._figures.figure(fast) < self._figures.figure(slow)

    def _outcome(self, winner: str, status: VerdictStatus, tied_with: Sequence[str], *, settled: bool) -> Verdict:
        figures = self._figures
        against = figures.against(winner, [name for name in figures.running if name != winner])
        baseline_figure = figures.figure(self._baseline)
        results = tuple(
            FinalistResult(
                name=name,
                figure=figures.figure(name),
                interval=median_interval(figures.of(name)),
                rounds=len(figures.of(name)),
                speedup=baseline_figure / figures.figure(name),
                p_value=against[name].p_value if name in against else None,
                detectable_effect=against[name].detectable if name in against else None,
                frozen=name not in figures.running,
            )
            for name in figures.names
        )
        apart = {
            process
            for name in {*tied_with, *figures.running[:1]} & set(self._against)
            for process in self._against[name].apart
        }
        return Verdict(
            winner=winner,
            baseline=self._baseline,
            status=status,
            tied_with=tuple(sorted(set(tied_with))),
            settled=settled,
            rounds=figures.rounds,
            finalists=results,
            disturbed=figures.disturbed_processes(apart),
        )
