import math
import time

import pytest

from autotune.measure.clock import SystemClock
from autotune.measure.timer import SINGLE, CpuTimer, CudaTimer, Grouping, Sample
from autotune.testing import FakeCall, FakeClock


def test_cpu_timer_reads_a_fake_clock_exactly():
    clock = FakeClock()
    sample = CpuTimer(clock).time_call(FakeCall(clock, 1.234567), ("x",))
    assert sample == Sample(wall_ms=1.234567)


def test_cpu_timer_groups_short_calls_and_divides():
    clock = FakeClock()
    call = FakeCall(clock, 0.1, 0.3)
    timer = CpuTimer(clock)
    grouping = timer.grouping(Sample(wall_ms=0.2))
    assert grouping.grouped * 0.2 >= 1.0
    sample = timer.time_call(call, ("x",), grouping)
    assert sample.wall_ms == pytest.approx(0.2)
    assert len(call.calls) == grouping.grouped == 6


def test_cpu_timer_leaves_long_calls_alone():
    assert CpuTimer(FakeClock()).grouping(Sample(wall_ms=1.0)) == SINGLE


@pytest.mark.parametrize("step_ms", [0.0, -1.0])
def test_a_clock_that_stands_still_or_goes_back_is_refused(step_ms):
    clock = FakeClock()
    with pytest.raises(ValueError, match="positive"):
        CpuTimer(clock).time_call(FakeCall(clock, step_ms), ())


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_samples_are_refused(bad):
    with pytest.raises(ValueError):
        Sample(wall_ms=bad)
    with pytest.raises(ValueError):
        Sample(wall_ms=1.0, device_ms=bad)


def test_bad_grouping_is_refused():
    with pytest.raises(ValueError):
        Grouping(grouped=0)


def test_what_the_callable_raises_passes_through():
    def broken(*_):
        raise RuntimeError("third call")

    with pytest.raises(RuntimeError, match="third call"):
        CpuTimer(FakeClock()).time_call(broken, ())


def test_the_real_clock_only_grows():
    clock = SystemClock()
    wall, cpu, switches = clock.now_ns(), clock.cpu_ns(), clock.switches()
    deadline = time.perf_counter() + 0.002
    while time.perf_counter() < deadline:
        pass
    assert clock.now_ns() - wall >= 2_000_000
    assert clock.cpu_ns() > cpu
    assert clock.switches() >= switches


@pytest.mark.gpu
def test_cuda_timer_records_both_clocks_and_unrolls_short_calls():
    import torch

    timer = CudaTimer(SystemClock())
    cycles = 200_000

    def spin(*_):
        torch.cuda._sleep(cycles)

    for _ in range(20):
        single = timer.time_call(spin, ())
    assert single.device_ms is not None and 0 < single.device_ms <= single.wall_ms * 1.01
    grouping = timer.grouping(single)
    assert (grouping.unrolled > 1) == (single.device_ms < 0.2)
    cycles = 100_000  # longer than the host needs for a launch
    short = timer.time_call(spin, ())
    grouping = timer.grouping(short)
    unrolled = timer.time_call(spin, (), grouping)
    assert grouping.unrolled > 1 and grouping.grouped == 1
    assert unrolled.device_ms is not None and short.device_ms is not None
    assert unrolled.device_ms == pytest.approx(single.device_ms / 2, rel=0.3)
