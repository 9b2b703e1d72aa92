"""What tells the time: Clock, and the one that reads this process."""

import time
from typing import Protocol


class Clock(Protocol):
    """Three readings that only ever grow; differences between two readings are what counts."""

    def now_ns(self) -> int:
        """Wall time in nanoseconds from an arbitrary start."""
        ...

    def cpu_ns(self) -> int:
        """CPU time that all threads of this process have used, in nanoseconds."""
        ...

    def switches(self) -> int:
        """How often the system took a core away from this process (involuntary context switches)."""
        ...


class SystemClock:
    """The clock of the running process."""

    def now_ns(self) -> int:
        """Read the system's monotonic clock of highest resolution."""
        return time.perf_counter_ns()

    def cpu_ns(self) -> int:
        """User and system time of all threads."""
        return time.process_time_ns()

    def switches(self) -> int:
        """``ru_nivcsw`` of this process."""
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
