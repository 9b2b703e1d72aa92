"""Finals decided again from recorded samples: the quality of their winners, and the agreement of runs.

Nothing is measured here. :func:`winner_regret` draws rounds from one run, :func:`agreement` compares runs of one study.
"""

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from autotune.measure.paired import Disturbed, RoundFigures, Samples, Statistic
from autotune.measure.statistics import median
from autotune.measure.verdict import verdict_from_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The agreement of several runs of one study.

    ``winners`` holds each run's winner, ``accepted`` each run's winner with those tied with it, both in the order of
    the runs. ``taus`` holds (a run, another, Kendall's tau-b of the two) for every pair of runs; tau is ``None`` if no
    two finalists differ. ``same_winner``: every run's winner won or tied in every other run.
    """

    winners: tuple[str, ...]
    accepted: tuple[tuple[str, ...], ...]
    taus: tuple[tuple[int, int, float | None], ...]
    same_winner: bool

    @property
    def lowest_tau(self) -> float | None:
        """The smallest tau; ``None`` without one."""
        return min((tau for _, _, tau in self.taus if tau is not None), default=None)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "winners": list(self.winners),
            "accepted": [list(names) for names in self.accepted],
            "taus": [list(entry) for entry in self.taus],
            "same_winner": self.same_winner,
        }


def winner_regret(
    samples: Samples,
    reruns: int,
    rng: random.Random,
    baselines: Collection[str],
    *,
    statistic: Statistic = median,
    processes: Sequence[int] | None = None,
    disturbed: Disturbed | None = None,
) -> list[float]:
    """Replay the finals and return by which share each rerun's winner is slower than the best finalist (0.01: 1%).

    A rerun draws the recorded number of rounds, with replacement, the same for all finalists, and keeps them in their
    recorded order, so that a finalist that had left by the last of them has left, and in their recorded ``processes``,
    one a round. A finalist without a drawn round is not in that rerun. Both latencies are those of all recorded
    samples. ``ValueError`` if there can be no verdict.
    """
    if reruns < 1:
        raise ValueError(f"at least one rerun is needed, found {reruns}")
    marks = disturbed or {}
    recorded = RoundFigures(samples, statistic, processes, marks)
    best_ms = recorded.figure(recorded.names[0])
    regrets = []
    for _ in range(reruns):
        drawn = sorted(rng.choices(range(recorded.rounds), k=recorded.rounds))
        rounds = {name: [blocks[index] for index in drawn] for name, blocks in samples.items()}
        present = {name: blocks for name, blocks in rounds.items() if any(block is not None for block in blocks)}
        running = [name for name in baselines if name in present]
        drawn_processes = None if processes is None else [processes[index] for index in drawn]
        again = {name: [marks[name][index] for index in drawn] for name in present if name in marks}
        verdict = verdict_from_samples(
            present, baselines=running, statistic=statistic, processes=drawn_processes, disturbed=again
        )
        regrets.append(recorded.figure(verdict.winner) / best_ms - 1)
    return regrets


def kendall_tau_b(
    first: Mapping[str, float], second: Mapping[str, float], *, same: Callable[[str, str], bool]
) -> float | None:
    """Return the similarity of the orders of two runs, over their common finalists: 1 the same, -1 the reverse.

    A pair that is the ``same`` is a tie on both sides; equal latencies are a tie on their side. Being the same is not
    transitive, so ties are counted by pairs and not turned into ranks: tau-b is the correlation of the signs of all
    pairwise differences (Daniels, Biometrika 33, 1944), and if the ties do form ranks it is SciPy's. ``None`` if in a
    run no two finalists differ.
    """
    agree = untied_first = untied_second = 0
    for name, other in combinations(sorted(first.keys() & second.keys()), 2):
        if same(name, other):
            continue
        sign_first, sign_second = (_sign(run[name] - run[other]) for run in (first, second))
        agree += sign_first * sign_second
        untied_first += abs(sign_first)
        untied_second += abs(sign_second)
    return agree / math.sqrt(untied_first * untied_second) if untied_first and untied_second else None


def agreement(
    runs: Sequence[Samples],
    baselines: Collection[str],
    *,
    statistic: Statistic = median,
    processes: Sequence[Sequence[int] | None] | None = None,
    disturbed: Sequence[Disturbed] | None = None,
) -> Agreement:
    """Compare the verdicts and the orders of several runs of one study.

    For tau two finalists are the same if they differ in neither run: in each the median of their per-round log-ratios
    is at most the lead that a winner needs. A difference that is sure in one run and contradicted by the other
    therefore counts against their agreement. ``processes`` holds for each run the process of each round, ``disturbed``
    whether each block is disturbed. Raises ``ValueError`` for fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"runs agree with one another, so at least two are needed, found {len(runs)}")
    none = [None] * len(runs)
    recorded = list(zip(runs, processes or none, disturbed or none, strict=True))
    verdicts = [
        verdict_from_samples(run, baselines=baselines, statistic=statistic, processes=by_round, disturbed=marks)
        for run, by_round, marks in recorded
    ]
    medians = [RoundFigures(run, statistic, by_round, marks) for run, by_round, marks in recorded]
    latencies = [{name: run.figure(name) for name in run.names} for run in medians]

    def tau(first: int, second: int) -> float | None:
        pair = (medians[first], medians[second])
        return kendall_tau_b(
            latencies[first], latencies[second], same=lambda a, b: not any(run.differ(a, b) for run in pair)
        )

    winners = tuple(verdict.winner for verdict in verdicts)
    accepted = tuple((verdict.winner, *verdict.tied_with) for verdict in verdicts)
    return Agreement(
        winners=winners,
        accepted=accepted,
        taus=tuple((first, second, tau(first, second)) for first, second in combinations(range(len(runs)), 2)),
        same_winner=all(winner in names for winner in winners for names in accepted),
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
