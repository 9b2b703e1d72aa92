"""Finalists compared in pairs, round by round: RoundFigures and Comparison.

A disturbance always makes a measurement slower, and it affects some processes and rounds more than others. So three
things are separated from a true difference:

- A *disturbed block* was taken while others used the cores, and no sample of it is undisturbed. Pairs are compared over
  the rounds in which neither side is disturbed, if these are enough. If they are not, a finalist counts as faster than
  a disturbed one only if even the fastest sample of the latter is slower, by :data:`LOAD_MARGIN` or, if it was
  disturbed in every round, :data:`HIDDEN_MARGIN`.
- A *process that lies apart* differs from the median of the processes by more than :data:`APART` and by more than five
  of their robust standard deviations. It is set aside as long as most processes, and three of them, agree.
- The remaining differences between processes are part of the margin that a winner needs.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from autotune.measure.statistics import (
    detectable_effect,
    holm,
    median,
    middle,
    paired_test,
    process_variance,
    processes_apart,
)

ALPHA = 0.0158
"""Pocock's bound for each of five looks, which together keep the chance of a false positive at 5%."""

MIN_EFFECT = math.log(1.005)
"""No smaller log-ratio than half a percent makes a winner."""

PROCESS_ERRORS = {2: 12.7, 3: 4.3}
"""The standard errors of its processes' medians by which a winner leads: Student's 95% bound for two and three
processes. More than three keep the bound of three, because five looks find more than one.

In simulated finals of two equals whose processes differ by 1%, and rounds by the same, the five looks separated them in
52% of repeats by the rounds alone, in 16% by the detectable effect, and in 5% with this bound (1.5% if five processes
lead to the first look). With it they still found each lead of 2% if processes differ by 0.2%.
"""

ERRORS_WITHOUT_SOME = 5.0
"""The same if processes were set aside, because the remaining ones agree by choice: with 4.3, 5.2% of equals were
separated if one process in five ran one of the two 1.5 to 10 times slower (``python -m autotune.programs.decisions``).
"""

APART = math.log(1.25)
"""A process is set aside only if it lies further from the others than this; if fewer than :data:`FEWEST_AGREE` agree,
none is set aside: processes differ by several percent for no visible reason."""

FEWEST_AGREE = 3

LOAD_MARGIN, HIDDEN_MARGIN = math.log(1.5), math.log(4.0)
"""The largest ratio of a finalist's fastest sample to its time on a quiet host: if it was undisturbed in a few rounds,
and if it was disturbed in all.

Beside a process that burned each of two cores, the fastest of 19 disturbed samples of an encoder on two threads, whose
barriers spin, took 1.8 times its time on the quiet host (the median 4.7 times), of seven other candidates 0.9 to 1.2
times; of a perceptron on two threads, beside more load, the fastest of 9 took 3.8 times."""

FEW_ROUNDS = 3

MATERIAL = math.log(1.10)
"""A lead that matters to a user: finals that can neither show nor exclude one are undecided."""

FREEZE_MARGIN = math.log(1.10)
FREEZE_ROUNDS = 8

Statistic = Callable[[Sequence[float]], float]
"""Reduces a block of samples to one figure: its median, or for a tail its high order statistic."""

Samples = Mapping[str, Sequence[Sequence[float] | None]]
"""For each finalist one block of figures a round, less is better; ``None`` in the rounds without it."""

Disturbed = Mapping[str, Sequence[bool]]
"""For each finalist whether its block of each round is disturbed."""


def fewest_rounds(candidates: int) -> int:
    """Return the number of rounds from which a clear difference can beat the baseline and every other candidate.

    The smallest two-sided p-value of Wilcoxon's test, reached if all n pairs point one way, is 2 / 2**n, and Holm
    multiplies the smallest by the number c of candidates. So n is the least with 2 * c / 2**n < :data:`ALPHA`: 7 for
    one candidate (or none), 8 for two, 9 up to four, 10 up to eight, 11 up to 16.
    """
    return math.floor(math.log2(2 * max(1, candidates) / ALPHA)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One finalist against a reference: ``log_ratio`` is positive if the finalist is slower.

    ``processes`` is the number of those that count, ``apart`` holds those that were set aside. ``in_doubt`` says that
    the slower of the two was disturbed and may be the faster on a quiet host.
    """

    log_ratio: float
    p_value: float
    detectable: float
    process_error: float
    processes: int
    apart: frozenset[int]
    in_doubt: bool

    @property
    def margin(self) -> float:
        """The least log-ratio that makes a winner."""
        errors = PROCESS_ERRORS[min(max(2, self.processes), max(PROCESS_ERRORS))]
        errors = max(errors, ERRORS_WITHOUT_SOME) if self.apart else errors
        return max(MIN_EFFECT, self.detectable, errors * self.process_error)

    def differs(self, sign: int) -> bool:
        """Return whether the finalist is certainly slower (``sign=1``) or faster (``sign=-1``) than the reference."""
        return not self.in_doubt and self.p_value < ALPHA and sign * self.log_ratio >= self.margin

    @property
    def equal(self) -> bool:
        """Whether the two surely differ by less than half a percent."""
        return not self.in_doubt and self.detectable <= MIN_EFFECT and abs(self.log_ratio) < MIN_EFFECT

    @property
    def could_lead(self) -> bool:
        """Whether the finalist may lead the reference by :data:`MATERIAL`, with nothing shown either way."""
        if self.differs(1) or self.differs(-1):
            return False
        return self.in_doubt or self.margin - self.log_ratio > MATERIAL


class RoundFigures:
    """One figure a round for every finalist, the ``statistic`` of its block, and the comparisons of these figures."""

    def __init__(
        self,
        samples: Samples,
        statistic: Statistic = median,
        processes: Sequence[int] | None = None,
        disturbed: Disturbed | None = None,
    ) -> None:
        lengths = {len(blocks) for blocks in samples.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"every finalist needs the same number of rounds, at least one; found {sorted(lengths)}")
        self.rounds = lengths.pop()
        self._processes = [0] * self.rounds if processes is None else list(processes)
        if len(self._processes) != self.rounds:
            raise ValueError(f"each of {self.rounds} rounds has one process, found {len(self._processes)}")
        self._disturbed = {name: list((disturbed or {}).get(name, [False] * self.rounds)) for name in samples}
        if any(len(marks) != self.rounds for marks in self._disturbed.values()):
            raise ValueError(f"each of {self.rounds} rounds is disturbed for a finalist or not")
        self._samples = samples
        self._figures = {
            name: [None if block is None else statistic(block) for block in blocks] for name, blocks in samples.items()
        }
        self._pairs: dict[tuple[str, str], Comparison] = {}
        for name, values in self._figures.items():
            if all(value is None for value in values):
                raise ValueError(f"finalist {name!r} has no samples")
        self.names = sorted(self._figures, key=lambda name: (self.figure(name), name))
        self.running = [name for name in self.names if self._figures[name][-1] is not None]

    def of(self, name: str) -> list[float]:
        """Return the figures of the rounds that count for a finalist: undisturbed ones, or all if there are none."""
        values = self._figures[name]
        clean = [v for v, bad in zip(values, self._disturbed[name], strict=True) if v is not None and not bad]
        return clean or [value for value in values if value is not None]

    def figure(self, name: str) -> float:
        """Return the median of a finalist's figures."""
        return median(self.of(name))

    def log_ratios(self, name: str, reference: str) -> list[float]:
        """Return log(name / reference) for each round that counts for both."""
        return self._pair(name, reference)[0]

    def differ(self, name: str, other: str) -> bool:
        """Return whether the median log-ratio of two finalists, over their common rounds, exceeds the noise."""
        if not self.log_ratios(name, other):
            return False
        comparison = self._compared(name, other)
        return not comparison.in_doubt and abs(comparison.log_ratio) > comparison.margin

    def against(self, reference: str, others: Collection[str]) -> dict[str, Comparison]:
        """Compare each of the others with the reference, p-values adjusted among them."""
        single = {name: self._compared(name, reference) for name in others}
        adjusted = holm([comparison.p_value for comparison in single.values()])
        return {
            name: replace(comparison, p_value=p_value)
            for (name, comparison), p_value in zip(single.items(), adjusted, strict=True)
        }

    def fastest(self, names: Collection[str]) -> str:
        """Return the fastest of the named finalists that is still running; ``ValueError`` if none is."""
        for name in self.running:
            if name in names:
                return name
        raise ValueError(f"none of {sorted(names)} took part in the last round")

    def far_behind(self, baselines: Collection[str], beside: Collection[str] = ()) -> frozenset[str]:
        """Return the finalists that may stop: at least 8 rounds, each more than 10% slower than the best.

        A baseline may stop only if it is that far behind the fastest baseline, which never stops. Those ``beside``,
        which decide nothing, never stop.
        """
        running = [name for name in self.running if name not in beside]
        best, baseline = running[0], self.fastest(baselines)
        return frozenset(
            name for name in running if name != best and self._far_behind(name, baseline if name in baselines else best)
        )

    def disturbed_processes(self, apart: Collection[int]) -> tuple[int, ...]:
        """Return the processes of which more than half of the rounds are disturbed, and those that lie apart."""
        rounds = Counter(self._processes)
        struck = Counter(
            process
            for index, process in enumerate(self._processes)
            if any(self._disturbed[name][index] for name in self.running)
        )
        return tuple(sorted({process for process in rounds if 2 * struck[process] > rounds[process]} | {*apart}))

    def _far_behind(self, name: str, reference: str) -> bool:
        ratios = self.log_ratios(name, reference)
        behind = len(ratios) >= FREEZE_ROUNDS and min(ratios) > FREEZE_MARGIN
        return behind and not self._in_doubt(name, reference)

    def _compared(self, name: str, reference: str) -> Comparison:
        """Compare two finalists without adjustment; a pair is tested once, whichever of the two is the reference."""
        first, second = sorted((name, reference))
        if (first, second) not in self._pairs:
            self._pairs[first, second] = self._tested(first, second)
        comparison = self._pairs[first, second]
        return comparison if name == first else replace(comparison, log_ratio=-comparison.log_ratio)

    def _tested(self, name: str, reference: str) -> Comparison:
        ratios, processes = self._pair(name, reference)
        apart = processes_apart(ratios, processes, least=APART, fewest=FEWEST_AGREE)
        kept = [(ratio, process) for ratio, process in zip(ratios, processes, strict=True) if process not in apart]
        ratios, processes = [ratio for ratio, _ in kept], [process for _, process in kept]
        log_ratio = middle(sorted(ratios))
        slow, fast = (name, reference) if log_ratio > 0 else (reference, name)
        return Comparison(
            log_ratio=log_ratio,
            p_value=paired_test(ratios),
            detectable=detectable_effect(ratios, processes),
            process_error=math.sqrt(process_variance(ratios, processes)),
            processes=len(set(processes)),
            apart=apart,
            in_doubt=self._in_doubt(slow, fast),
        )

    def _pair(self, name: str, reference: str) -> tuple[list[float], list[int]]:
        """Return the log-ratios that count, and the process of each: of undisturbed rounds if these are enough."""
        both = [
            (index, math.log(mine / theirs))
            for index, (mine, theirs) in enumerate(zip(self._figures[name], self._figures[reference], strict=True))
            if mine is not None and theirs is not None
        ]
        clean = [(i, ratio) for i, ratio in both if not (self._disturbed[name][i] or self._disturbed[reference][i])]
        counted = clean if self._enough([index for index, _ in clean]) else both
        return [ratio for _, ratio in counted], [self._processes[index] for index, _ in counted]

    def _enough(self, rounds: Sequence[int]) -> bool:
        """Return whether these rounds, with their processes, suffice for a decision."""
        processes = {self._processes[index] for index in rounds}
        return len(rounds) >= fewest_rounds(1) and len(processes) >= min(FEWEST_AGREE, len(set(self._processes)))

    def _in_doubt(self, slow: str, fast: str) -> bool:
        """Return whether a slower finalist was disturbed so much that it may be the faster one on a quiet host."""
        both = [
            index
            for index in range(self.rounds)
            if self._figures[slow][index] is not None and self._figures[fast][index] is not None
        ]
        if not any(self._disturbed[slow][index] for index in both):
            return False
        clean = [i for i in both if not (self._disturbed[slow][i] or self._disturbed[fast][i])]
        if self._enough(clean):
            return False
        own = [index for index in both if not self._disturbed[slow][index]]
        rounds, margin = (own, LOAD_MARGIN) if len(own) >= FEW_ROUNDS else (both, HIDDEN_MARGIN)
        quickest = min(value for index in rounds for value in self._samples[slow][index] or ())
        return math.log(quickest / self.figure(fast)) < margin
