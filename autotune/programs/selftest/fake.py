"""A clock for checks whose result must not depend on the machine: ManualClock."""

from collections.abc import Callable, Iterable, Iterator
from itertools import cycle


class ManualClock:
    """A clock that only :meth:`advance` moves, backwards too; fits :class:`autotune.measure.clock.Clock`."""

    def __init__(self) -> None:
        self._now_ns = 0

    def now_ns(self) -> int:
        """Return the nanoseconds so far."""
        return self._now_ns

    def cpu_ns(self) -> int:
        """Return the same: the core works in every nanosecond."""
        return self._now_ns

    def switches(self) -> int:
        """Return zero: the core is never taken away."""
        return 0

    def advance(self, duration_ms: float) -> None:
        """Let time pass; a negative duration turns the clock back."""
        self._now_ns += round(duration_ms * 1e6)

    def call(self, *durations_ms: float, endless: Iterable[float] | None = None) -> Callable[..., None]:
        """Return a callable that takes these durations in turn, over and over."""
        durations: Iterator[float] = iter(endless) if endless is not None else cycle(durations_ms)

        def called(*inputs: object) -> None:
            self.advance(next(durations))

        return called
