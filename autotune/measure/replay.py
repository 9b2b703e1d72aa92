"""Finals decided again from recorded samples: how good their winners are, and whether runs agree.

Nothing is measured here. :func:`winner_regret` draws rounds from one run, :func:`agreement` compares runs of one study.
"""

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from autotune.measure.paired import Disturbed, RoundFigures, Samples, Statistic
from autotune.measure.statistics import median
from autotune.measure.verdict import verdict_from_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Return whether several runs of one study tell the same story.

    ``winners`` holds each run's winner, ``accepted`` each run's winner with those tied with it, both in the order of
    the runs. ``taus`` holds (one run, another, Kendall's tau-b of the two) for every pair of runs, ``None`` if no
    two finalists can be told apart. ``same_winner``: every run's winner won or tied in every other run.
    """

    winners: tuple[str, ...]
    accepted: tuple[tuple[str, ...], ...]
    taus: tuple[tuple[int, int, float | None], ...]
    same_winner: bool

    @property
    def lowest_tau(self) -> float | None:
        """The smallest tau there is."""
        return min((tau for _, _, tau in self.taus if tau is not None), default=None)

    def as_dict(self) -> dict[str, Any]:
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
    """Replay the finals and return by how much each rerun's winner is slower than the best finalist (0.01: 1%).

    A rerun draws as many rounds as were recorded, with replacement, the same for all finalists, and keeps them in their
    recorded order, so that who had left by the last of them has left, and in their recorded ``processes``, one a round.
    A finalist none of whose rounds is drawn is not in that rerun. Both latencies are those of all recorded samples.
    ``ValueError`` if no verdict can be given.
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
        came_from = None if processes is None else [processes[index] for index in drawn]
        again = {name: [marks[name][index] for index in drawn] for name in present if name in marks}
        verdict = verdict_from_samples(
            present, baselines=running, statistic=statistic, processes=came_from, disturbed=again
        )
        regrets.append(recorded.figure(verdict.winner) / best_ms - 1)
    return regrets


def kendall_tau_b(
    first: Mapping[str, float], second: Mapping[str, float], *, same: Callable[[str, str], bool]
) -> float | None:
    """Return how alike two runs order the finalists that both have: 1 the same, -1 the reverse.

    A pair that is the ``same`` is a tie on both sides, as are equal latencies on theirs. Being the same is not
    transitive, so ties are taken pair by pair and not turned into ranks: tau-b is the correlation of the signs of all
    pairwise differences (Daniels, Biometrika 33, 1944), and if the ties do make ranks it is SciPy's. ``None`` where
    a run tells no two finalists apart.
    """
    agree = told_first = told_second = 0
    for one, other in combinations(sorted(first.keys() & second.keys()), 2):
        if same(one, other):
            continue
        sign_first, sign_second = (_sign(run[one] - run[other]) for run in (first, second))
        agree += sign_first * sign_second
        told_first += abs(sign_first)
        told_second += abs(sign_second)
    return agree / math.sqrt(told_first * told_second) if told_first and told_second else None


def agreement(
    runs: Sequence[Samples],
    baselines: Collection[str],
    *,
    statistic: Statistic = median,
    processes: Sequence[Sequence[int] | None] | None = None,
    disturbed: Sequence[Disturbed] | None = None,
) -> Agreement:
    """Compare the verdicts and the orders of several runs of one study.

    For tau two finalists are the same where neither of the two runs tells them apart: in each the median of their
    per-round log-ratios is at most what a winner has to lead by. A difference that one run is sure of and the other
    contradicts therefore counts against them. ``processes`` holds for each run the process of each round, ``disturbed``
    which blocks are disturbed. Raises ``ValueError`` for fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"runs agree with one another, so at least two are needed, found {len(runs)}")
    none = [None] * len(runs)
    told = list(zip(runs, processes or none, disturbed or none, strict=True))
    verdicts = [
        verdict_from_samples(run, baselines=baselines, statistic=statistic, processes=came_from, disturbed=marks)
        for run, came_from, marks in told
    ]
    medians = [RoundFigures(run, statistic, came_from, marks) for run, came_from, marks in told]
    latencies = [{name: run.figure(name) for name in run.names} for run in medians]

    def tau(one: int, other: int) -> float | None:
        pair = (medians[one], medians[other])
        return kendall_tau_b(
            latencies[one], latencies[other], same=lambda a, b: not any(run.told_apart(a, b) for run in pair)
        )

    winners = tuple(verdict.winner for verdict in verdicts)
    accepted = tuple((verdict.winner, *verdict.tied_with) for verdict in verdicts)
    return Agreement(
        winners=winners,
        accepted=accepted,
        taus=tuple((one, other, tau(one, other)) for one, other in combinations(range(len(runs)), 2)),
        same_winner=all(winner in names for winner in winners for names in accepted),
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
