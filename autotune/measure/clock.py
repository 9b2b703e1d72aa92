"""The clock of a measurement: Clock, and the one that reads this process."""

import time
from typing import Protocol


class Clock(Protocol):
    """Three readings that only grow; a duration is the difference of two readings."""

    def now_ns(self) -> int:
        """Return the wall time in nanoseconds from an arbitrary start."""
        ...

    def cpu_ns(self) -> int:
        """Return the CPU time that all threads of this process have used, in nanoseconds."""
        ...

    def switches(self) -> int:
        """Return the number of involuntary context switches: the system took a core away from this process."""
        ...


class SystemClock:
    """The clock of the running process."""

    def now_ns(self) -> int:
        """Read the system's monotonic clock of highest resolution."""
        return time.perf_counter_ns()

    def cpu_ns(self) -> int:
        """Return the user and system time of all threads."""
        return time.process_time_ns()

    def switches(self) -> int:
        """Return ``ru_nivcsw`` of this process."""
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
