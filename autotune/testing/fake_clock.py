"""A clock that a test advances, and a callable that takes given durations on it: FakeClock and FakeCall."""

from collections.abc import Iterable, Iterator
from itertools import cycle


class FakeClock:
    """A clock that stands still until it is advanced; fits :class:`autotune.measure.clock.Clock`."""

    def __init__(self) -> None:
        self._now_ns = 0
        self._cpu_ns = 0
        self._switches = 0

    def now_ns(self) -> int:
        """Return the wall time in nanoseconds since the clock was created."""
        return self._now_ns

    def cpu_ns(self) -> int:
        """Return the CPU time in nanoseconds."""
        return self._cpu_ns

    def switches(self) -> int:
        """Return the number of involuntary context switches."""
        return self._switches

    def advance(self, wall_ms: float, *, cpu_ms: float | None = None, switches: int = 0) -> None:
        """Let time pass; CPU time passes with wall time unless ``cpu_ms`` is given, and may not go backwards."""
        self._now_ns += round(wall_ms * 1e6)
        self._cpu_ns += round((wall_ms if cpu_ms is None else cpu_ms) * 1e6)
        self._switches += switches

    def sleep(self, seconds: float) -> None:
        """Stand in for ``time.sleep``: wall time passes, CPU time does not."""
        self.advance(seconds * 1e3, cpu_ms=0.0)


class FakeCall:
    """A callable that takes the given durations in turn, over and over; it returns its inputs and keeps them.

    It also has ``prepare`` and ``close``, so that it serves as a runner and as a finalist.
    """

    def __init__(self, clock: FakeClock, *durations_ms: float, endless: Iterable[float] | None = None) -> None:
        self._clock = clock
        self._durations: Iterator[float] = iter(endless) if endless is not None else cycle(durations_ms)
        self.calls: list[tuple[object, ...]] = []
        self.prepared = 0

    def __call__(self, *inputs: object) -> tuple[object, ...]:
        """Let the next duration pass on the clock."""
        self.calls.append(inputs)
        self._clock.advance(next(self._durations))
        return inputs

    def prepare(self) -> None:
        """Count that it was prepared."""
        self.prepared += 1

    def close(self) -> None:
        """Release nothing."""
