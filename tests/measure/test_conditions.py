import random

import pytest

from autotune.execute.meters import score
from autotune.measure.canary import Canary
from autotune.measure.conditions import (
    OBSERVED,
    RECORDED,
    all_readings,
    observed,
    observed_entries,
    observed_number,
    recorded,
    unregistered,
    unregistered_conditions,
)
from autotune.measure.energy import Energy
from autotune.measure.finals import Finals
from autotune.measure.memory import PeakMemory
from autotune.measure.observers import HostLoad, Observers
from autotune.measure.rounds import run_rounds
from autotune.measure.screening import screen
from autotune.measure.timer import CpuTimer
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.testing import FakeCall, FakeClock
from tests.measure.fake_nvml import OWN, STRANGER, Nvml, observer

CPU = Device(kind="cpu", name="Some CPU", uuid="cpu-1", cores=2)
GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))


class TorchCuda:
    """What torch's allocator reports of a GPU."""

    def reset_peak_memory_stats(self, name):
        pass

    def memory_reserved(self, name):
        return 0

    max_memory_reserved = max_memory_allocated = memory_reserved


def gpu_reading():
    nvml = Nvml()
    gpu = observer(nvml)
    gpu.before()
    nvml.compute = [(OWN, 10**9), (STRANGER, 10**8)]
    nvml.violation_ns, nvml.millijoules, nvml.reasons = {0: 1007, 1: 19}, 10**6 + 250, 0x4
    gpu.during()
    return gpu.after()


def host_reading():
    clock = FakeClock()
    load = HostLoad(clock, "cpu", cpu_times=lambda: (clock.now_ns() / 1e9, clock.now_ns() / 5e8), cores=2)
    load.before()
    clock.advance(1000.0)
    return load.after()


def canary_reading():
    canary = Canary(GPU, FakeClock(), work=lambda: 0.15)
    canary.before()
    return canary.after()


def memory_readings(monkeypatch):
    monkeypatch.setattr("autotune.measure.memory._torch_cuda", TorchCuda)
    for device in (CPU, GPU):
        memory = PeakMemory(device, nvml=Nvml())
        memory.before()
        yield memory.after()


def drawn(monkeypatch):
    yield "gpu", gpu_reading()
    yield "host", host_reading()
    yield "canary", canary_reading()
    for reading in memory_readings(monkeypatch):
        yield "memory", {**reading, "alone": True}


def test_every_observer_writes_the_registered_names_and_all_of_them(monkeypatch):
    written = {name: set() for name in OBSERVED}
    for name, reading in drawn(monkeypatch):
        assert reading["available"] is True and unregistered(name, reading) == []
        written[name] |= set(reading) - {"available"}
    assert written == {name: {entry.name for entry in entries} for name, entries in OBSERVED.items()}


def test_the_parts_of_a_reading_are_those_in_the_registry(monkeypatch):
    for name, reading in drawn(monkeypatch):
        for entry in OBSERVED[name]:
            value = reading.get(entry.name)
            objects = value if isinstance(value, list) else [value]
            for part in objects if entry.parts and value is not None else ():
                assert tuple(part) == entry.parts
            assert entry.parts or not isinstance(value, dict) or entry.name == "not_available"


def measured():
    """A screening and finals, with all that a study adds to their conditions."""
    clock = FakeClock()
    sets, timer = [(0,), (1,)], CpuTimer(clock)
    observers = Observers([HostLoad(clock, "cpu", cpu_times=lambda: (0.0, clock.now_ns() / 5e8), cores=2)], clock)
    screening = screen(
        FakeCall(clock, 10.0), sets, timer, clock=clock, conditions={"seed": 7, "callable": True}, observers=observers
    ).measurement
    tail = score(Objective(name="latency_p99"), screening, FakeCall(clock, 10.0), CPU, sets, clock, lambda: None, 1)
    finals = Finals(["eager", "a"], baselines=["eager"], processes=1)
    finalists = {name: FakeCall(clock, 10.0) for name in finals.running}
    finals.add(0, run_rounds(finalists, sets, timer, random.Random(0), 8, clock=clock, observers=observers))
    yield {**screening.conditions, **tail.conditions}
    yield finals.measurement("a", {}, {"seed": 7, "utilisation": None}).conditions


def test_measurements_record_registered_conditions():
    names = set()
    for conditions in measured():
        assert unregistered_conditions(conditions) == []
        assert all(
            unregistered(name, reading) == [] for each in all_readings(conditions) for name, reading in each.items()
        )
        assert all_readings(conditions)
        names |= set(conditions)
    # Of a throughput, of energy, of tuned kernels, and of a kernel alone: tests/kernels/test_timing.py has the last.
    others = {"throughput", "energy", "kernels", "clock", "l2", "sets"}
    assert names == {entry.name for entry in RECORDED} - others


def test_energy_has_the_registered_parts():
    energy = Energy(joules_per_call=1.0, calls=1, seconds=1.0, energy_j=1.0, mean_power_w=1.0)
    (entry,) = (entry for entry in RECORDED if entry.name == "energy")
    assert tuple(energy.as_dict()) == entry.parts


@pytest.mark.parametrize("entry", [*RECORDED, *(entry for entries in OBSERVED.values() for entry in entries)])
def test_an_entry_says_what_it_means_and_in_which_unit(entry):
    assert entry.meaning and entry.absent
    units = {
        "_ms": "ms",
        "_ns": "ns",
        "_s": "s",
        "_mhz": "MHz",
        "_w": "W",
        "_mj": "mJ",
        "_c": "Celsius",
        "_bytes": "bytes",
    }
    for suffix, unit in units.items():
        assert not entry.name.endswith(suffix) or entry.unit == unit


def test_a_name_that_is_not_registered_cannot_be_read():
    for read in (observed, observed_number, observed_entries):
        with pytest.raises(ValueError, match=r"gpu\.fan_rpm"):
            read({}, "gpu", "fan_rpm")
    with pytest.raises(ValueError, match="weather"):
        recorded({"weather": "fine"}, "weather")


def test_a_condition_that_is_absent_reads_as_nothing():
    for readings in ({}, {"gpu": {}}, {"gpu": {"available": False, "power_violation_ns": 5, "other_processes": [{}]}}):
        assert observed(readings, "gpu", "power_violation_ns") is None
        assert observed_number(readings, "gpu", "power_violation_ns") == 0
        assert observed_entries(readings, "gpu", "other_processes") == []
    assert recorded({}, "process") is None and all_readings({}) == []


class Unregistered:
    """An observer that reads something new."""

    name = "gpu"

    def before(self): ...

    def during(self): ...

    def after(self):
        return {"available": True, "fan_rpm": 3000}


def test_an_observer_that_writes_an_unregistered_name_is_not_available():
    observers = Observers([Unregistered()], FakeClock())
    observers.before()
    reading = observers.after()["gpu"]
    assert reading["available"] is False and "fan_rpm" in reading["reason"] and "conditions" in reading["reason"]
