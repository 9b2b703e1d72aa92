"""The rule that chooses the backend of the next trial.

It is expected improvement per trial time: with x the logarithm of a latency,

``score = share · E[max(0, best - x)] / (1 + running) / cost ** THRIFT``

- The next x of a backend is assumed to be normal. Its mean is that of the backend's own latencies; its variance is
  theirs shrunk towards ``SPREAD²``, which counts as ``PRIOR_TRIALS`` trials, plus the uncertainty of the mean. ``best``
  is the study's best x. So a backend close behind the leader whose configurations differ much is worth a trial; one far
  behind, or one whose trials no longer spread, is not. A backend without a completed trial is judged by the mean over
  all.
- ``share`` is the smoothed share of its trials that worked, and ``running`` the number of its running trials.
- ``cost`` is the mean time of the backend's trials over the mean of all backends'. ``THRIFT`` is below 1 because a
  study's budget counts trials as well as time: a build that takes ten times as long need not promise ten times as much.

A backend without any trial goes first; ties go to the backend that was named first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune.search.history import TrialOutcome

SPREAD = 0.3
"""Standard deviation of log latency within a backend before it has trials of its own: a third up or down."""

PRIOR_TRIALS = 2
THRIFT = 0.25

OVERHEAD_S = 3.0
"""Seconds that loading, checking and measuring add to a build; without them a cheap build would look free."""


@dataclass(slots=True, kw_only=True)
class _Record:
    trials: int = 0
    worked: int = 0
    logs: list[float] = field(default_factory=list)
    builds_s: list[float] = field(default_factory=list)


class Allocator:
    """Ranks backends by the promise of their next trial. Deterministic; depends on the set of outcomes alone."""

    def __init__(self, backends: Sequence[str]) -> None:
        self._records = {backend: _Record() for backend in backends}

    def observe(self, outcome: TrialOutcome) -> None:
        """Count one finished trial."""
        record = self._records[outcome.configuration.backend]
        record.trials += 1
        record.worked += outcome.state in ("complete", "pruned")
        if outcome.score is not None and outcome.state in ("complete", "pruned"):
            record.logs.append(math.log(outcome.score))
        if outcome.build_s is not None:
            record.builds_s.append(outcome.build_s)

    def ranked(self, running: Mapping[str, int]) -> tuple[str, ...]:
        """Order the backends, most promising first; ``running`` holds the number of running trials of each."""
        scores = self.scores(running)
        return tuple(sorted(scores, key=lambda backend: -scores[backend]))  # sorted() keeps ties in the order named

    def scores(self, running: Mapping[str, int]) -> dict[str, float]:
        """Score each backend by the rule above; infinite if it has no trial, finished or running."""
        logs = [x for record in self._records.values() for x in record.logs]
        best, middle = min(logs, default=0.0), _mean(logs, 0.0)
        costs_s = {name: OVERHEAD_S + _mean(record.builds_s, 0.0) for name, record in self._records.items()}
        mean_cost_s = _mean([costs_s[name] for name, record in self._records.items() if record.builds_s], 0.0)
        scores = {}
        for name, record in self._records.items():
            under_way = running.get(name, 0)
            if not record.trials + under_way:
                scores[name] = math.inf
                continue
            share = (record.worked + 1) / (record.trials + 1)
            cost = costs_s[name] / mean_cost_s if record.builds_s else 1.0
            scores[name] = share * _improvement(record.logs, middle, best) / (1 + under_way) / cost**THRIFT
        return scores


def _improvement(logs: Sequence[float], middle: float, best: float) -> float:
    """Return how far below ``best`` a backend's next draw is expected to fall; one above it counts as zero."""
    mean = _mean(logs, middle)
    squares = math.fsum((x - mean) ** 2 for x in logs)
    variance = (PRIOR_TRIALS * SPREAD**2 + squares) / (PRIOR_TRIALS + len(logs))
    deviation = math.sqrt(variance * (1 + 1 / (1 + len(logs))))
    z = (best - mean) / deviation
    return deviation * (z * 0.5 * math.erfc(-z / math.sqrt(2)) + math.exp(-z * z / 2) / math.sqrt(2 * math.pi))


def _mean(values: Sequence[float], otherwise: float) -> float:
    return math.fsum(values) / len(values) if values else otherwise
