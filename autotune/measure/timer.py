"""The time of one call: Timer, for a CPU and for a CUDA device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from autotune.measure.clock import Clock
from autotune.measure.device_clock import DeviceClock, DeviceTime
from autotune.measure.statistics import checked

Function = Callable[..., object]

WORD_BYTES = 4

L2 = Literal["steady", "cold"]
"""The state of the device's L2 cache at the start of a call: as earlier calls left it (``steady``), or flushed.

It is part of a measurement's identity, because a time in one state does not compare with a time in the other.
"""

SHORTEST_CPU_SAMPLE_MS = 1.0
"""A CPU sample lasts at least this long: shorter calls are grouped."""

_MOST_CALLS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timing of one call: wall milliseconds as the caller waits for them.

    ``queue_ms`` is the part of them until the call returned; then only the device was at work. It is ``None`` if a
    call's work is done when it returns.
    """

    wall_ms: float
    queue_ms: float | None = None

    def __post_init__(self) -> None:
        checked((self.wall_ms,) if self.queue_ms is None else (self.wall_ms, self.queue_ms))


class Timer(Protocol):
    """Times calls on one kind of device. Used by one thread at a time."""

    kind: Literal["cpu", "cuda"]
    l2: L2

    def settle(self) -> None:
        """Wait until the device is idle, as a timed call needs it; it is idle again after each."""
        ...

    def grouping(self, typical_ms: float) -> int:
        """Return the number of calls that share one reading of the clock, from a call's approximate time."""
        ...

    def time_call(self, function: Function, inputs: Sequence[object], grouped: int = 1) -> Sample:
        """Call the function on one set of inputs; its times are those of one call. Its errors pass through."""
        ...

    def time_on_device(
        self, function: Function, inputs: Sequence[object], sample: Sample, previous: DeviceTime | None = None
    ) -> DeviceTime | None:
        """Call the function again, timed by the device's own clock; ``None`` if the device has no clock.

        ``sample`` is a timing of the same call, ``previous`` an earlier time on the device, if there is one.
        """
        ...


class CpuTimer:
    """Wall time of calls whose work is done when they return."""

    kind: Literal["cpu", "cuda"] = "cpu"
    l2: L2 = "steady"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def settle(self) -> None:
        """Wait for nothing."""

    def grouping(self, typical_ms: float) -> int:
        """Group calls below 1 ms into samples of 1 ms, with a tenth to spare for a call faster than the typical."""
        if typical_ms >= SHORTEST_CPU_SAMPLE_MS:
            return 1
        return min(_MOST_CALLS, max(1, math.ceil(1.1 * SHORTEST_CPU_SAMPLE_MS / typical_ms)))

    def time_call(self, function: Function, inputs: Sequence[object], grouped: int = 1) -> Sample:
        """Time ``grouped`` calls on the same inputs and divide; ``ValueError`` if the clock stood still."""
        repeats = range(grouped)
        started_ns = self._clock.now_ns()
        for _ in repeats:
            function(*inputs)
        elapsed_ns = self._clock.now_ns() - started_ns
        return Sample(wall_ms=elapsed_ns / 1e6 / grouped)

    def time_on_device(
        self, function: Function, inputs: Sequence[object], sample: Sample, previous: DeviceTime | None = None
    ) -> DeviceTime | None:
        """Return None: the wall clock is the only one."""
        return None


class CudaTimer:
    """Wall time of a call with a synchronisation after it, and device time of further calls by :class:`DeviceClock`.

    The wall time, for which a caller waits, includes no event. With ``l2="cold"``, for kernels, memory of twice the L2
    cache is read before each call, outside both clocks. The flush does not write, because the kernel's run would then
    include the write-back of these lines: on an H200 that costs 7 of 35 us in a product that reads 100 MB, and 0.7 us
    in small ones.
    """

    kind: Literal["cpu", "cuda"] = "cuda"

    def __init__(self, clock: Clock, device: str = "cuda:0", *, l2: L2 = "steady") -> None:
        import torch

        self.l2 = l2
        self._clock = clock
        self._cuda = torch.cuda
        self._device = torch.device(device)
        self.settle()
        self._device_clock = DeviceClock(device)
        cache_bytes = int(torch.cuda.get_device_properties(self._device).L2_cache_size) if l2 == "cold" else 0
        words = 2 * cache_bytes // WORD_BYTES
        self._flushed = torch.zeros(words, dtype=torch.float32, device=self._device) if words else None

    def settle(self) -> None:
        """Wait for all streams of the device."""
        self._cuda.synchronize(self._device)

    def grouping(self, typical_ms: float) -> int:
        """Leave every call alone: its caller waits for each."""
        return 1

    def time_call(self, function: Function, inputs: Sequence[object], grouped: int = 1) -> Sample:
        """Time calls that are each waited for, and divide."""
        if self._flushed is not None:
            self._flush()
            self.settle()
        now_ns = self._clock.now_ns
        queue_ns = 0
        started_ns = now_ns()
        for _ in range(grouped):
            begun_ns = now_ns()
            function(*inputs)
            queue_ns += now_ns() - begun_ns
            self._cuda.synchronize(self._device)
        elapsed_ns = now_ns() - started_ns
        return Sample(wall_ms=elapsed_ns / 1e6 / grouped, queue_ms=queue_ns / 1e6 / grouped)

    def time_on_device(
        self, function: Function, inputs: Sequence[object], sample: Sample, previous: DeviceTime | None = None
    ) -> DeviceTime | None:
        """Time further calls between two events, behind a spin that hides the host's launching."""
        flush = self._flush if self._flushed is not None else None
        return self._device_clock.time(
            function, inputs, queue_ms=sample.queue_ms or sample.wall_ms, previous=previous, flush=flush
        )

    def _flush(self) -> None:
        if self._flushed is not None:
            self._flushed.amax()
