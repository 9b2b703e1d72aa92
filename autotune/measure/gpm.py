"""A GPU's own counters of its SM activity between two moments, through NVML's GPM (Hopper and later): GpmWindow."""

import math
from collections.abc import Callable
from types import ModuleType

from autotune.errors import WorkError
from autotune.measure.clock import Clock, SystemClock
from autotune.measure.nvml import open_nvml
from autotune.records.device import Device

SHORTEST_WINDOW_S = 0.1
"""NVML refreshes its counters about this often: two samples closer than that show nothing.

https://docs.nvidia.com/deploy/nvml-api/group__nvmlGpmFunctions.html
"""

METRICS = {
    "sm_util": "NVML_GPM_METRIC_SM_UTIL",
    "sm_occupancy": "NVML_GPM_METRIC_SM_OCCUPANCY",
    "any_tensor": "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
    "dram_bw": "NVML_GPM_METRIC_DRAM_BW_UTIL",
}
"""Our names of the metrics, and NVML's; NVML reports all four as percentages of the theoretical maximum."""


def available(handle: object, nvml: ModuleType) -> tuple[bool, str]:
    """Return whether GPM can be read on a device (a GPU or a MIG device), and why not; takes a sample."""
    try:
        gpu, _ = _seat(handle, nvml)
        if not nvml.nvmlGpmQueryDeviceSupport(gpu).isSupportedDevice:
            return False, "this GPU has no GPM counters (Hopper and later have them)"
        GpmWindow(handle, nvml).probe()
    except nvml.NVMLError as error:
        return False, f"GPM counters cannot be read: {error}"
    return True, ""


class GpmWindow:
    """The activity of a whole GPU, or of one MIG GPU instance, between :meth:`begin` and :meth:`end`.

    ``handle`` is NVML's, ``nvml`` its bindings, initialised. Other processes' work on the device counts as well.
    ``NVMLError`` passes through. Used by one thread; a window can be begun again after its end.
    """

    def __init__(self, handle: object, nvml: ModuleType, *, clock: Clock | None = None) -> None:
        self._nvml = nvml
        self._gpu, self._instance = _seat(handle, nvml)
        self._clock = clock or SystemClock()
        self._first: object = None
        self._begun_ns = 0

    def probe(self) -> None:
        """Take a sample and drop it: raises ``NVMLError`` if that is not possible."""
        self._nvml.nvmlGpmSampleFree(self._sample())

    def begin(self) -> None:
        """Take the first sample; a window that was open is dropped."""
        self.close()
        self._first = self._sample()
        self._begun_ns = self._clock.now_ns()

    def end(self) -> dict[str, float | None]:
        """Take the second sample and return each of :data:`METRICS` as a fraction, None if the device lacks it.

        :class:`WorkError` less than 100 ms after :meth:`begin` (the window stays open), or without one.
        """
        if self._first is None:
            raise WorkError("a GPM window was ended", found="no window that was begun", expected="begin() before end()")
        elapsed_s = (self._clock.now_ns() - self._begun_ns) / 1e9
        if elapsed_s < SHORTEST_WINDOW_S:
            raise WorkError(
                "a GPM window was ended too soon",
                found=f"{elapsed_s * 1e3:.1f} ms between its samples",
                expected=f"at least {SHORTEST_WINDOW_S * 1e3:.0f} ms: the counters are refreshed no more often",
            )
        try:
            last = self._sample()
            try:
                return self._metrics(last)
            finally:
                self._nvml.nvmlGpmSampleFree(last)
        finally:
            self.close()

    def close(self) -> None:
        """Free what :meth:`begin` holds; may be called at any time."""
        if self._first is not None:
            first, self._first = self._first, None
            self._nvml.nvmlGpmSampleFree(first)

    def _sample(self) -> object:
        sample = self._nvml.nvmlGpmSampleAlloc()
        try:
            if self._instance is None:
                self._nvml.nvmlGpmSampleGet(self._gpu, sample)
            else:
                self._nvml.nvmlGpmMigSampleGet(self._gpu, self._instance, sample)
        except self._nvml.NVMLError:
            self._nvml.nvmlGpmSampleFree(sample)
            raise
        return sample

    def _metrics(self, last: object) -> dict[str, float | None]:
        request = self._nvml.c_nvmlGpmMetricsGet_t()
        request.version = self._nvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(METRICS)
        request.sample1, request.sample2 = self._first, last
        for place, constant in enumerate(METRICS.values()):
            request.metrics[place].metricId = getattr(self._nvml, constant)
        self._nvml.nvmlGpmMetricsGet(request)
        metrics = [request.metrics[place] for place in range(len(METRICS))]
        return {
            name: self._fraction(float(metric.value), metric.nvmlReturn)
            for name, metric in zip(METRICS, metrics, strict=True)
        }

    def _fraction(self, value: float, status: int) -> float | None:
        if status != self._nvml.NVML_SUCCESS or not math.isfinite(value) or value < 0:
            return None
        return min(value / 100, 1.0)


def measured(
    call: Callable[[], None],
    device: Device,
    *,
    seconds: float,
    clock: Clock | None = None,
    nvml: ModuleType | None = None,
) -> dict[str, object]:
    """Read the counters over ``seconds`` of calls, each of which returns when its work on the device is done.

    Returns ``{"available": True, **metrics, "seconds", "calls"}``, or ``{"available": False, "reason"}`` if the driver
    or the device has no counters. ``ValueError`` for less than 0.1 seconds; an error of the call passes through.
    """
    if not seconds >= SHORTEST_WINDOW_S:
        raise ValueError(f"SM activity needs at least {SHORTEST_WINDOW_S} s of calls, found {seconds!r}")
    clock = clock or SystemClock()
    try:
        gpu = open_nvml(device, nvml)
    except OSError as error:
        return {"available": False, "reason": str(error)}
    try:
        works, reason = available(gpu.handle, gpu.nvml)
        if not works:
            return {"available": False, "reason": reason}
        return _over_calls(call, GpmWindow(gpu.handle, gpu.nvml, clock=clock), seconds=seconds, clock=clock)
    except gpu.nvml.NVMLError as error:
        return {"available": False, "reason": f"GPM counters cannot be read: {error}"}


def _over_calls(call: Callable[[], None], window: GpmWindow, *, seconds: float, clock: Clock) -> dict[str, object]:
    """Call once before the window begins, then call within it until the time is up."""
    call()
    calls = 0
    window.begin()
    try:
        started_ns = clock.now_ns()
        while clock.now_ns() - started_ns < seconds * 1e9:
            call()
            calls += 1
        elapsed_s = (clock.now_ns() - started_ns) / 1e9
        return {"available": True, **window.end(), "seconds": elapsed_s, "calls": calls}
    finally:
        window.close()


def _seat(handle: object, nvml: ModuleType) -> tuple[object, int | None]:
    """Return the GPU's handle, and the GPU instance if the handle is a MIG device's: counters are the GPU's."""
    if not nvml.nvmlDeviceIsMigDeviceHandle(handle):
        return handle, None
    gpu = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return gpu, int(nvml.nvmlDeviceGetGpuInstanceId(handle))
