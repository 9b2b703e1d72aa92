"""The rules that decide when enough samples have been taken: StoppingRule and its kinds."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Protocol

from autotune.measure.clock import Clock
from autotune.measure.statistics import checked, relative_half_width


class StoppingRule(Protocol):
    """Sees every sample and returns the reason to stop when there are enough."""

    def observe(self, sample_ms: float) -> None:
        """Take note of one sample, the milliseconds of one call."""
        ...

    def finished(self) -> str | None:
        """Return the reason to stop, or ``None``; called after each sample."""
        ...


class _IntervalWatch:
    """The median's interval, computed anew only after the number of samples has grown by a tenth."""

    def __init__(self, min_samples: int) -> None:
        if min_samples < 2:
            raise ValueError(f"an interval needs at least two samples, found min_samples={min_samples}")
        self._ordered: list[float] = []
        self._due = min_samples

    def observe(self, sample_ms: float) -> None:
        insort(self._ordered, checked((sample_ms,))[0])

    @property
    def size(self) -> int:
        return len(self._ordered)

    def new_half_width(self) -> float | None:
        """Compute the relative half-width when it is due, else ``None``."""
        if self.size < self._due:
            return None
        self._due = math.ceil(self.size * 1.1)
        return relative_half_width(self._ordered)


class IntervalReached:
    """The 95% interval of the median is narrow enough.

    ``half_width`` is relative to the median. ``min_time_ms`` is measured time; a sample stands for ``calls`` calls.
    """

    def __init__(
        self, half_width: float = 0.01, *, min_samples: int = 30, min_time_ms: float = 100.0, calls: int = 1
    ) -> None:
        if not 0 < half_width < 1:
            raise ValueError(f"half_width lies between 0 and 1, found {half_width!r}")
        self._half_width, self._min_time_ms, self._calls = half_width, min_time_ms, calls
        self._watch = _IntervalWatch(min_samples)
        self._measured_ms = 0.0
        self._narrow = False

    def observe(self, sample_ms: float) -> None:
        """Take note of one sample."""
        self._watch.observe(sample_ms)
        self._measured_ms += sample_ms * self._calls

    def finished(self) -> str | None:
        """Return the reason, once the last computed interval is narrow and enough time was measured."""
        width = self._watch.new_half_width()
        if width is not None:
            self._narrow = width <= self._half_width
        return "interval reached" if self._narrow and self._measured_ms >= self._min_time_ms else None


class NoiseSettled:
    """More samples no longer narrow the interval of the median.

    Independent samples halve it when their number grows fourfold; if it is still above ``shrink`` of its earlier width,
    averaging does not remove the noise. The defaults stopped 0% and 2% of 60 simulated runs each with independent noise
    of 5% and 20% before their interval was reached; 0.75 from 120 samples on stopped 13% and 25%.
    """

    def __init__(
        self, *, shrink: float = 0.9, min_samples: int = 240, min_time_ms: float = 100.0, calls: int = 1
    ) -> None:
        if not 0.5 < shrink < 1:
            raise ValueError(f"shrink lies between 0.5 and 1, found {shrink!r}")
        self._shrink, self._min_samples, self._min_time_ms, self._calls = shrink, min_samples, min_time_ms, calls
        self._watch = _IntervalWatch(min_samples // 4)
        self._sizes: list[int] = []
        self._widths: list[float] = []
        self._measured_ms = 0.0
        self._settled = False

    def observe(self, sample_ms: float) -> None:
        """Take note of one sample."""
        self._watch.observe(sample_ms)
        self._measured_ms += sample_ms * self._calls

    def finished(self) -> str | None:
        """Return the reason, once the interval has stopped shrinking and enough time was measured."""
        width = self._watch.new_half_width()
        if width is not None:
            self._sizes.append(self._watch.size)
            self._widths.append(width)
            self._settled = self._watch.size >= self._min_samples and self._stopped_shrinking()
        return "noise settled" if self._settled and self._measured_ms >= self._min_time_ms else None

    def _stopped_shrinking(self) -> bool:
        quarter = bisect_left(self._sizes, math.ceil(self._sizes[-1] / 4))
        if self._sizes[quarter] > self._sizes[-1] / 3:
            return False
        return self._widths[-1] > self._shrink * self._widths[quarter]


class TimeLimit:
    """The time limit has passed since the rule was made, and at least ``min_samples`` were taken."""

    def __init__(self, clock: Clock, limit_s: float, *, min_samples: int = 3) -> None:
        if not limit_s > 0:
            raise ValueError(f"a time limit is a positive number of seconds, found {limit_s!r}")
        self._clock, self._limit_ns, self._min_samples = clock, limit_s * 1e9, min_samples
        self._started_ns = clock.now_ns()
        self._size = 0

    def observe(self, sample_ms: float) -> None:
        """Count one sample."""
        self._size += 1

    def finished(self) -> str | None:
        """Return the reason, once the time is up."""
        late = self._clock.now_ns() - self._started_ns >= self._limit_ns
        return "time limit" if late and self._size >= self._min_samples else None


class Hopeless:
    """Even the fastest of at least ``min_samples`` samples is slower than ``abandon_ms``."""

    def __init__(self, abandon_ms: float, *, min_samples: int = 5) -> None:
        checked((abandon_ms,))
        self._abandon_ms, self._min_samples = abandon_ms, min_samples
        self._size, self._fastest_ms = 0, math.inf

    def observe(self, sample_ms: float) -> None:
        """Keep the fastest."""
        self._size += 1
        self._fastest_ms = min(self._fastest_ms, sample_ms)

    def finished(self) -> str | None:
        """Return the reason, once there are enough samples."""
        slow = self._size >= self._min_samples and self._fastest_ms > self._abandon_ms
        return f"slower than {self._abandon_ms:.6g} ms in every sample" if slow else None


class FirstOf:
    """Several rules; the reason is that of the first finished one, in their order."""

    def __init__(self, rules: Sequence[StoppingRule]) -> None:
        if not rules:
            raise ValueError("at least one stopping rule is needed, found none")
        self._rules = tuple(rules)

    def observe(self, sample_ms: float) -> None:
        """Pass the sample on to every rule."""
        for rule in self._rules:
            rule.observe(sample_ms)

    def finished(self) -> str | None:
        """Return the first reason."""
        reasons = [rule.finished() for rule in self._rules]
        return next((reason for reason in reasons if reason is not None), None)
