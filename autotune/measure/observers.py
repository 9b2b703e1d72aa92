"""The conditions around a measurement: Observer, Observers, and the load of the host."""

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from autotune.measure.canary import Canary
from autotune.measure.clock import Clock
from autotune.measure.conditions import unregistered
from autotune.measure.nvml import GpuObserver
from autotune.records.device import Device, DeviceKind

SHORTEST_WINDOW_S = 0.2
"""The shortest time from which the load is derived: systems account CPU time in steps of 10 ms for each core."""

WINDOW_S = 0.5
"""The time that the host's load looks back if a measurement is shorter."""

_Answer = TypeVar("_Answer")
_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Looks at one thing around a measurement; one measurement at a time, in one thread.

    Its reading is plain data for JSON: ``{"available": False, "reason": ...}`` if the thing cannot be seen, else
    ``{"available": True, ...}`` with entries of :data:`autotune.measure.conditions.OBSERVED`. An unknown value is
    ``None`` or left out, never zero.
    """

    name: str

    def before(self) -> None:
        """Begin: called right before the first sample."""
        ...

    def during(self) -> None:
        """Look once more: called between samples."""
        ...

    def after(self) -> Mapping[str, object]:
        """Return the reading: called right after the last sample."""
        ...


class Observers:
    """Several observers as one; used by one thread, for one measurement after the other.

    An observer that raises counts as not available from then on, with the reason: no measurement fails because of it.
    """

    def __init__(self, observers: Sequence[Observer], clock: Clock, *, every_s: float = 0.1) -> None:
        """``every_s`` is the shortest time between two looks of :meth:`during`."""
        names = [observer.name for observer in observers]
        if len(set(names)) != len(names):
            raise ValueError(f"observers have distinct names, found {names}")
        if not every_s >= 0:
            raise ValueError(f"every_s is a number of seconds, found {every_s!r}")
        self._observers, self._clock, self._every_ns = tuple(observers), clock, every_s * 1e9
        self._broken: dict[str, str] = {}
        self._looked_ns = 0

    def before(self) -> None:
        """Let every observer begin."""
        for observer in self._observers:
            self._guarded(observer, observer.before)
        self._looked_ns = self._clock.now_ns() if self._observers else 0

    def during(self) -> None:
        """Let every observer look if the last look is ``every_s`` ago; else only read the clock."""
        if not self._observers:
            return
        now_ns = self._clock.now_ns()
        if now_ns - self._looked_ns < self._every_ns:
            return
        self._looked_ns = now_ns
        for observer in self._observers:
            self._guarded(observer, observer.during)

    def sm_clock_mhz(self) -> float | None:
        """Read the clock of the device's SMs now; ``None`` if no observer can."""
        for observer in self._observers:
            if isinstance(observer, GpuObserver) and observer.name not in self._broken:
                return observer.sm_clock_mhz()
        return None

    def after(self) -> dict[str, dict[str, object]]:
        """Collect the readings by the observers' names."""
        readings: dict[str, dict[str, object]] = {}
        for observer in self._observers:
            reading = self._guarded(observer, partial(_reading, observer))
            readings[observer.name] = reading or {"available": False, "reason": self._broken[observer.name]}
        return readings

    def _guarded(self, observer: Observer, call: Callable[[], _Answer]) -> _Answer | None:
        if observer.name in self._broken:
            return None
        try:
            return call()
        except Exception as error:  # a measurement that took minutes is worth more than its conditions
            self._broken[observer.name] = f"{type(error).__name__}: {error}"
            _log.warning("observer %s is not available any more: %s", observer.name, self._broken[observer.name])
            return None


def _reading(observer: Observer) -> dict[str, object]:
    reading = dict(observer.after())
    if not isinstance(reading.get("available"), bool):
        raise ValueError(f"a reading says whether it is available, found {reading!r}")
    if names := unregistered(observer.name, reading):
        raise ValueError(f"{observer.name} reads {names}: add them to autotune.measure.conditions")
    return reading


class NotAvailable:
    """Stands in for an observer of a thing that does not exist here, and reports the reason."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self._reason = name, reason

    def before(self) -> None:
        """Look at nothing."""

    def during(self) -> None:
        """Look at nothing."""

    def after(self) -> Mapping[str, object]:
        """Return the reason."""
        return {"available": False, "reason": self._reason}


CpuTimes = Callable[[], tuple[float, float]]
"""Returns two sums over the cores of this process: the seconds in which they were busy, and all their seconds."""


class HostLoad:
    """The use by others of the cores that this process may run on: their busy time less this process's own.

    Time that a hypervisor took away counts as used by others. If a measurement is shorter than half a second, the
    reading begins up to half a second earlier, at the start of an earlier measurement: ``window_s`` is its length.
    """

    name = "host"

    def __init__(
        self, clock: Clock, kind: DeviceKind, *, cpu_times: CpuTimes | None = None, cores: int | None = None
    ) -> None:
        """``kind`` is that of the measured device; the reading holds it, because only a CPU's times depend on load."""
        self._clock, self._kind = clock, kind
        self._cpu_times = cpu_times or own_cpu_times
        self._cores = cores or len(_affinity())
        self._seen: deque[tuple[float, float, float, float]] = deque()
        self._first_s = 0.0

    def before(self) -> None:
        """Take note of the CPU times."""
        now = self._look()
        while self._seen and self._seen[0][0] < now[0] - WINDOW_S:
            self._seen.popleft()
        self._first_s = now[0]
        self._seen.append(now)

    def during(self) -> None:
        """Look at nothing: both ends suffice."""

    def after(self) -> Mapping[str, object]:
        """Return the average load by others between both ends."""
        if not self._seen:
            return {"available": False, "reason": "no measurement was begun"}
        now = self._look()
        needed_s = min(self._first_s, now[0] - WINDOW_S)
        then = next((seen for seen in reversed(self._seen) if seen[0] <= needed_s), self._seen[0])
        window_s, own_s, busy_s, had_s = (new - old for new, old in zip(now, then, strict=True))
        if window_s < SHORTEST_WINDOW_S:
            reason = f"the host was watched for {window_s:.3f} s, and {SHORTEST_WINDOW_S} s are needed"
            return {"available": False, "reason": reason}
        if had_s < 0.5 * window_s * self._cores:
            return {"available": False, "reason": "this system does not account the CPU time of its cores"}
        competing = max(0.0, busy_s - own_s) / window_s
        return {
            "available": True,
            "device": self._kind,
            "competing_cores": competing,
            "competing_share": min(1.0, competing / self._cores),
            "cores": self._cores,
            "window_s": window_s,
        }

    def _look(self) -> tuple[float, float, float, float]:
        busy_s, had_s = self._cpu_times()
        return self._clock.now_ns() / 1e9, self._clock.cpu_ns() / 1e9, busy_s, had_s


def own_cpu_times() -> tuple[float, float]:
    """Sum up the CPU times of the cores that this process may run on."""
    import psutil

    cores = _affinity()
    busy_s = had_s = 0.0
    for number, times in enumerate(psutil.cpu_times(percpu=True)):
        if number in cores:
            # guest time is part of user time already; waiting for a disk leaves the core free
            counted = {name: value for name, value in times._asdict().items() if not name.startswith("guest")}
            had_s += sum(counted.values())
            busy_s += sum(value for name, value in counted.items() if name not in ("idle", "iowait"))
    return busy_s, had_s


def _affinity() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))


def observers_for(
    device: Device, clock: Clock, *, canary: bool | None = None, own_pids: Callable[[], set[int]] | None = None
) -> Observers:
    """Make the observers that fit a device: ``gpu``, ``host`` and ``canary``; the GPU's gets ``own_pids``.

    Without ``canary`` a GPU has one and a CPU has none. On a CPU it varies more within one measurement than the
    measured times; it is of use only to compare measurements of different days.
    """
    gpu = GpuObserver(device, own_pids=own_pids) if device.kind == "cuda" else NotAvailable("gpu", "a CPU has no NVML")
    wanted = canary if canary is not None else device.kind == "cuda"
    return Observers((gpu, HostLoad(clock, device.kind), *((Canary(device, clock),) if wanted else ())), clock)
