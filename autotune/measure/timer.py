"""How long one call takes: Timer, for a CPU and for a CUDA device."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from autotune.measure.clock import Clock
from autotune.measure.statistics import checked

Function = Callable[..., Any]

L2 = Literal["steady", "cold"]
"""The state of the device's L2 cache when a call begins: what the calls before it left, or flushed. It is part of a
measurement's identity, because no time of the one compares with a time of the other."""

SHORTEST_CPU_SAMPLE_MS = 1.0
"""A CPU sample lasts at least this long: shorter calls are grouped."""

SHORTEST_DEVICE_CALL_MS = 0.2
"""Below this device time a call is unrolled for the device's clock."""

LARGEST_EVENT_SHARE = 0.05
"""The largest share of an unrolled device time that its event pair may make up."""

_MOST_CALLS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timing of one call: wall milliseconds as the caller waits for them, and the device's own where it has any."""

    wall_ms: float
    device_ms: float | None = None

    def __post_init__(self) -> None:
        checked((self.wall_ms,) if self.device_ms is None else (self.wall_ms, self.device_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """How many calls stand behind one sample; its times are still those of one call.

    ``grouped`` calls share one reading of the wall clock; ``unrolled`` calls run back to back, without waiting for one
    another, between the two events of the device's clock (which leaves the L2 cache hot).
    """

    grouped: int = 1
    unrolled: int = 1

    def __post_init__(self) -> None:
        if self.grouped < 1 or self.unrolled < 1:
            raise ValueError(f"a sample stands for at least one call, found {self}")


SINGLE = Grouping()


class Timer(Protocol):
    """Times single calls on one kind of device. Used by one thread at a time."""

    kind: Literal["cpu", "cuda"]
    l2: L2

    def grouping(self, typical: Sample) -> Grouping:
        """Choose the grouping for a call that takes about as long as ``typical``, an ungrouped sample."""
        ...

    def time_call(self, function: Function, inputs: Sequence[Any], grouping: Grouping = SINGLE) -> Sample:
        """Call the function on one set of inputs; whatever it raises passes through."""
        ...


class CpuTimer:
    """Wall time of calls whose work is done when they return."""

    kind: Literal["cpu", "cuda"] = "cpu"
    l2: L2 = "steady"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def grouping(self, typical: Sample) -> Grouping:
        """Group calls below 1 ms into samples of 1 ms, with a tenth to spare for a call faster than ``typical``."""
        if typical.wall_ms >= SHORTEST_CPU_SAMPLE_MS:
            return SINGLE
        return Grouping(grouped=_calls(1.1 * SHORTEST_CPU_SAMPLE_MS / typical.wall_ms))

    def time_call(self, function: Function, inputs: Sequence[Any], grouping: Grouping = SINGLE) -> Sample:
        """Time ``grouping.grouped`` calls on the same inputs and divide; ``ValueError`` if the clock stood still."""
        repeats = range(grouping.grouped)
        started_ns = self._clock.now_ns()
        for _ in repeats:
            function(*inputs)
        elapsed_ns = self._clock.now_ns() - started_ns
        return Sample(wall_ms=elapsed_ns / 1e6 / grouping.grouped)


class CudaTimer:
    """Wall time of a call with a synchronisation after it, and device time between two events on the current stream.

    The wall time always covers a single call, its two events included, whatever the grouping.

    With ``l2="cold"``, for kernels, twice the L2 cache is written before each call, outside both clocks; such calls are
    never unrolled, which would warm the cache again.
    """

    kind: Literal["cpu", "cuda"] = "cuda"

    def __init__(self, clock: Clock, device: str = "cuda:0", *, l2: L2 = "steady") -> None:
        import torch

        self.l2 = l2

        self._clock = clock
        self._cuda = torch.cuda
        self._device = torch.device(device)
        with torch.cuda.device(self._device):
            self._first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
            self._last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
        self._event_pair_ms = self._cost_of_event_pair()
        cache_bytes = int(torch.cuda.get_device_properties(self._device).L2_cache_size) if l2 == "cold" else 0
        self._flush: Any = torch.empty(2 * cache_bytes, dtype=torch.uint8, device=self._device) if cache_bytes else None

    def grouping(self, typical: Sample) -> Grouping:
        """Unroll calls below 200 µs of device time until the event pair makes up less than 5%."""
        if self.l2 == "cold" or typical.device_ms is None or typical.device_ms >= SHORTEST_DEVICE_CALL_MS:
            return SINGLE
        call_ms = max(typical.device_ms - self._event_pair_ms, 1e-3)
        return Grouping(unrolled=max(2, _calls(self._event_pair_ms / (LARGEST_EVENT_SHARE * call_ms))))

    def time_call(self, function: Function, inputs: Sequence[Any], grouping: Grouping = SINGLE) -> Sample:
        """Time one call on both clocks; if unrolled, further back-to-back calls give the device's figure."""
        stream = self._cuda.current_stream(self._device)
        if self._flush is not None:
            self._flush.zero_()
        self._cuda.synchronize(self._device)
        started_ns = self._clock.now_ns()
        self._first.record(stream)
        function(*inputs)
        self._last.record(stream)
        self._cuda.synchronize(self._device)
        elapsed_ns = self._clock.now_ns() - started_ns
        if grouping.unrolled > 1:
            self._first.record(stream)
            for _ in range(grouping.unrolled):
                function(*inputs)
            self._last.record(stream)
            self._cuda.synchronize(self._device)
        device_ms = float(self._first.elapsed_time(self._last)) / grouping.unrolled
        return Sample(wall_ms=elapsed_ns / 1e6, device_ms=device_ms)

    def _cost_of_event_pair(self) -> float:
        """Median device time between two events with nothing between them, in milliseconds."""
        stream = self._cuda.current_stream(self._device)
        costs = []
        for _ in range(21):
            self._cuda.synchronize(self._device)
            self._first.record(stream)
            self._last.record(stream)
            self._cuda.synchronize(self._device)
            costs.append(float(self._first.elapsed_time(self._last)))
        return sorted(costs)[len(costs) // 2]


def _calls(ratio: float) -> int:
    return min(_MOST_CALLS, max(1, math.ceil(ratio)))
