"""The time that the device itself works on a call, by its own events: DeviceClock, DeviceTime.

Two events around a call on an idle stream would also time the host: the device reaches the first at once and then waits
for the launches. On an H200 a kernel of 300 µs launched from Python was measured as 418 µs in this way. Therefore a
spin keeps the stream busy while events and calls are queued. The first event shows if the spin was long enough: a time
is ``queued`` only if the device had not reached that event when everything was queued. A call that waits for the device
itself cannot be queued: its time includes the host's work in between, and is marked so.

The cost of the events and of entering and leaving a kernel is measured once, with kernels that do nothing, and
subtracted: about 3 µs on an H200.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

from autotune.measure.statistics import checked

SHORTEST_MS = 0.2
"""Calls with less work than this for the device are unrolled: several run back to back between the two events."""

LARGEST_EVENT_SHARE = 0.05
"""The largest share of an unrolled time that the event pair may make up."""

LONGEST_LEAD_MS = 10.0
"""No spin is longer than this, and no more calls are unrolled than can be queued in it."""

_MARGIN, _MARGIN_MS, _LONGER = 1.5, 0.05, 4
"""A spin lasts one and a half times the expected time of queueing, and 50 µs for the events.

It lasts four times as long if that was not enough: after some milliseconds of other work a host needed more than 100 µs
for a launch that otherwise took 30 µs.
"""

_RESOLUTION_MS = 5e-4
_SPIN_CYCLES = 1_000_000
_MOST_CALLS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTime:
    """Milliseconds of one call on the device's clock, the mean of ``unrolled`` calls that ran back to back.

    Unrolled calls leave the L2 cache hot. ``queued`` says that the host's launching is not included.
    """

    ms: float
    unrolled: int = 1
    queued: bool = True

    def __post_init__(self) -> None:
        checked((self.ms,))
        if self.unrolled < 1:
            raise ValueError(f"a time stands for at least one call, found {self}")


class DeviceClock:
    """Two events on one device and a spin that is calibrated by them; used by one thread at a time."""

    def __init__(self, device: str, cuda: ModuleType | None = None) -> None:
        """``device`` is torch's name of it, which must be idle; ``cuda`` is by default ``torch.cuda``."""
        import torch

        self._cuda: ModuleType = torch.cuda if cuda is None else cuda
        self._device = torch.device(device)
        with self._cuda.device(self._device):
            self._first, self._last = (self._cuda.Event(enable_timing=True) for _ in range(2))
        self._cycles_per_ms = _SPIN_CYCLES / self._median_ms(lambda: self._cuda._sleep(_SPIN_CYCLES), 5)
        one_ms, many_ms = (self._median_ms(partial(self._idle_kernels, count), 21) for count in (1, 11))
        self.event_pair_ms = max(_RESOLUTION_MS, one_ms - (many_ms - one_ms) / 10)

    def time(
        self,
        function: Callable[..., object],
        inputs: Sequence[object],
        *,
        queue_ms: float,
        previous: DeviceTime | None = None,
        flush: Callable[[], None] | None = None,
    ) -> DeviceTime:
        """Time a call on an idle device, which is idle again afterwards; an error of the function passes through.

        ``queue_ms`` is the approximate time that the host takes for one call, without waiting for the device.
        ``previous`` is an earlier time of the same function: without it a first call decides if more have to be
        unrolled. With ``flush``, which empties the L2 cache, calls are never unrolled.
        """

        def several(unrolled: int, lead_ms: float) -> DeviceTime:
            def calls() -> None:
                for _ in range(unrolled):
                    function(*inputs)

            time = self._timed(calls, unrolled, lead_ms, flush)
            while not time.queued and 0 < lead_ms < LONGEST_LEAD_MS:
                lead_ms = min(LONGEST_LEAD_MS, _LONGER * lead_ms)
                time = self._timed(calls, unrolled, lead_ms, flush)
            return time

        if previous is not None:
            return several(previous.unrolled, self._lead_ms(queue_ms, previous.unrolled) if previous.queued else 0.0)
        alone = several(1, self._lead_ms(queue_ms, 1))
        unrolled = self._unrolled(alone.ms, queue_ms)
        if flush is not None or alone.ms >= SHORTEST_MS or unrolled == 1:
            return alone
        return several(unrolled, self._lead_ms(queue_ms, unrolled) if alone.queued else 0.0)

    def _lead_ms(self, queue_ms: float, calls: int) -> float:
        return min(LONGEST_LEAD_MS, _MARGIN * queue_ms * calls + _MARGIN_MS)

    def _unrolled(self, call_ms: float, queue_ms: float) -> int:
        """Return the number of calls that makes the event pair's share small enough, as far as they can be queued."""
        needed = math.ceil(self.event_pair_ms / (LARGEST_EVENT_SHARE * call_ms))
        return max(1, min(_MOST_CALLS, max(2, needed), int(LONGEST_LEAD_MS / (_MARGIN * queue_ms))))

    def _timed(
        self, calls: Callable[[], None], count: int, lead_ms: float, flush: Callable[[], None] | None
    ) -> DeviceTime:
        stream = self._cuda.current_stream(self._device)
        with self._cuda.device(self._device):
            if flush is not None:
                flush()
            if lead_ms:
                self._cuda._sleep(round(lead_ms * self._cycles_per_ms))
            self._first.record(stream)
            calls()
            self._last.record(stream)
            queued = not self._first.query()
        self._cuda.synchronize(self._device)
        elapsed_ms = float(self._first.elapsed_time(self._last))
        ms = max(elapsed_ms - self.event_pair_ms, _RESOLUTION_MS) / count
        return DeviceTime(ms=ms, unrolled=count, queued=queued)

    def _idle_kernels(self, count: int) -> None:
        for _ in range(count):
            self._cuda._sleep(1)

    def _median_ms(self, work: Callable[[], None], times: int) -> float:
        """Return the median device time of work that is queued behind a short spin, in milliseconds."""
        spans_ms = []
        stream = self._cuda.current_stream(self._device)
        with self._cuda.device(self._device):
            for _ in range(times):
                self._cuda._sleep(_SPIN_CYCLES)
                self._first.record(stream)
                work()
                self._last.record(stream)
                self._cuda.synchronize(self._device)
                spans_ms.append(float(self._first.elapsed_time(self._last)))
        return sorted(spans_ms)[len(spans_ms) // 2]
