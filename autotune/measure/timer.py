"""How long one call takes: Timer, for a CPU and for a CUDA device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from autotune.measure.clock import Clock
from autotune.measure.device_clock import DeviceClock, DeviceTime
from autotune.measure.statistics import checked

Function = Callable[..., Any]

WORD_BYTES = 4

L2 = Literal["steady", "cold"]
"""The state of the device's L2 cache when a call begins: what the calls before it left, or flushed. It is part of a
measurement's identity, because no time of the one compares with a time of the other."""

SHORTEST_CPU_SAMPLE_MS = 1.0
"""A CPU sample lasts at least this long: shorter calls are grouped."""

_MOST_CALLS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timing of one call: wall milliseconds as the caller waits for them.

    ``queue_ms`` is the part of them after which the call returned and only the device was still at work; ``None`` where
    a call's work is done when it returns.
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
        """Wait until the device is idle, as it must be when a call is timed; it is idle again after each."""
        ...

    def grouping(self, typical_ms: float) -> int:
        """Choose how many calls share one reading of the clock, for a call that takes about so long."""
        ...

    def time_call(self, function: Function, inputs: Sequence[Any], grouped: int = 1) -> Sample:
        """Call the function on one set of inputs; its times are those of one call. What it raises passes through."""
        ...

    def time_on_device(
        self, function: Function, inputs: Sequence[Any], sample: Sample, like: DeviceTime | None = None
    ) -> DeviceTime | None:
        """Call the function again, timed by the device's own clock; ``None`` if that has none.

        ``sample`` is a timing of the same call, ``like`` an earlier time on the device, if there is one.
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

    def time_call(self, function: Function, inputs: Sequence[Any], grouped: int = 1) -> Sample:
        """Time so many calls on the same inputs and divide; ``ValueError`` if the clock stood still."""
        repeats = range(grouped)
        started_ns = self._clock.now_ns()
        for _ in repeats:
            function(*inputs)
        elapsed_ns = self._clock.now_ns() - started_ns
        return Sample(wall_ms=elapsed_ns / 1e6 / grouped)

    def time_on_device(
        self, function: Function, inputs: Sequence[Any], sample: Sample, like: DeviceTime | None = None
    ) -> DeviceTime | None:
        """Return nothing: the wall clock is the only one."""
        return None


class CudaTimer:
    """Wall time of a call with a synchronisation after it, and device time of further calls by :class:`DeviceClock`.

    No event is in the wall time, which is what a caller waits for. With ``l2="cold"``, for kernels, memory of twice the
    L2 cache is read before each call, outside both clocks. Written lines would have to be written back while the kernel
    runs, which is not its own doing: on an H200 that costs 7 of 35 us in a product that reads 100 MB, and 0.7 us in
    small ones.
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
        self._flushed: Any = torch.zeros(words, dtype=torch.float32, device=self._device) if words else None

    def settle(self) -> None:
        """Wait for all streams of the device."""
        self._cuda.synchronize(self._device)

    def grouping(self, typical_ms: float) -> int:
        """Leave every call alone: its caller waits for each."""
        return 1

    def time_call(self, function: Function, inputs: Sequence[Any], grouped: int = 1) -> Sample:
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
        self, function: Function, inputs: Sequence[Any], sample: Sample, like: DeviceTime | None = None
    ) -> DeviceTime | None:
        """Time further calls between two events, behind a spin that hides the host's launching."""
        flush = self._flush if self._flushed is not None else None
        return self._device_clock.time(
            function, inputs, queue_ms=sample.queue_ms or sample.wall_ms, like=like, flush=flush
        )

    def _flush(self) -> None:
        self._flushed.amax()
