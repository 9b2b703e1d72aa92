import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.measure.canary import CPU_DRIFT_LIMIT, DRIFT_LIMIT, REFERENCE_READINGS, REPEATS, Canary, cpu_work
from autotune.measure.clock import SystemClock
from autotune.records.device import Device
from autotune.testing import FakeClock

CPU = Device(kind="cpu", name="Some CPU", uuid="cpu-1")
GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))


class Machine:
    """A machine on which the work takes ``pace_ms``."""

    def __init__(self, pace_ms=0.15):
        self.pace_ms, self.runs = pace_ms, 0

    def work(self):
        self.runs += 1
        return self.pace_ms

    def canary(self, **options):
        return Canary(GPU, FakeClock(), work=self.work, **options)


def test_a_steady_machine_does_not_drift():
    machine = Machine()
    canary = machine.canary()
    canary.before()
    canary.during()
    assert canary.after() == {
        "available": True,
        "before_ms": 0.15,
        "after_ms": 0.15,
        "reference_ms": 0.15,
        "drift": 0.0,
        "limit": DRIFT_LIMIT,
    }
    assert machine.runs == REPEATS * (REFERENCE_READINGS + 1)
    canary.before()
    canary.after()
    assert machine.runs == REPEATS * (REFERENCE_READINGS + 3), "the reference is taken once"


@given(before=st.floats(0.5, 2.0), after=st.floats(0.5, 2.0))
def test_drift_is_how_much_slower_than_the_reference_it_became(before, after):
    machine = Machine(1.0)
    canary = machine.canary()
    canary.before()
    canary.after()
    machine.pace_ms = before
    canary.before()
    machine.pace_ms = after
    reading = canary.after()
    faster = min(before, after)
    reference = faster if faster < 1.0 - DRIFT_LIMIT else 1.0
    assert reading["drift"] == pytest.approx(max(0.0, max(before, after) / reference - 1))
    assert (reading["before_ms"], reading["after_ms"], reading["reference_ms"]) == (before, after, reference)


def test_a_reference_from_a_bad_time_is_replaced_once_the_machine_is_faster():
    machine = Machine(0.13)
    canary = machine.canary()
    canary.before()
    canary.after()
    machine.pace_ms = 0.11
    drifts = []
    for _ in range(3):
        canary.before()
        drifts.append(canary.after()["drift"])
    assert drifts == [0.0, 0.0, 0.0]
    machine.pace_ms = 0.12
    canary.before()
    assert canary.after()["drift"] > DRIFT_LIMIT


def test_a_reading_is_a_median_that_one_slow_run_does_not_move():
    machine = Machine()
    canary = machine.canary()
    canary.before()
    canary.after()
    slow = machine.runs + 2

    def work():
        machine.runs += 1
        return 9.0 if machine.runs == slow else machine.pace_ms

    machine.work = canary._work = work
    canary.before()
    assert canary.after()["drift"] == 0.0 and machine.runs > slow


def test_without_five_agreeing_readings_there_is_no_reference_yet():
    machine = Machine()
    canary = machine.canary()
    paces = iter([0.10, 0.11, 0.12, 0.13, 0.14, 0.15])

    def unsteady():
        machine.runs += 1
        if machine.runs % REPEATS == 1:
            machine.pace_ms = next(paces)
        return machine.pace_ms

    canary._work = unsteady
    canary.before()
    reading = canary.after()
    assert reading["available"] is False and "differ by" in reading["reason"]
    canary._work = machine.work
    found = []
    for _ in range(3):
        canary.before()
        found.append(canary.after())
    assert [reading["available"] for reading in found] == [False, True, True]
    assert found[-1]["reference_ms"] == 0.15 and found[-1]["drift"] == 0.0


def test_limits_differ_by_device_and_bad_ones_are_refused():
    for device, limit in ((GPU, DRIFT_LIMIT), (CPU, CPU_DRIFT_LIMIT)):
        canary = Canary(device, FakeClock(), work=lambda: 1.0)
        canary.before()
        assert canary.after()["limit"] == limit
    with pytest.raises(ValueError, match="positive"):
        Canary(CPU, FakeClock(), limit=0.0)


def test_an_end_without_a_beginning_is_not_available():
    canary = Machine().canary()
    assert canary.after()["available"] is False
    canary.before()
    canary.after()
    assert canary.after()["available"] is False


def test_the_cpus_work_is_timed_by_the_clock_in_one_thread():
    threads = threading.active_count()
    clock = SystemClock()
    work = cpu_work(clock)
    begun = clock.now_ns(), clock.cpu_ns()
    timed_ms = sum(work() for _ in range(20))
    wall_ms, cpu_ms = (clock.now_ns() - begun[0]) / 1e6, (clock.cpu_ns() - begun[1]) / 1e6
    assert 0 < timed_ms <= wall_ms
    assert cpu_ms <= 1.2 * wall_ms + 1.0, "a second thread would use twice the wall time"
    assert threading.active_count() == threads


def test_the_cpus_canary_gives_plain_data():
    canary = Canary(CPU, SystemClock())
    canary.before()
    reading = canary.after()
    assert json.loads(json.dumps(reading)) == reading
    assert reading["available"] is False or reading["drift"] >= 0


@pytest.mark.gpu
def test_the_canary_of_this_gpu_is_short_and_steady():
    from autotune.runtime import discovery

    canary = Canary(discovery.find("cuda"), SystemClock())
    drifts = []
    for _ in range(20):
        canary.before()
        reading = canary.after()
        if reading["available"]:
            drifts.append(reading["drift"])
    assert len(drifts) >= 10 and 0.02 < reading["before_ms"] < 5.0
    assert sorted(drifts)[len(drifts) // 2] < DRIFT_LIMIT
