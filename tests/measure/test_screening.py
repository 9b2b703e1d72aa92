import json
from itertools import chain, repeat

import pytest

from autotune.measure.device_clock import DeviceTime
from autotune.measure.screening import screen, warm_up
from autotune.measure.timer import CpuTimer, Sample
from autotune.records.trial import Measurement
from autotune.testing import FakeCall, FakeClock

SETS = [("a",), ("b",), ("c",)]


def screening(*durations_ms, endless=None, **options):
    clock = FakeClock()
    call = FakeCall(clock, *durations_ms, endless=endless)
    return screen(call, SETS, CpuTimer(clock), clock=clock, **options), call, clock


def test_warm_up_ends_when_five_windows_agree():
    clock = FakeClock()
    falling = chain([50.0, 40.0, 30.0, 25.0, 22.0], repeat(20.0))
    warm = warm_up(FakeCall(clock, endless=falling), SETS, CpuTimer(clock), clock=clock)
    assert (warm.calls, warm.settled, warm.typical_ms) == (10, True, 20.0)


def test_warm_up_takes_200_ms_of_quick_calls():
    clock = FakeClock()
    warm = warm_up(FakeCall(clock, 0.5), SETS, CpuTimer(clock), clock=clock)
    assert warm.settled and warm.calls == 400 and warm.elapsed_ms == pytest.approx(200)


def test_warm_up_gives_up_after_a_second():
    clock = FakeClock()
    warm = warm_up(FakeCall(clock, 20.0, 30.0), SETS, CpuTimer(clock), clock=clock)
    assert not warm.settled and 1000 <= warm.elapsed_ms <= 1030


@pytest.mark.parametrize(("call_ms", "calls"), [(1500.0, 1), (600.0, 3)])
def test_warm_up_of_slow_calls(call_ms, calls):
    clock = FakeClock()
    assert warm_up(FakeCall(clock, call_ms), SETS, CpuTimer(clock), clock=clock).calls == calls


def test_screening_records_every_sample_with_its_conditions():
    result, call, _ = screening(10.0, conditions={"seed": 7})
    measurement = result.measurement
    assert (result.pruned, result.reason) == (False, "interval reached")
    assert measurement.samples_ms == ((10.0,) * 30,)
    assert measurement.device_samples_ms == ()
    conditions = measurement.conditions
    assert conditions["input_sets"] == [0, 1, 2] * 10
    assert conditions["cpu_ms"] == [10.0] * 30 and conditions["switches"] == [0] * 30
    assert conditions["seed"] == 7 and conditions["process"] > 0 and conditions["stopped"] == "interval reached"
    assert conditions["warm_up"]["calls"] == len(call.calls) - 30
    assert measurement.protocol["name"] == "screening" and measurement.protocol["sets"] == 3
    assert Measurement.from_dict(json.loads(json.dumps(measurement.as_dict()))) == measurement


def test_screening_groups_short_calls():
    result, _, _ = screening(0.25)
    grouped = result.measurement.protocol["grouped"]
    assert grouped == 5
    assert set(result.measurement.flat_ms) == {0.25}
    assert len(result.measurement.flat_ms) * grouped * 0.25 >= 100


def test_screening_of_a_slow_call_takes_three_samples():
    result, _, clock = screening(3000.0)
    assert result.measurement.flat_ms == (3000.0,) * 3
    assert result.reason == "time limit" and clock.now_ns() == 12_000 * 10**6


def test_screening_stays_within_its_limit_where_noise_is_wild():
    result, _, clock = screening(endless=iter([1.0, 30.0, 5.0, 90.0] * 10_000))
    assert result.reason == "time limit"
    assert clock.now_ns() / 1e6 <= 1000 + 2000 + 2 * 90


def test_a_hopeless_candidate_is_pruned_with_what_was_sampled():
    result, _, _ = screening(10.0, abandon_ms=9.9)
    assert result.pruned and result.measurement.flat_ms == (10.0,) * 5
    assert "9.9" in result.reason


def test_one_fast_sample_keeps_a_candidate():
    result, _, _ = screening(endless=chain([10.0] * 20, [8.0], repeat(10.0)), abandon_ms=9.9)
    assert not result.pruned


class DeviceTimer:
    """A timer of a device with a clock of its own that runs at half the wall's pace."""

    kind = "cuda"
    l2 = "steady"

    def __init__(self, clock):
        self._cpu = CpuTimer(clock)

    def settle(self):
        pass

    def grouping(self, typical_ms):
        return 1

    def time_call(self, function, inputs, grouped=1):
        wall_ms = self._cpu.time_call(function, inputs).wall_ms
        return Sample(wall_ms=wall_ms, queue_ms=wall_ms / 4)

    def time_on_device(self, function, inputs, sample, previous=None):
        return DeviceTime(
            ms=sample.wall_ms / 2, unrolled=4 if previous is None else previous.unrolled, queued=previous is None
        )


def test_device_samples_stand_beside_wall_samples():
    clock = FakeClock()
    result = screen(FakeCall(clock, 8.0), SETS, DeviceTimer(clock), clock=clock)
    assert result.measurement.samples_ms == ((8.0,) * 30,)
    assert result.measurement.device_samples_ms == ((4.0,) * 8,)
    assert result.measurement.conditions["queued"] is False
    assert result.measurement.protocol["unrolled"] == 4 and result.measurement.protocol["device"] == "cuda"


def test_no_inputs_are_refused():
    clock = FakeClock()
    with pytest.raises(ValueError, match="set of inputs"):
        screen(FakeCall(clock, 1.0), [], CpuTimer(clock), clock=clock)


def test_a_callable_that_fails_on_the_nth_call_passes_through():
    clock = FakeClock()

    def failing():
        yield from [10.0] * 25
        raise RuntimeError("call 26")

    with pytest.raises(RuntimeError, match="call 26"):
        screen(FakeCall(clock, endless=failing()), SETS, CpuTimer(clock), clock=clock)


def test_a_clock_that_still_rises_keeps_the_warm_up_going():
    clock = FakeClock()
    rising = chain([1000.0 + 70 * step for step in range(14)], repeat(1980.0))
    call = FakeCall(clock, endless=repeat(10.0))
    warm = warm_up(call, [()], CpuTimer(clock), clock=clock, sm_clock_mhz=lambda: next(rising))
    calm = warm_up(call, [()], CpuTimer(clock), clock=clock)
    assert warm.settled and calm.settled and warm.calls > calm.calls
