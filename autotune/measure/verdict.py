"""Who won the finals, from their raw samples alone: Verdict.

A finalist beats another when Wilcoxon's test on the log-ratios of their common rounds, Holm-adjusted, gives less than
:data:`ALPHA`, its median is the lower one, and the median ratio is at least :data:`MIN_EFFECT`, the detectable effect
2.8 * sqrt(s_b^2 / k + s_d^2 / n), and :data:`PROCESS_ERRORS` standard errors of the processes' medians. Everything else
is a tie.

Rounds of one process share what that process happens to be, and what is deployed is a new one, so n rounds of k
processes are not n. Pairing does not remove it: in ten committed finals on an H200 the paired log-ratios of two fresh
processes differ by 2.0% in the median and 19% in the 90th percentile (by 0.5% and 3.4% where both are CUDA graphs).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from autotune.measure.statistics import (
    detectable_effect,
    holm,
    median,
    median_interval,
    middle,
    paired_test,
    process_variance,
)

ALPHA = 0.0158
"""Pocock's bound for each of five looks, which together keep the chance of a false positive at 5%."""

MIN_EFFECT = math.log(1.005)
"""No smaller log-ratio than half a percent makes a winner."""

PROCESS_ERRORS = {2: 12.7, 3: 4.3}
"""A winner leads by so many standard errors of its processes' medians: Student's 95% bound for two and three processes.
More than three keep the bound of three, for five looks find more than one.

In simulated finals of two equals whose processes differ by 1%, and rounds by as much, the five looks told them apart in
52% of repeats by the rounds alone, in 16% by the detectable effect, and in 5% with this bound (1.5% where five
processes lead to the first look). With it they still found each lead of 2% where processes differ by 0.2%.
"""

FREEZE_MARGIN = math.log(1.10)
FREEZE_ROUNDS = 8

Statistic = Callable[[Sequence[float]], float]
"""What a block of samples comes to: its median, or for a tail its high order statistic."""

RawSamples = Mapping[str, Sequence[Sequence[float] | None]]
"""For each finalist one block of milliseconds a round, ``None`` in the rounds it took no part in."""

TieKeys = Mapping[str, tuple[Any, ...]]
"""For each finalist what decides a tie, smallest first: memory in bytes, rank of its backend, digest."""


def fewest_rounds(candidates: int) -> int:
    """Return from how many rounds on a clear difference can beat the baseline and every other candidate.

    The smallest two-sided p-value of Wilcoxon's test, where all n pairs point one way, is 2 / 2**n, and Holm multiplies
    the smallest by the number c of candidates. So n is the least with 2 * c / 2**n < :data:`ALPHA`: 7 for one candidate
    (or none), 8 for two, 9 up to four, 10 up to eight, 11 up to 16.
    """
    return math.floor(math.log2(2 * max(1, candidates) / ALPHA)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalistResult:
    """What the finals say about one finalist.

    ``figure`` is the median of its figures, one a round, and ``interval`` their 95% interval: milliseconds where
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

    ``status`` is ``promoted`` (the winner beats everyone), ``tie`` (it beats the baseline, not everyone) or
    ``baseline`` (nothing beats the baseline, which is then the winner). ``tied_with`` are the others that nobody could
    tell from the best. ``settled`` says that more rounds would not change the outcome: what is not beaten is known to
    be equal within half a percent.
    """

    winner: str
    baseline: str
    status: Literal["promoted", "tie", "baseline"]
    tied_with: tuple[str, ...]
    settled: bool
    rounds: int
    finalists: tuple[FinalistResult, ...]

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

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        data["tied_with"] = list(self.tied_with)
        data["finalists"] = [{**result, "interval": list(result["interval"])} for result in data["finalists"]]
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """One finalist against a reference: ``log_ratio`` is positive where the finalist is the slower one."""

    log_ratio: float
    p_value: float
    detectable: float
    process_error: float
    processes: int

    @property
    def margin(self) -> float:
        errors = PROCESS_ERRORS[min(max(2, self.processes), max(PROCESS_ERRORS))]
        return max(MIN_EFFECT, self.detectable, errors * self.process_error)

    def differs(self, sign: int) -> bool:
        """Whether the finalist is certainly slower (``sign=1``) or faster (``sign=-1``) than the reference."""
        return self.p_value < ALPHA and sign * self.log_ratio >= self.margin

    @property
    def equal(self) -> bool:
        """Whether the two are known to differ by less than half a percent."""
        return self.detectable <= MIN_EFFECT and abs(self.log_ratio) < MIN_EFFECT


class RoundMedians:
    """One figure a round for every finalist, the ``statistic`` of its block, and what follows from them."""

    def __init__(
        self, samples: RawSamples, statistic: Statistic = median, processes: Sequence[int] | None = None
    ) -> None:
        lengths = {len(blocks) for blocks in samples.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"every finalist needs the same number of rounds, at least one; found {sorted(lengths)}")
        self.rounds = lengths.pop()
        self._processes = [0] * self.rounds if processes is None else list(processes)
        if len(self._processes) != self.rounds:
            raise ValueError(f"each of {self.rounds} rounds has one process, found {len(self._processes)}")
        self._medians = {
            name: [None if block is None else statistic(block) for block in blocks] for name, blocks in samples.items()
        }
        self._pairs: dict[tuple[str, str], _Comparison] = {}
        for name, values in self._medians.items():
            if all(value is None for value in values):
                raise ValueError(f"finalist {name!r} has no samples")
        self.names = sorted(self._medians, key=lambda name: (self.figure(name), name))
        self.running = [name for name in self.names if self._medians[name][-1] is not None]

    def of(self, name: str) -> list[float]:
        """Return the medians of the rounds that a finalist took part in."""
        return [value for value in self._medians[name] if value is not None]

    def figure(self, name: str) -> float:
        """Return the median of a finalist's medians."""
        return median(self.of(name))

    def log_ratios(self, name: str, reference: str) -> list[float]:
        """Return log(name / reference) for each round that both took part in."""
        pairs = zip(self._medians[name], self._medians[reference], strict=True)
        return [math.log(mine / theirs) for mine, theirs in pairs if mine is not None and theirs is not None]

    def told_apart(self, one: str, other: str) -> bool:
        """Whether the median log-ratio of the rounds that both took part in is more than what noise could make it."""
        if not self.log_ratios(one, other):
            return False
        found = self._compared(one, other)
        return abs(found.log_ratio) > found.margin

    def against(self, reference: str, others: Collection[str]) -> dict[str, _Comparison]:
        """Compare each of the others with the reference, p-values adjusted among them."""
        single = {name: self._compared(name, reference) for name in others}
        adjusted = holm([comparison.p_value for comparison in single.values()])
        return {
            name: replace(comparison, p_value=p_value)
            for (name, comparison), p_value in zip(single.items(), adjusted, strict=True)
        }

    def _compared(self, name: str, reference: str) -> _Comparison:
        """Compare two finalists without adjustment; a pair is tested once, whichever of the two is the reference."""
        first, second = sorted((name, reference))
        if (first, second) not in self._pairs:
            ratios = self.log_ratios(first, second)
            processes = self._processes_of(first, second)
            self._pairs[first, second] = _Comparison(
                log_ratio=middle(sorted(ratios)),
                p_value=paired_test(ratios),
                detectable=detectable_effect(ratios, processes),
                process_error=math.sqrt(process_variance(ratios, processes)),
                processes=len(set(processes)),
            )
        found = self._pairs[first, second]
        return found if name == first else replace(found, log_ratio=-found.log_ratio)

    def _processes_of(self, name: str, reference: str) -> list[int]:
        """Return the process of each round that both took part in."""
        rounds = zip(self._medians[name], self._medians[reference], self._processes, strict=True)
        return [process for mine, theirs, process in rounds if mine is not None and theirs is not None]

    def fastest(self, names: Collection[str]) -> str:
        """Return the first of the names in order of latency among those still running; ``ValueError`` if none is."""
        for name in self.running:
            if name in names:
                return name
        raise ValueError(f"none of {sorted(names)} took part in the last round")

    def far_behind(self, baselines: Collection[str]) -> frozenset[str]:
        """Name those that may stop: at least 8 rounds, each more than 10% slower than the best.

        A baseline may stop only if it is that far behind the fastest baseline, which never stops.
        """
        best, baseline = self.running[0], self.fastest(baselines)
        return frozenset(
            name
            for name in self.running
            if name != best and self._far_behind(name, baseline if name in baselines else best)
        )

    def _far_behind(self, name: str, reference: str) -> bool:
        ratios = self.log_ratios(name, reference)
        return len(ratios) >= FREEZE_ROUNDS and min(ratios) > FREEZE_MARGIN


def verdict_from_samples(
    samples: RawSamples,
    *,
    baselines: Collection[str],
    tie_keys: TieKeys | None = None,
    statistic: Statistic = median,
    processes: Sequence[int] | None = None,
) -> Verdict:
    """Decide the finals from raw samples; the order of the finalists does not matter.

    ``samples`` may be any positive figures of which less is better; ``statistic`` gives a block's single figure.
    ``processes`` names the process of each round; without it all are taken to come from one.

    The baseline is the fastest of ``baselines``. The leader is the finalist that beats it by most, paired within the
    rounds; it is promoted if it beats all others too. Otherwise the smallest tie key wins among the leader and those
    that also beat the baseline and lie within half a percent of the leader, so that being simpler costs next to
    nothing however much the noise hides; without keys, the leader. Raises ``ValueError`` for samples that are not
    positive, unequal numbers of rounds, and baselines that took no part in the last round.
    """
    medians = RoundMedians(samples, statistic, processes)
    unknown = set(baselines) - set(samples)
    if unknown:
        raise ValueError(f"baselines {sorted(unknown)} are not among the finalists {sorted(samples)}")
    baseline = medians.fastest(baselines)
    candidates = [name for name in medians.running if name not in baselines]
    against_baseline = medians.against(baseline, candidates)
    better = [name for name in candidates if _faster(medians, name, baseline, against_baseline[name])]
    if not better:
        tied = [name for name in candidates if not against_baseline[name].differs(1)]
        settled = all(against_baseline[name].equal for name in tied)
        return _verdict(medians, baseline, baseline, "baseline", tied, settled)
    # By pairs: where the host's speed changes between rounds, medians over rounds may come out in another order.
    leader = min(better, key=lambda name: (against_baseline[name].log_ratio, name))
    rivals = medians.against(leader, [name for name in candidates if name != leader])
    tied = [name for name, rival in rivals.items() if not _faster(medians, leader, name, rival, sign=1)]
    if not tied:
        return _verdict(medians, baseline, leader, "promoted", [], True)
    near = [name for name in tied if name in better and abs(rivals[name].log_ratio) < MIN_EFFECT]
    winner = min((leader, *near), key=lambda name: (*tie_keys[name], name)) if tie_keys is not None else leader
    settled = all(rivals[name].equal for name in tied)
    return _verdict(medians, baseline, winner, "tie", [name for name in (leader, *tied) if name != winner], settled)


def _faster(medians: RoundMedians, fast: str, slow: str, comparison: _Comparison, *, sign: int = -1) -> bool:
    """Whether ``fast`` beats ``slow``; ``sign`` is -1 where ``slow`` is the comparison's reference, else 1."""
    return comparison.differs(sign) and medians.figure(fast) < medians.figure(slow)


def _verdict(
    medians: RoundMedians,
    baseline: str,
    winner: str,
    status: Literal["promoted", "tie", "baseline"],
    tied_with: Sequence[str],
    settled: bool,
) -> Verdict:
    against = medians.against(winner, [name for name in medians.running if name != winner])
    baseline_figure = medians.figure(baseline)
    results = tuple(
        FinalistResult(
            name=name,
            figure=medians.figure(name),
            interval=median_interval(medians.of(name)),
            rounds=len(medians.of(name)),
            speedup=baseline_figure / medians.figure(name),
            p_value=against[name].p_value if name in against else None,
            detectable_effect=against[name].detectable if name in against else None,
            frozen=name not in medians.running,
        )
        for name in medians.names
    )
    return Verdict(
        winner=winner,
        baseline=baseline,
        status=status,
        tied_with=tuple(sorted(tied_with)),
        settled=settled,
        rounds=medians.rounds,
        finalists=results,
    )
