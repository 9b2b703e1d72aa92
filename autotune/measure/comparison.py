"""A stored measurement against a fresh one of another process and day: Drift.

The two were not taken side by side, so nothing pairs, and consecutive samples share the influences on their block or
their process. The unit is therefore the block, and also the process if a measurement names three or more: each side's
median gets an interval from its block medians and one from its process medians, and the wider counts. From six units
on, that is the exact order-statistic interval. Below six it is Student's t on the bootstrap's variance of the median,
which has a closed form (Maritz and Jarrett, JASA 73, 1978): nothing is drawn at random, so the same samples always
yield the same answer. The intervals of both sides combine to that of the ratio by Zou and Donner's method (Statistics
in Medicine 27, 2008), on the logarithm.

Simulated with equals in 600 repeats each, the 95% interval missed a ratio of 1 in 0% to 3% under normal and spiked
noise, for 3 to 40 units a side; under noise with two peaks, half the blocks on each, in up to 5% from 6 units on and in
up to 10% with fewer. Student's t alone missed it there in up to 12%, for every number of units. Processes matter: in
ten finals on an H200 the medians of one candidate in two fresh processes differed by 1.4% or more in half of 105 cases
and by more than 5% in a quarter. If the processes of equals differ that much (standard deviation 5%), three against one
were called drifted in 8% of repeats, three against three in none.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from autotune.errors import RequestError
from autotune.measure.conditions import recorded
from autotune.measure.paired import MIN_EFFECT
from autotune.measure.statistics import median, median_interval, middle
from autotune.records.trial import Measurement

CONFIDENCE = 0.95
TOLERANCE = 0.05
"""A plan holds while its latency stays within 5%, up or down: a choice, well above the 1.4% by which two processes
commonly differ and well below the gain of plans on their baselines."""

FEWEST_UNITS = 3
EXACT_UNITS = 6
"""The smallest number of units whose smallest and largest enclose the median with 95%."""

HOW_OBTAINED = ("grouped", "unrolled")
"""The entries of a protocol that do not identify the measurement, only the way to a single call's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A fresh measurement against a stored one.

    ``ratio`` is fresh over stored, of the medians of the block medians, with its 95% ``interval``. ``detectable`` is
    the relative change that an equal number of equally noisy samples finds in about 80% of repeats: simulated, in 70%
    to 89% under normal noise, in 58% if three blocks a side have spikes. Both are ``None`` below three blocks a side.
    ``reason`` explains the status in words.
    """

    status: Literal["holds", "drifted", "cannot_tell"]
    stored_ms: float
    fresh_ms: float
    ratio: float
    interval: tuple[float, float] | None
    detectable: float | None
    reason: str

    @property
    def headline(self) -> str:
        """``holds``, ``drifted by +12.3%`` or ``cannot tell``; plus is slower."""
        words = {"holds": "holds", "drifted": f"drifted by {self.ratio - 1:+.1%}", "cannot_tell": "cannot tell"}
        return words[self.status]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {**asdict(self), "interval": None if self.interval is None else list(self.interval)}


def comparable(a: Measurement, b: Measurement) -> None:
    """Raise RequestError, naming the differences, unless both were taken by the same rules.

    All entries of ``protocol`` but ``grouped`` and ``unrolled`` identify a measurement; an absent one is a difference.
    """
    names = sorted({*a.protocol, *b.protocol} - {*HOW_OBTAINED})
    differing = [name for name in names if _entry(a.protocol, name) != _entry(b.protocol, name)]
    if differing:
        raise RequestError(
            "two measurements cannot be compared across modes",
            found="; ".join(f"{name}: {_entry(a.protocol, name)} and {_entry(b.protocol, name)}" for name in differing),
            expected="the same in both",
        )


def drift(
    stored: Measurement, fresh: Measurement, *, tolerance: float = TOLERANCE, flags: Collection[str] = ()
) -> Drift:
    """Decide if the stored median still holds; raises RequestError if the two do not compare.

    It ``holds`` if the whole interval of the ratio lies within the tolerance, which is the same factor up and down. It
    has ``drifted`` if the ratio lies outside the tolerance and the interval is off 1 by more than the smallest effect
    that makes a winner in the finals (0.5%). Otherwise the status is ``cannot_tell``; so it is for a measurement with
    ``flags``, such as ``throttled``, or with fewer than three blocks a side.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"a tolerance lies between 0 and 1, found {tolerance!r}")
    comparable(stored, fresh)
    stored_ms, fresh_ms = (median([median(block) for block in side.samples_ms]) for side in (stored, fresh))
    bounds = _log_interval(stored, fresh)
    status, reason = _judged(math.log(fresh_ms / stored_ms), bounds, tolerance, flags, (stored, fresh))
    return Drift(
        status=status,
        stored_ms=stored_ms,
        fresh_ms=fresh_ms,
        ratio=fresh_ms / stored_ms,
        interval=None if bounds is None else (math.exp(bounds[0]), math.exp(bounds[1])),
        # A 95% interval reaches 1.96 standard errors; a difference of 2.8 is found in 80% of repeats.
        detectable=None if bounds is None else math.expm1((bounds[1] - bounds[0]) / 2 * 2.8 / 1.96),
        reason=reason,
    )


def _judged(
    change: float,
    bounds: tuple[float, float] | None,
    tolerance: float,
    flags: Collection[str],
    sides: Sequence[Measurement],
) -> tuple[Literal["holds", "drifted", "cannot_tell"], str]:
    """Apply the rules to the log-ratio and its interval."""
    if bounds is None:
        blocks = " and ".join(str(len(side.samples_ms)) for side in sides)
        return "cannot_tell", f"{blocks} blocks, stored and fresh; each side needs at least {FEWEST_UNITS}"
    low, high = bounds
    figures = f"{math.expm1(change):+.1%}, between {math.expm1(low):+.1%} and {math.expm1(high):+.1%} at 95%"
    if min(len(set(_processes(side))) for side in sides) < FEWEST_UNITS:
        figures += f", not counting differences between processes, for which {FEWEST_UNITS} a side are needed"
    if flags:
        return "cannot_tell", f"measured under {', '.join(sorted(set(flags)))} ({figures})"
    allowed = math.log1p(tolerance)
    if -allowed <= low and high <= allowed:
        return "holds", f"{figures}: within the tolerance of {tolerance:.1%}"
    if abs(change) > allowed and (low > MIN_EFFECT or high < -MIN_EFFECT):
        return "drifted", f"{figures}: {'slower' if change > 0 else 'faster'} than the tolerance of {tolerance:.1%}"
    return "cannot_tell", f"{figures}: neither surely within the tolerance of {tolerance:.1%} nor surely changed"


def _log_interval(stored: Measurement, fresh: Measurement) -> tuple[float, float] | None:
    """Return the 95% interval of log(fresh / stored), or ``None`` if a side has too few blocks."""
    if min(len(stored.samples_ms), len(fresh.samples_ms)) < FEWEST_UNITS:
        return None
    below, stored_log, above = _log_median(stored)
    low, fresh_log, high = _log_median(fresh)
    change = fresh_log - stored_log
    return change - math.hypot(low, above), change + math.hypot(high, below)


def _log_median(side: Measurement) -> tuple[float, float, float]:
    """Return the log of a side's median with the way down and up to the ends of its interval, both at least 0."""
    logs = [math.log(median(block)) for block in side.samples_ms]
    ways = [_ways(logs)]
    by_process: dict[object, list[float]] = {}
    for process, value in zip(_processes(side), logs, strict=True):
        by_process.setdefault(process, []).append(value)
    if len(by_process) >= FEWEST_UNITS:
        ways.append(_ways([middle(sorted(values)) for values in by_process.values()]))
    return max(down for down, _ in ways), middle(sorted(logs)), max(up for _, up in ways)


def _ways(units: Sequence[float]) -> tuple[float, float]:
    """Return the distances down and up from the median of at least three units to the ends of its 95% interval."""
    ordered = sorted(units)
    if len(ordered) >= EXACT_UNITS:
        low, high = (math.log(end) for end in median_interval([math.exp(unit) for unit in ordered], CONFIDENCE))
        return middle(ordered) - low, high - middle(ordered)
    from scipy.stats import t  # type: ignore[import-untyped, unused-ignore]

    weights = _median_weights(len(ordered))
    mean = sum(weight * unit for weight, unit in zip(weights, ordered, strict=True))
    variance = sum(weight * (unit - mean) ** 2 for weight, unit in zip(weights, ordered, strict=True))
    way = float(t.isf((1 - CONFIDENCE) / 2, len(ordered) - 1)) * math.sqrt(variance)
    return way, way


@lru_cache(maxsize=8)
def _median_weights(size: int) -> tuple[float, ...]:
    """Return the probability of each ordered value to be the median of ``size`` draws from them with replacement."""
    from scipy.special import betainc

    half = (size + 1) / 2
    below = [float(betainc(half, half, index / size)) for index in range(size + 1)]
    return tuple(high - low for low, high in pairwise(below))


def _processes(side: Measurement) -> Sequence[object]:
    """Return the process of each block if the finals recorded it, else the same for all."""
    processes = recorded(side.conditions, "processes")
    size = len(side.samples_ms)
    return processes if isinstance(processes, list | tuple) and len(processes) == size else [None] * size


def _entry(protocol: Mapping[str, object], name: str) -> str:
    """Return an entry as it is stored, so that a tuple equals the list it becomes; ``absent`` if there is none."""
    return json.dumps(protocol[name], sort_keys=True, default=str) if name in protocol else "absent"
