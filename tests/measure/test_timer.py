import math
import time

import pytest

from autotune.measure.clock import SystemClock
from autotune.measure.timer import CpuTimer, CudaTimer, Sample
from autotune.testing import FakeCall, FakeClock


def test_cpu_timer_reads_a_fake_clock_exactly():
    clock = FakeClock()
    sample = CpuTimer(clock).time_call(FakeCall(clock, 1.234567), ("x",))
    assert sample == Sample(wall_ms=1.234567)


def test_cpu_timer_groups_short_calls_and_divides():
    clock = FakeClock()
    call = FakeCall(clock, 0.1, 0.3)
    timer = CpuTimer(clock)
    grouped = timer.grouping(0.2)
    assert grouped * 0.2 >= 1.0
    sample = timer.time_call(call, ("x",), grouped)
    assert sample.wall_ms == pytest.approx(0.2)
    assert len(call.calls) == grouped == 6


def test_cpu_timer_leaves_long_calls_alone():
    assert CpuTimer(FakeClock()).grouping(1.0) == 1


def test_a_cpu_has_no_clock_of_its_own():
    timer = CpuTimer(FakeClock())
    timer.settle()
    assert timer.time_on_device(FakeCall(FakeClock(), 1.0), (), Sample(wall_ms=1.0)) is None


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
        Sample(wall_ms=1.0, queue_ms=bad)


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
def test_cuda_timer_times_the_wait_and_the_device_apart():
    import torch

    timer = CudaTimer(SystemClock())
    cycles = 2_000_000  # about a millisecond

    def spin(*_):
        torch.cuda._sleep(cycles)

    timer.settle()
    for _ in range(20):
        sample = timer.time_call(spin, ())
    assert sample.queue_ms is not None and sample.queue_ms < sample.wall_ms / 2
    long = timer.time_on_device(spin, (), sample)
    assert long is not None and long.queued and long.unrolled == 1
    assert 0.9 * sample.wall_ms < long.ms < sample.wall_ms * 1.01
    cycles = 20_000
    short = timer.time_on_device(spin, (), timer.time_call(spin, ()))
    assert short is not None and short.queued and short.unrolled > 1
    assert short.ms == pytest.approx(long.ms / 100, rel=0.2)


@pytest.mark.gpu
def test_a_call_that_waits_for_the_device_is_not_told_as_queued():
    import torch

    timer = CudaTimer(SystemClock())
    matrix = torch.randn(256, 256, device="cuda:0")

    def waits(*_):
        return float((matrix @ matrix).sum())

    timer.settle()
    sample = [timer.time_call(waits, ()) for _ in range(10)][-1]
    told = timer.time_on_device(waits, (), sample)
    assert told is not None and not told.queued


@pytest.mark.gpu
def test_a_cold_cache_makes_a_kernel_slower():
    import torch

    source = torch.randn(4 * 2**20, device="cuda:0")  # 16 MiB, which the L2 cache holds
    target = torch.empty_like(source)

    def copy(*_):
        target.copy_(source)

    times = {}
    for l2 in ("steady", "cold"):
        timer = CudaTimer(SystemClock(), l2=l2)
        timer.settle()
        sample = [timer.time_call(copy, ()) for _ in range(10)][-1]
        told = None
        for _ in range(10):
            told = timer.time_on_device(copy, (), sample, told)
        times[l2] = told
    assert times["cold"].unrolled == 1 < times["steady"].unrolled
    assert times["cold"].ms > 1.2 * times["steady"].ms
