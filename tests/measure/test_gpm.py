import ctypes
import math

import pynvml
import pytest

from autotune.errors import WorkError
from autotune.measure.gpm import SHORTEST_WINDOW_S, GpmWindow, available, measured
from autotune.records.device import Device
from autotune.testing import FakeCall, FakeClock

GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))
PERCENT = {
    pynvml.NVML_GPM_METRIC_SM_UTIL: 75.0,
    pynvml.NVML_GPM_METRIC_SM_OCCUPANCY: 37.5,
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: 12.5,
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: 50.0,
}
FRACTIONS = {"sm_util": 0.75, "sm_occupancy": 0.375, "any_tensor": 0.125, "dram_bw": 0.5}


class FakeNvml:
    """NVML's own structures and constants around a device made up of percentages; counts what is not freed."""

    def __init__(self, percent=PERCENT, *, supported=True, mig=False, fails=(), missing=()):
        self.percent, self.supported, self.mig, self.fails, self.missing = percent, supported, mig, fails, missing
        self.sampled, self.live = [], set()
        self._made = 0

    def __getattr__(self, name):
        if name.startswith(("NVML_", "NVMLError", "c_nvml")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def _may_fail(self, name):
        if name in self.fails:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

    def nvmlInit(self):
        self._may_fail("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceIsMigDeviceHandle(self, handle):
        return ctypes.c_uint(self.mig)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):
        return f"parent of {handle}"

    def nvmlDeviceGetGpuInstanceId(self, handle):
        return 7

    def nvmlGpmQueryDeviceSupport(self, handle):
        self._may_fail("nvmlGpmQueryDeviceSupport")
        return pynvml.c_nvmlGpmSupport_t(version=1, isSupportedDevice=self.supported)

    def nvmlGpmSampleAlloc(self):
        self._made += 1
        self.live.add(self._made)
        return ctypes.cast(self._made, pynvml.c_nvmlGpmSample_t)

    def nvmlGpmSampleFree(self, sample):
        self.live.remove(address(sample))

    def nvmlGpmSampleGet(self, handle, sample):
        self._may_fail("nvmlGpmSampleGet")
        self.sampled.append((handle, None))

    def nvmlGpmMigSampleGet(self, handle, instance, sample):
        self.sampled.append((handle, instance))

    def nvmlGpmMetricsGet(self, request):
        self._may_fail("nvmlGpmMetricsGet")
        assert request.version == pynvml.NVML_GPM_METRICS_GET_VERSION
        assert address(request.sample1) < address(request.sample2)
        assert {address(request.sample1), address(request.sample2)} <= self.live
        for metric in request.metrics[: request.numMetrics]:
            if metric.metricId in self.missing:
                metric.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
            else:
                metric.value = self.percent[metric.metricId]


def address(sample):
    return ctypes.cast(sample, ctypes.c_void_p).value


def test_a_window_gives_fractions_and_frees_its_samples():
    nvml, clock = FakeNvml(), FakeClock()
    window = GpmWindow("gpu", nvml, clock=clock)
    window.begin()
    clock.advance(100)
    assert window.end() == FRACTIONS
    assert nvml.sampled == [("gpu", None)] * 2 and not nvml.live
    window.begin()
    clock.advance(250)
    assert window.end() == FRACTIONS and not nvml.live


def test_samples_less_than_a_tenth_of_a_second_apart_are_refused_and_the_window_stays_open():
    nvml, clock = FakeNvml(), FakeClock()
    window = GpmWindow("gpu", nvml, clock=clock)
    window.begin()
    clock.advance(99.9)
    with pytest.raises(WorkError, match=r"99\.9 ms between its samples"):
        window.end()
    clock.advance(0.1)
    assert window.end() == FRACTIONS
    assert not nvml.live


def test_a_window_is_begun_before_it_ends():
    window = GpmWindow("gpu", FakeNvml(), clock=FakeClock())
    with pytest.raises(WorkError, match="no window that was begun"):
        window.end()


def test_beginning_again_and_closing_drop_what_was_held():
    nvml = FakeNvml()
    window = GpmWindow("gpu", nvml, clock=FakeClock())
    window.begin()
    window.begin()
    assert len(nvml.live) == 1
    window.close()
    window.close()
    assert not nvml.live


def test_a_mig_device_is_read_through_its_gpu_and_instance():
    nvml, clock = FakeNvml(mig=True), FakeClock()
    window = GpmWindow("mig", nvml, clock=clock)
    window.begin()
    clock.advance(200)
    assert window.end() == FRACTIONS
    assert nvml.sampled == [("parent of mig", 7)] * 2


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_metric_that_is_missing_or_makes_no_sense_is_none(value):
    percent = {**PERCENT, pynvml.NVML_GPM_METRIC_SM_OCCUPANCY: value, pynvml.NVML_GPM_METRIC_SM_UTIL: 100.2}
    nvml, clock = FakeNvml(percent, missing=(pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,)), FakeClock()
    window = GpmWindow("gpu", nvml, clock=clock)
    window.begin()
    clock.advance(200)
    assert window.end() == {"sm_util": 1.0, "sm_occupancy": None, "any_tensor": 0.125, "dram_bw": None}


@pytest.mark.parametrize("failing", ["nvmlGpmSampleGet", "nvmlGpmMetricsGet"])
def test_an_error_of_nvml_passes_through_and_leaks_nothing(failing):
    nvml, clock = FakeNvml(), FakeClock()
    window = GpmWindow("gpu", nvml, clock=clock)
    window.begin()
    clock.advance(200)
    nvml.fails = (failing,)
    with pytest.raises(pynvml.NVMLError):
        window.end()
    assert not nvml.live


def test_available_says_why_not():
    nvml = FakeNvml()
    assert available("gpu", nvml) == (True, "") and not nvml.live
    assert available("gpu", FakeNvml(supported=False)) == (
        False,
        "this GPU has no GPM counters (Hopper and later have them)",
    )
    for failing in ("nvmlGpmQueryDeviceSupport", "nvmlGpmSampleGet"):
        nvml = FakeNvml(fails=(failing,))
        works, reason = available("gpu", nvml)
        assert not works and "Permission" in reason and not nvml.live


def test_measured_calls_until_the_time_is_up():
    nvml, clock = FakeNvml(), FakeClock()
    call = FakeCall(clock, 50.0)
    seen = measured(call, GPU, seconds=0.5, clock=clock, nvml=nvml)
    assert seen == {"available": True, **FRACTIONS, "seconds": 0.5, "calls": 10}
    assert len(call.calls) == 11  # one to get going
    assert nvml.sampled[-1] == ("GPU-1", None) and not nvml.live


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (FakeNvml(fails=("nvmlInit",)), "Permission"),
        (FakeNvml(supported=False), "no GPM counters"),
        (FakeNvml(fails=("nvmlGpmMetricsGet",)), "cannot be read"),
    ],
)
def test_measured_says_why_there_is_nothing(nvml, reason):
    clock = FakeClock()
    seen = measured(FakeCall(clock, 50.0), GPU, seconds=0.2, clock=clock, nvml=nvml)
    assert seen["available"] is False and reason in seen["reason"]
    assert not nvml.live


def test_what_the_call_raises_passes_through_and_leaks_nothing():
    nvml, clock = FakeNvml(), FakeClock()
    call = FakeCall(clock, 50.0)

    def broken():
        call()
        if len(call.calls) == 3:
            raise RuntimeError("third call")

    with pytest.raises(RuntimeError, match="third call"):
        measured(broken, GPU, seconds=1.0, clock=clock, nvml=nvml)
    assert not nvml.live


def test_measured_reads_a_mig_device_through_its_gpu():
    nvml, clock = FakeNvml(mig=True), FakeClock()
    mig = Device(kind="cuda", name="NVIDIA H200", uuid="MIG-1", capability=(9, 0), mig_profile="1g.18gb")
    assert measured(FakeCall(clock, 50.0), mig, seconds=0.2, clock=clock, nvml=nvml)["sm_util"] == 0.75
    assert set(nvml.sampled) == {("parent of MIG-1", 7)}


@pytest.mark.parametrize("seconds", [0.0, 0.09, -1.0, math.nan])
def test_too_short_a_measurement_is_refused(seconds):
    with pytest.raises(ValueError, match=f"at least {SHORTEST_WINDOW_S} s"):
        measured(lambda: None, GPU, seconds=seconds, nvml=FakeNvml())


@pytest.mark.gpu
def test_a_busy_gpu_shows_more_sm_activity_than_an_idle_one():
    import time

    import torch

    uuid = str(torch.cuda.get_device_properties(0).uuid)
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        works, reason = available(handle, pynvml)
        if not works:
            pytest.skip(reason)
        x = torch.randn(8192, 8192, device="cuda:0", dtype=torch.bfloat16)
        x @ x
        torch.cuda.synchronize()
        window = GpmWindow(handle, pynvml)
        window.begin()
        time.sleep(0.5)
        idle = window.end()
        window.begin()
        deadline = time.perf_counter() + 0.5
        while time.perf_counter() < deadline:
            x @ x
            torch.cuda.synchronize()
        busy = window.end()
    finally:
        pynvml.nvmlShutdown()
    assert all(value is not None and 0 <= value <= 1 for value in (*idle.values(), *busy.values()))
    assert busy["sm_util"] > 0.5 > idle["sm_util"]
    assert busy["any_tensor"] > idle["any_tensor"]
