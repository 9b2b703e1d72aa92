"""Items a second of one artifact with several requests in flight: Throughput, run_lanes, saturate."""

import logging
import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any

from autotune.errors import WorkError
from autotune.measure.block import InputSets
from autotune.measure.clock import Clock
from autotune.measure.statistics import checked, median, median_interval
from autotune.measure.timer import Function

Step = Callable[[], bool]
"""One request of one lane; returns whether the lane continues."""

WARM_UP_CALLS = 3
"""Every lane answers at least this many requests before the first window."""

WINDOW_REQUESTS = 3
"""A window lasts at least as long as this many requests of the slowest lane."""

FEWEST_WINDOWS = 3
"""At least this number of windows is taken, whatever their time."""

LONGEST_BACKLOG_MS = 1.0
"""Lanes return early if the device works for longer than this, and than two requests, after they have ended."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Items a second at one batch and concurrency; every figure is derived from the raw ``windows`` and ``samples_ms``.

    ``windows`` are items a second in consecutive windows of ``window_s``, ``items_per_s`` their median and ``interval``
    its 95% interval. ``samples_ms`` are the requests that overlap the windows, by completion, from one completion of a
    lane to its next, and ``latency_ms`` is their median. ``ValueError`` if the others do not follow from the raw ones.
    """

    items_per_s: float
    interval: tuple[float, float]
    latency_ms: float
    windows: tuple[float, ...]
    samples_ms: tuple[float, ...]
    window_s: float
    concurrency: int
    batch: int

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.batch < 1:
            raise ValueError(f"at least one lane and one item are needed, found {self.concurrency} and {self.batch}")
        checked((self.window_s,))
        stated = (self.items_per_s, self.interval, self.latency_ms)
        derived = (median(self.windows), median_interval(self.windows), median(self.samples_ms))
        if stated != derived:
            raise ValueError(f"a throughput has the figures {stated}; its raw figures yield {derived}")

    @classmethod
    def of(
        cls, *, windows: Iterable[float], samples_ms: Iterable[float], window_s: float, concurrency: int, batch: int
    ) -> "Throughput":
        """Derive the figures from raw ones; raises ``ValueError`` if one of them is not positive and finite."""
        rates, requests = tuple(checked(windows)), tuple(checked(samples_ms))
        return cls(
            items_per_s=median(rates),
            interval=median_interval(rates),
            latency_ms=median(requests),
            windows=rates,
            samples_ms=requests,
            window_s=window_s,
            concurrency=concurrency,
            batch=batch,
        )

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Throughput":
        """Read what :meth:`as_dict` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)


Measure = Callable[[int], Throughput]
_Plan = tuple[float, int, float, float | None]  # seconds a window, windows, seconds of warm-up, most seconds in windows


def windows_from(
    lanes_ns: Sequence[Sequence[int]], begin_ns: int, window_ns: int, windows: int = 1
) -> tuple[float, ...]:
    """Count the requests of all lanes in consecutive windows.

    A lane is the strictly increasing times at which it completed its requests, which ran back to back; its first entry
    is only the start of the first request. A request counts in each window by the share of its time that lies in it: in
    whole numbers, windows of 3.5 requests would count 3 and 4 in turn, and their median would be 14% off.

    ``ValueError`` if a lane does not reach from before the first window to after the last.
    """
    if window_ns < 1 or windows < 1:
        raise ValueError(f"at least one window of a nanosecond is needed, found {windows} of {window_ns} ns")
    edges = [begin_ns + number * window_ns for number in range(windows + 1)]
    counts = [0.0] * windows
    for lane in lanes_ns:
        if any(later <= earlier for earlier, later in pairwise(lane)):
            raise ValueError("the completions of a lane lie at strictly increasing times")
        if not lane or lane[0] > edges[0] or lane[-1] < edges[-1]:
            raise ValueError("a lane runs from before the first window to after the last")
        done = [_requests_by(lane, edge) for edge in edges]
        for number, (before, after) in enumerate(pairwise(done)):
            counts[number] += after - before
    return tuple(counts)


def _requests_by(lane: Sequence[int], at_ns: int) -> float:
    """Return the requests completed since the lane's first entry; an unfinished one counts by its share."""
    after = bisect_right(lane, at_ns)
    if after == len(lane):
        return float(after - 1)
    return after - 1 + (at_ns - lane[after - 1]) / (lane[after] - lane[after - 1])


def in_threads(steps: Sequence[Step]) -> None:
    """Repeat every step in a thread of its own until it returns False; the first error ends all and is raised.

    If the waiting thread itself is interrupted, each lane ends after its current request.
    """
    stop = threading.Event()
    failures: list[BaseException] = []

    def run(step: Step) -> None:
        try:
            while not stop.is_set() and step():
                pass
        except BaseException as error:  # a thread's border: it is raised in the thread that waits
            failures.append(error)
            stop.set()

    threads = [
        threading.Thread(target=run, args=(step,), name=f"lane {n}", daemon=True) for n, step in enumerate(steps)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if failures:
        raise failures[0]


def run_lanes(
    lanes: Sequence[Function],
    input_sets: InputSets,
    batch: int,
    *,
    clock: Clock,
    synchronize: Callable[[], None] | None = None,
    window_s: float = 0.25,
    windows: int = 12,
    warm_up_s: float = 0.5,
    limit_s: float | None = None,
    together: Callable[[Sequence[Step]], None] = in_threads,
) -> Throughput:
    """Keep every lane busy, requests back to back on rotating inputs of ``batch`` items, and count over windows.

    A lane is a callable of its own that returns when its request is done: :func:`cuda_lane` makes one. It runs in a
    thread of its own, with the ``no_grad``, autocast and current device of a new thread; on a CPU lanes share cores and
    threads as the caller has set them. The windows begin for all lanes at once, without a pause, when the last lane has
    answered three requests and ``warm_up_s`` is over; no lane stops before all have passed the last window.

    Windows last ``window_s``, or three requests of the slowest lane. With ``limit_s`` fewer are taken, but three.
    ``synchronize`` waits for the device: called before, and after to find lanes that return before their work is done.

    An error of a lane ends all lanes and passes through; ``ValueError`` for a clock that stands still or goes back.
    Raises :class:`~autotune.errors.WorkError` for lanes that return early.
    """
    if not lanes or not input_sets or batch < 1 or windows < 1:
        raise ValueError(
            "a lane, a set of inputs, an item and a window are needed, found "
            f"{len(lanes)} lanes, {len(input_sets)} sets, batch {batch}, {windows} windows"
        )
    checked((window_s,) if limit_s is None else (window_s, limit_s))
    if synchronize is not None:
        synchronize()
    flight = _Flight(lanes, input_sets, clock, (window_s, windows, warm_up_s, limit_s))
    together([partial(flight.step, number) for number in range(len(lanes))])
    ended_ns = clock.now_ns()
    if synchronize is not None:
        synchronize()
    backlog_ms = (clock.now_ns() - ended_ns) / 1e6
    measured = Throughput.of(
        windows=(count * batch * 1e9 / flight.window_ns for count in flight.counts()),
        samples_ms=flight.latencies_ms(),
        window_s=flight.window_ns / 1e9,
        concurrency=len(lanes),
        batch=batch,
    )
    _refuse_backlog(backlog_ms, measured.latency_ms)
    return measured


def _refuse_backlog(backlog_ms: float, latency_ms: float) -> None:
    """Raise WorkError for lanes that only enqueue: they leave the device with work that they have counted already."""
    if backlog_ms > max(LONGEST_BACKLOG_MS, 2 * latency_ms):
        raise WorkError(
            "the throughput was counted from lanes that return before their work is done",
            found=f"the device was busy for another {backlog_ms:.3g} ms after requests of {latency_ms:.3g} ms each",
            expected="a lane that waits for its own request, as cuda_lane does",
        )


class _Flight:
    """The requests of all lanes, with the times at which each was completed and at which the windows begin and end.

    Only a lane's own thread appends to its list; state of all lanes is changed under a lock.
    """

    def __init__(self, lanes: Sequence[Function], input_sets: InputSets, clock: Clock, plan: _Plan) -> None:
        self._lanes, self._input_sets, self._clock = lanes, input_sets, clock
        self._window_s, self._windows, self._warm_up_s, self._limit_s = plan
        self._lock = threading.Lock()
        self._started_ns = clock.now_ns()
        self._completed: list[list[int]] = [[self._started_ns] for _ in lanes]
        self._ready: dict[int, int] = {}
        self._passed: set[int] = set()
        self._laid_out = False
        self._begin_ns = self._end_ns = self.window_ns = 0

    def step(self, lane: int) -> bool:
        """Make one request of one lane; returns whether the lane continues."""
        completed = self._completed[lane]
        self._lanes[lane](*self._input_sets[(lane + len(completed) - 1) % len(self._input_sets)])
        now_ns = self._clock.now_ns()
        if now_ns <= completed[-1]:
            raise ValueError(f"a request takes a positive time, found {now_ns - completed[-1]} ns on the clock")
        completed.append(now_ns)
        if not self._laid_out:
            self._warm(lane, now_ns)
        elif now_ns >= self._end_ns and lane not in self._passed:
            with self._lock:
                self._passed.add(lane)
        return len(self._passed) < len(self._lanes)

    def counts(self) -> tuple[float, ...]:
        """Return the number of requests in each window."""
        return windows_from(self._completed, self._begin_ns, self.window_ns, self._windows)

    def latencies_ms(self) -> list[float]:
        """Return the times of the requests that overlap the windows, in order of completion."""
        requests = (pair for lane in self._completed for pair in pairwise(lane))
        return [
            (last - first) / 1e6
            for last, first in sorted((last, first) for first, last in requests)
            if last > self._begin_ns and first < self._end_ns
        ]

    def _warm(self, lane: int, now_ns: int) -> None:
        """Note that a lane is warm; the last one lays out the windows."""
        warm = len(self._completed[lane]) > WARM_UP_CALLS and now_ns - self._started_ns >= self._warm_up_s * 1e9
        if not warm or lane in self._ready:
            return
        with self._lock:
            self._ready[lane] = now_ns
            if len(self._ready) == len(self._lanes):
                self._lay_out(max(self._ready.values()))

    def _lay_out(self, begin_ns: int) -> None:
        # The last hundred are enough, and sorting them does not hold the other lanes up.
        recent = [completed[-100:] for completed in self._completed]
        slowest_ns = max(median(later - earlier for earlier, later in pairwise(lane)) for lane in recent)
        self.window_ns = math.ceil(max(self._window_s * 1e9, WINDOW_REQUESTS * slowest_ns))
        if self._limit_s is not None:
            fitting = math.floor(self._limit_s * 1e9 / self.window_ns)
            self._windows = min(self._windows, max(FEWEST_WINDOWS, fitting))
        self._begin_ns, self._end_ns = begin_ns, begin_ns + self._windows * self.window_ns
        self._laid_out = True  # last: the other lanes look at it without the lock


def cuda_lane(runner: Function, device: str) -> Function:
    """Wrap a runner so that each call runs on a stream of its own and returns when that stream is done.

    Two lanes need two runners: a runner whose calls exclude each other (a CUDA graph's) gains nothing from a second
    stream.
    Inputs must be ready before the first call, since the stream waits for no other.
    """
    import torch

    cuda: ModuleType = torch.cuda
    stream = cuda.Stream(torch.device(device))

    def lane(*inputs: object) -> object:
        with cuda.stream(stream):
            outputs = runner(*inputs)
        stream.synchronize()
        return outputs

    return lane


def saturate(measure: Measure, *, most: int = 8, gain: float = 0.03) -> list[Throughput]:
    """Measure with 1, 2, 4, ... and at last ``most`` requests in flight, while each step still pays.

    A step pays if the median rises by ``gain`` or more and the two intervals do not overlap. The point that did not pay
    is among those returned. An error of a measurement passes through.
    """
    if most < 1 or not 0 <= gain < 1:
        raise ValueError(f"most >= 1 and 0 <= gain < 1 expected, found {most} and {gain}")
    points: list[Throughput] = []
    concurrency = 1
    while True:
        point = measure(concurrency)
        if point.concurrency != concurrency:
            raise ValueError(f"a measurement at concurrency {concurrency} was requested, found {point.concurrency}")
        points.append(point)
        if concurrency == most or not (len(points) == 1 or _pays(points[-2], point, gain)):
            return points
        concurrency = min(2 * concurrency, most)


def _pays(before: Throughput, after: Throughput, gain: float) -> bool:
    return after.items_per_s >= (1 + gain) * before.items_per_s and after.interval[0] > before.interval[1]


def best(points: Iterable[Throughput]) -> Throughput:
    """Find the point with the fewest items in flight that is not significantly slower than the fastest.

    Not significantly slower: its interval overlaps that of the point with the largest median. Items in flight are
    concurrency times batch; of two points with equal numbers, the one with fewer requests. ``ValueError`` without
    points.
    """
    measured = list(points)
    if not measured:
        raise ValueError("the best point was requested, found no points")
    fastest = max(measured, key=lambda point: point.items_per_s)
    level = [point for point in measured if point.interval[1] >= fastest.interval[0]]
    return min(level, key=lambda point: (point.concurrency * point.batch, point.concurrency))
