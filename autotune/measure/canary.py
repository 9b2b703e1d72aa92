"""A check that the machine itself runs as before: Canary, a small fixed piece of work timed around a measurement."""

from collections import deque
from collections.abc import Callable, Mapping
from types import ModuleType

from autotune.measure.clock import Clock
from autotune.measure.statistics import median
from autotune.records.device import Device

DRIFT_LIMIT = 0.02
"""On a GPU, the largest relative deviation from the reference that leaves a measurement valid."""

CPU_DRIFT_LIMIT = 1.0
"""The same on a CPU: the work takes twice as long, as it does if two processes share a core by turns.

On a quiet virtual machine with 2 cores, 2,920 readings with less than a tenth of a core in use by others switched
between 1.0 and 1.6 ms: they lay within 0.59 of their median in 90%, within 0.72 in 99%, and within 0.77 at most. A
narrower limit would discard measurements that only paired, interleaved comparisons can judge.
"""

REPEATS = 5
"""A reading is the median of this many timings."""

REFERENCE_READINGS = 5

Work = Callable[[], float]
"""Does the fixed work once and returns its milliseconds."""


class Canary:
    """Times the same work before and after a measurement, and compares both with the first readings of this object.

    Make one per process and device, before anything is measured, and use it for every measurement: its reference is the
    median of the first five readings in a row that agree within ``limit``. Until there is one it is not available. Only
    slower readings count as drift: a reading that is faster than the reference by more than ``limit`` replaces it,
    because then the reference was read at a bad time, such as while the device recovered from its power limit.
    On a GPU its buffers take 185 MiB of device memory and its copies replace the content of the L2 cache, so at least
    one call that is not kept belongs between :meth:`before` and the first sample.
    """

    name = "canary"

    def __init__(self, device: Device, clock: Clock, *, work: Work | None = None, limit: float | None = None) -> None:
        """``work`` by default is that of the device, prepared at the first reading."""
        default = CPU_DRIFT_LIMIT if device.kind == "cpu" else DRIFT_LIMIT
        self._limit = default if limit is None else limit
        if not self._limit > 0:
            raise ValueError(f"a drift limit is positive, found {limit!r}")
        self._device, self._clock, self._work = device, clock, work
        self._first: deque[float] = deque(maxlen=REFERENCE_READINGS)
        self._reference_ms: float | None = None
        self._before_ms: float | None = None

    def before(self) -> None:
        """Time the work; the first time, prepare it and find the reference."""
        if self._work is None:
            self._work = cuda_work(self._device, self._clock) if self._device.kind == "cuda" else cpu_work(self._clock)
        while len(self._first) < REFERENCE_READINGS - 1:
            self._read(self._work)
        self._before_ms = self._read(self._work)

    def during(self) -> None:
        """Do nothing: the work would disturb the measured calls."""

    def after(self) -> Mapping[str, object]:
        """Time the work again and compare the slower of both times with the reference."""
        if self._work is None or self._before_ms is None:
            return {"available": False, "reason": "no measurement was begun"}
        before_ms, after_ms = self._before_ms, self._read(self._work)
        self._before_ms = None
        fastest_ms = min(before_ms, after_ms)
        if self._reference_ms is not None and fastest_ms < self._reference_ms * (1 - self._limit):
            self._reference_ms = fastest_ms
        if self._reference_ms is None:
            spread = (max(self._first) - min(self._first)) / median(self._first)
            reason = f"no reference yet: the last {len(self._first)} readings differ by {spread:.1%}"
            return {"available": False, "reason": reason}
        return {
            "available": True,
            "before_ms": before_ms,
            "after_ms": after_ms,
            "reference_ms": self._reference_ms,
            "drift": max(0.0, max(before_ms, after_ms) / self._reference_ms - 1),
            "limit": self._limit,
        }

    def _read(self, work: Work) -> float:
        reading_ms = median(work() for _ in range(REPEATS))
        if self._reference_ms is None:
            self._first.append(reading_ms)
            middle_ms = median(self._first)
            if len(self._first) == REFERENCE_READINGS and (
                max(self._first) - min(self._first) <= self._limit * middle_ms
            ):
                self._reference_ms = middle_ms
        return reading_ms


def cpu_work(clock: Clock) -> Work:
    """Make about a millisecond of products of 48 by 48 matrices, which BLAS libraries do not divide among threads."""
    import numpy

    generator = numpy.random.default_rng(0)
    left, right = (generator.standard_normal((48, 48)).astype(numpy.float32) for _ in range(2))
    product = numpy.empty_like(left)

    def timed(products: int) -> float:
        started_ns = clock.now_ns()
        for _ in range(products):
            numpy.matmul(left, right, out=product)
        return (clock.now_ns() - started_ns) / 1e6

    for _ in range(20):
        timed(100)
    products = max(1, round(100 / min(timed(100) for _ in range(10))))
    return lambda: timed(products)


def cuda_work(device: Device, clock: Clock) -> Work:
    """Make a GEMM of 3072 cubed in fp16 and a copy of 64 MiB, together 0.1 to 0.2 ms on an H200, timed on the device.

    Both are captured in a CUDA graph, so that no candidate's global switch changes which kernels run. One replay that
    is not timed comes first and keeps the device busy while the timed one is queued: the launch of the timed one then
    costs no device time.
    """
    import torch

    cuda: ModuleType = torch.cuda

    where = torch.device(device.torch_name)
    with torch.cuda.device(where), torch.no_grad():
        generator = torch.Generator(device=where)
        generator.manual_seed(0)
        left, right = (
            torch.randn((3072, 3072), generator=generator, device=where, dtype=torch.float16) for _ in range(2)
        )
        product = torch.empty_like(left)
        source = torch.zeros(2**26, device=where, dtype=torch.uint8)
        target = torch.empty_like(source)
        side = cuda.Stream(where)
        side.wait_stream(torch.cuda.current_stream(where))
        with torch.cuda.stream(side):
            for _ in range(3):  # the first product chooses its kernel and allocates its workspace
                torch.mm(left, right, out=product)
                target.copy_(source)
        torch.cuda.synchronize(where)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            torch.mm(left, right, out=product)
            target.copy_(source)
        first, last = (cuda.Event(enable_timing=True) for _ in range(2))
    buffers = (left, right, product, source, target)

    def timed() -> float:
        with torch.cuda.device(buffers[0].device):  # the closure keeps the buffers, which the graph reads
            stream = torch.cuda.current_stream(where)
            torch.cuda.synchronize(where)
            graph.replay()
            first.record(stream)
            graph.replay()
            last.record(stream)
            last.synchronize()
            return float(first.elapsed_time(last))

    begun_ns = clock.now_ns()
    with torch.cuda.device(where):
        # Clocks rise under load. A spin draws little power; as many milliseconds of products would bring an H200 to its
        # power limit for half a second.
        while clock.now_ns() - begun_ns < 100e6:
            cuda._sleep(1_000_000)
            torch.cuda.synchronize(where)
    return timed
