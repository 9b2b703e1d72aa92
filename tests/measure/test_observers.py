import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.measure.clock import SystemClock
from autotune.measure.observers import HostLoad, NotAvailable, Observers, observers_for, own_cpu_times
from autotune.records.device import Device
from autotune.testing import FakeClock

CPU = Device(kind="cpu", name="Some CPU", uuid="cpu-1", cores=2)


class Recorder:
    """Notes its calls; raises in the one named."""

    def __init__(self, name="gpu", *, breaks="", reading=None):
        self.name, self.breaks, self.calls = name, breaks, []
        self.reading = {"available": True, "temperature_c": 40} if reading is None else reading

    def _called(self, which):
        self.calls.append(which)
        if which == self.breaks:
            raise RuntimeError(f"{which} went wrong")

    def before(self):
        self._called("before")

    def during(self):
        self._called("during")

    def after(self):
        self._called("after")
        return self.reading


class CountingClock(FakeClock):
    def __init__(self):
        super().__init__()
        self.readings = 0

    def now_ns(self):
        self.readings += 1
        return super().now_ns()


def test_looks_are_rare_and_cost_one_reading_of_the_clock():
    clock = CountingClock()
    recorder = Recorder()
    observers = Observers([recorder], clock, every_s=0.1)
    observers.before()
    before = clock.readings
    for _ in range(1000):
        clock.advance(1.0)
        observers.during()
    assert clock.readings - before == 1000
    assert recorder.calls == ["before", *["during"] * 10]
    assert observers.after() == {"gpu": {"available": True, "temperature_c": 40}}


@given(steps=st.lists(st.floats(0.0, 300.0), max_size=60), every_s=st.sampled_from([0.0, 0.05, 0.1]))
def test_two_looks_are_never_closer_than_asked(steps, every_s):
    clock = FakeClock()
    looks_ns = []
    recorder = Recorder()
    recorder.before = recorder.during = lambda: looks_ns.append(clock.now_ns())
    observers = Observers([recorder], clock, every_s=every_s)
    observers.before()
    for step_ms in steps:
        clock.advance(step_ms)
        observers.during()
    gaps_ns = [second - first for first, second in pairwise(looks_ns)]
    assert all(gap >= every_s * 1e9 for gap in gaps_ns)
    assert clock.now_ns() - looks_ns[-1] < every_s * 1e9 or len(looks_ns) == 1 + len(steps)


@pytest.mark.parametrize("breaks", ["before", "during", "after"])
def test_an_observer_that_raises_is_out_and_breaks_nothing(breaks):
    clock = FakeClock()
    broken, sound = Recorder("host", breaks=breaks), Recorder("gpu")
    observers = Observers([broken, sound], clock)
    for _ in range(2):
        observers.before()
        clock.advance(150.0)
        observers.during()
        readings = observers.after()
        assert readings["gpu"]["available"] is True
        assert readings["host"] == {"available": False, "reason": f"RuntimeError: {breaks} went wrong"}
    assert broken.calls.count(breaks) == 1
    assert sound.calls == ["before", "during", "after"] * 2


@pytest.mark.parametrize("reading", [7, [1], {}, {"available": "yes"}, {"available": None}])
def test_a_reading_of_another_kind_counts_as_broken(reading):
    observers = Observers([Recorder(reading=reading)], FakeClock())
    observers.before()
    found = observers.after()["gpu"]
    assert found["available"] is False and found["reason"]


def test_no_observers_cost_nothing():
    clock = CountingClock()
    observers = Observers((), clock)
    observers.before()
    observers.during()
    assert observers.after() == {}
    assert clock.readings == 0


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="distinct"):
        Observers([Recorder(), Recorder()], FakeClock())
    with pytest.raises(ValueError, match="every_s"):
        Observers([], FakeClock(), every_s=-1.0)


class Host:
    """Two cores of which others keep some busy, and this process whatever its clock says."""

    def __init__(self, *, others=0.0, cores=2):
        self.clock, self.others, self.cores = FakeClock(), others, cores
        self.other_s = self.passed_s = 0.0

    def times(self):
        return self.other_s + self.clock.cpu_ns() / 1e9, self.passed_s * self.cores

    def run(self, wall_ms, *, cpu_ms):
        self.clock.advance(wall_ms, cpu_ms=cpu_ms)
        self.other_s += self.others * wall_ms / 1e3
        self.passed_s += wall_ms / 1e3

    def load(self):
        return HostLoad(self.clock, "cpu", cpu_times=self.times, cores=self.cores)


@given(others=st.floats(0.0, 2.0), own=st.floats(0.0, 2.0), wall_ms=st.floats(500.0, 10_000.0))
def test_load_of_others_leaves_out_our_own(others, own, wall_ms):
    host = Host(others=others)
    load = host.load()
    load.before()
    host.run(wall_ms, cpu_ms=own * wall_ms)
    reading = load.after()
    assert reading["competing_cores"] == pytest.approx(others, abs=1e-5)
    assert reading["competing_share"] == pytest.approx(others / 2, abs=1e-5)
    assert reading["window_s"] == pytest.approx(wall_ms / 1e3)
    assert (reading["available"], reading["device"], reading["cores"]) == (True, "cpu", 2)


def test_load_looks_back_over_short_blocks_but_not_further():
    host = Host(others=2.0)
    load = host.load()
    load.before()
    host.run(60_000.0, cpu_ms=0.0)  # a long pause in which others were busy
    host.others = 0.0
    found = []
    for _ in range(60):
        load.before()
        host.run(20.0, cpu_ms=20.0)
        found.append(load.after())
    assert [reading["available"] for reading in found[:12]] == [False] * 9 + [True] * 3
    assert "0.020 s" in found[0]["reason"]
    assert all(reading["competing_cores"] == pytest.approx(0.0, abs=1e-6) for reading in found[9:])
    assert found[-1]["window_s"] == pytest.approx(0.5)


def test_load_is_not_available_where_the_system_does_not_account_it():
    host = Host()
    load = HostLoad(host.clock, "cpu", cpu_times=lambda: (0.0, 0.0), cores=2)
    assert load.after()["available"] is False
    load.before()
    host.run(1000.0, cpu_ms=0.0)
    assert load.after() == {"available": False, "reason": "this system does not account the CPU time of its cores"}


def test_cpu_times_of_this_host_grow_within_bounds():
    busy, had = own_cpu_times()
    deadline = time.perf_counter() + 0.05
    while time.perf_counter() < deadline:
        pass
    later_busy, later_had = own_cpu_times()
    assert 0 <= busy <= had and later_busy >= busy and later_had > had


def test_observers_of_a_cpu():
    observers = observers_for(CPU, SystemClock())
    observers.before()
    observers.during()
    readings = observers.after()
    assert readings["gpu"] == {"available": False, "reason": "a CPU has no NVML"}
    assert set(readings) == {"gpu", "host"}
    assert json.loads(json.dumps(readings)) == readings


def test_what_is_not_there_says_why():
    absent = NotAvailable("gpu", "none")
    absent.before()
    absent.during()
    assert absent.after() == {"available": False, "reason": "none"}


@pytest.mark.gpu
def test_observers_of_this_gpu():
    from autotune.runtime import discovery

    observers = observers_for(discovery.find("cuda"), SystemClock())
    observers.before()
    readings = observers.after()
    assert readings["gpu"]["available"] is True and set(readings) == {"canary", "gpu", "host"}
    assert json.loads(json.dumps(readings)) == readings
