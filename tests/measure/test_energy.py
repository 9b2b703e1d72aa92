import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.errors import DeviceError, WorkError
from autotune.measure.clock import SystemClock
from autotune.measure.energy import COUNTER_TIMEOUT_S, Energy, energy_per_call, nvml_energy_counter
from autotune.records.device import Device
from autotune.testing import FakeCall, FakeClock

SETS = [("a",), ("b",), ("c",)]
GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))


class Meter:
    """A device that draws the same power all the time, with a counter that is renewed now and then."""

    def __init__(self, power_w=500.0, *, renewed_ms=100.0, call_ms=2.0, start_mj=10**9):
        self.clock = FakeClock()
        self.power_w, self.renewed_ns, self.start_mj = power_w, renewed_ms * 1e6, start_mj
        self.call = FakeCall(self.clock, call_ms)
        self.waited = self.read = 0

    def counter(self):
        self.read += 1
        renewed_s = self.clock.now_ns() // self.renewed_ns * self.renewed_ns / 1e9
        return self.start_mj + round(self.power_w * renewed_s * 1e3)

    def synchronize(self):
        self.waited += 1

    def energy(self, **options):
        return energy_per_call(self.call, SETS, self.counter, self.clock, self.synchronize, **options)


def test_energy_is_counted_from_renewal_to_renewal():
    meter = Meter()
    found = meter.energy()
    assert found.joules_per_call == pytest.approx(500.0 * 0.002)
    assert found.seconds == pytest.approx(5.1, abs=0.1) and found.calls == pytest.approx(found.seconds / 0.002)
    assert found.mean_power_w == pytest.approx(500.0)
    assert found.energy_j == pytest.approx(found.joules_per_call * found.calls)
    assert meter.waited == len(meter.call.calls) > found.calls, "the calls before the first renewal do not count"
    assert [call for call in meter.call.calls[:6]] == SETS * 2
    assert meter.read < 150, "between the ends the counter is left alone"


@given(
    power_w=st.floats(50.0, 1000.0),
    call_ms=st.floats(0.5, 50.0),
    renewed_ms=st.floats(20.0, 120.0),
    least_s=st.floats(2.0, 6.0),
)
def test_the_error_is_at_most_a_call_at_either_end(power_w, call_ms, renewed_ms, least_s):
    found = Meter(power_w, call_ms=call_ms, renewed_ms=renewed_ms).energy(least_s=least_s)
    assert found.seconds >= least_s
    allowed = 2 * call_ms / 1e3 / least_s + 1e-4
    assert found.joules_per_call == pytest.approx(power_w * call_ms / 1e3, rel=allowed)


def test_calls_longer_than_a_renewal_are_fine():
    found = Meter(call_ms=700.0).energy()
    assert found.joules_per_call == pytest.approx(350.0, rel=0.05) and found.seconds >= 5.0


def test_a_counter_that_stands_still_is_refused():
    meter = Meter(power_w=0.0)
    with pytest.raises(WorkError, match=r"stood at 1000000000 mJ"):
        meter.energy()
    assert meter.clock.now_ns() / 1e9 == pytest.approx(COUNTER_TIMEOUT_S, abs=0.01)


def test_a_counter_that_stops_after_a_while_is_refused():
    meter = Meter()
    sound = meter.counter
    meter.counter = lambda: min(sound(), meter.start_mj + 400_000)
    with pytest.raises(WorkError, match="stood at"):
        meter.energy()


@pytest.mark.parametrize("after_s", [0.01, 3.0])
def test_a_counter_that_goes_backwards_is_refused(after_s):
    meter = Meter()
    sound = meter.counter
    meter.counter = lambda: sound() - (10**8 if meter.clock.now_ns() > after_s * 1e9 else 0)
    with pytest.raises(WorkError, match="fell"):
        meter.energy()


@pytest.mark.parametrize("step_ms", [0.0, -1.0])
def test_a_clock_that_does_not_grow_is_refused(step_ms):
    with pytest.raises(WorkError, match="clock"):
        Meter(call_ms=step_ms).energy()


def test_bad_requests_are_refused_and_what_the_callable_raises_passes_through():
    meter = Meter()
    with pytest.raises(ValueError, match="least_s"):
        meter.energy(least_s=0.0)
    with pytest.raises(ValueError, match="inputs"):
        energy_per_call(meter.call, [], meter.counter, meter.clock, meter.synchronize)

    def broken(*_):
        raise RuntimeError("third call")

    meter.call = broken
    with pytest.raises(RuntimeError, match="third call"):
        meter.energy()


def test_an_energy_record_is_checked():
    good = {"joules_per_call": 1.0, "calls": 2, "seconds": 3.0, "energy_j": 2.0, "mean_power_w": 0.67}
    assert Energy(**good).as_dict() == good
    for name, bad in (("calls", 0), ("seconds", 0.0), ("energy_j", -1.0), ("energy_j", float("nan"))):
        with pytest.raises(ValueError):
            Energy(**{**good, name: bad})


class Nvml:
    class NVMLError(Exception):
        pass

    def __init__(self, answer):
        self.answer = answer

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.answer is None:
            raise self.NVMLError("Not Supported")
        return self.answer


def test_the_counter_of_a_gpu_or_why_there_is_none():
    assert nvml_energy_counter(GPU, Nvml(1234))() == 1234
    with pytest.raises(DeviceError, match="NVML: Not Supported"):
        nvml_energy_counter(GPU, Nvml(None))
    with pytest.raises(DeviceError, match="a CPU has no NVML"):
        nvml_energy_counter(Device(kind="cpu", name="Some CPU", uuid="cpu-1"))


@pytest.mark.gpu
def test_energy_of_a_product_on_this_gpu():
    import torch

    from autotune.runtime import discovery

    counter = nvml_energy_counter(discovery.find("cuda"))
    matrix = torch.randn((8192, 8192), device="cuda", dtype=torch.float16)
    begun = time.monotonic()
    found = energy_per_call(torch.mm, [(matrix, matrix)], counter, SystemClock(), torch.cuda.synchronize)
    assert found.seconds <= time.monotonic() - begun
    assert 50 < found.mean_power_w < 1500 and found.joules_per_call > 0.01
