"""Percentiles, reported only if the samples back them: Percentiles.

The rule is that of MLPerf Inference's LoadGen (``early_stopping.cc`` in github.com/mlcommons/inference, which for a
single stream asks for at least one query above the limit). Of n independent samples, the number above the true quantile
q is Binomial(n, 1 - q). The percentile is backed if at least two are above it with 99% confidence, that is, if ::

    q^n + n (1 - q) q^(n - 1) <= 0.01

so that the largest sample alone never decides the tail. The smallest such n is 64 for p90, 662 for p99 and 6,636 for
p99.9. Consecutive samples are not quite independent: a backed percentile describes these samples, and its
:func:`interval` their uncertainty.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from autotune.measure.statistics import checked


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """The usual percentiles of ``n`` samples in milliseconds; ``None`` if the samples are too few for one."""

    n: int
    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


def summary(samples_ms: Iterable[float]) -> Percentiles:
    """Return every usual percentile that the samples back; the median is backed from 11."""
    ordered = sorted(checked(samples_ms))
    return Percentiles(
        n=len(ordered),
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p99=percentile(ordered, 0.99),
        p999=percentile(ordered, 0.999),
    )


def samples_needed(q: float, confidence: float = 0.99) -> int:
    """Return the number of samples that back the quantile ``q`` (0.99: the 99th percentile); for a low one, its mirror.

    Raises ``ValueError`` unless both lie between 0 and 1.
    """
    _between("a quantile", q)
    _between("confidence", confidence)
    upper = max(q, 1 - q)
    high = 2
    while not _backed(high, upper, confidence):
        high *= 2
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _backed(middle, upper, confidence) else (middle, high)
    return high


def _backed(size: int, q: float, confidence: float) -> bool:
    fewer_than_two_above = q**size + size * (1 - q) * q ** (size - 1)
    return fewer_than_two_above <= 1 - confidence


def percentile(samples_ms: Iterable[float], q: float) -> float | None:
    """Return the quantile ``q``, interpolated between two samples, or ``None`` if the samples do not back it."""
    ordered = sorted(checked(samples_ms))
    if len(ordered) < samples_needed(q):
        return None
    position = q * (len(ordered) - 1)
    floor = math.floor(position)
    upper = ordered[min(floor + 1, len(ordered) - 1)]
    return ordered[floor] + (upper - ordered[floor]) * (position - floor)


def interval(samples_ms: Iterable[float], q: float, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return two samples that enclose the true quantile with at least the confidence, whatever the distribution.

    The number of samples below the quantile is Binomial(n, q), which bounds the ranks (David and Nagaraja, Order
    Statistics, 7.1). ``None`` if a bound would lie beyond the smallest or the largest sample: for p99 at 95% below
    368 samples.
    """
    _between("a quantile", q)
    _between("confidence", confidence)
    from scipy.stats import binom  # type: ignore[import-untyped, unused-ignore]

    ordered = sorted(checked(samples_ms))
    tail = (1 - confidence) / 2
    low = int(binom.ppf(tail, len(ordered), q))
    high = int(binom.isf(tail, len(ordered), q)) + 1
    return (ordered[low - 1], ordered[high - 1]) if low >= 1 and high <= len(ordered) else None


def tail_statistic(block_ms: Iterable[float], q: float) -> float:
    """Return the smallest sample of a block at or below which at least the share ``q`` of the block lies.

    Finals compare it round by round if the objective is a tail. In a block of fewer than 1 / (1 - q) samples it is the
    maximum, and then no estimate of the quantile: the maximum of n samples lies, in the median, at the quantile
    0.5^(1/n), which is 0.79 for 3 samples and 0.93 for 10. It grows with n, so finalists compare only by blocks of
    equal size, and a latency to report is the :func:`percentile` of the pooled samples. The statistic only shows which
    finalist's slow calls are slower.
    """
    _between("a quantile", q)
    ordered = sorted(checked(block_ms))
    # 0.07 * 100 is a little more than 7: a product that close to a whole number counts as that number.
    return ordered[max(1, math.ceil(q * len(ordered) - 1e-9)) - 1]


def samples_a_round(q: float, rounds: int) -> int:
    """Return the samples that each round must take so that all rounds together back the quantile ``q``."""
    if rounds < 1:
        raise ValueError(f"at least one round is needed, found {rounds}")
    return math.ceil(samples_needed(q) / rounds)


def _between(what: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{what} lies between 0 and 1, found {value!r}")
