import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.measure.nvml import THROTTLE_REASONS, WORKER, GpuObserver, is_there, open_nvml
from autotune.records.device import Device
from tests.measure.fake_nvml import GONE, GPU, HERE, OWN, SERVER, STRANGER, Nvml, observer

MIG = Device(kind="cuda", name="NVIDIA H200", uuid="MIG-1", capability=(9, 0), mig_profile="1g.18gb")
CPU = Device(kind="cpu", name="Some CPU", uuid="cpu-1")

EVERYTHING = {
    *("sm_clock_mhz", "memory_clock_mhz", "throttle_reasons", "temperature_c", "power_w", "memory_used_bytes"),
    *("other_processes", "power_violation_ns", "thermal_violation_ns", "energy_mj"),
}


def test_extremes_are_kept_and_counters_subtracted():
    nvml = Nvml()
    gpu = observer(nvml)
    gpu.before()
    nvml.sm_mhz, nvml.celsius, nvml.milliwatts, nvml.used, nvml.reasons = 1500, 70, 690_000, 3 * 10**9, 0x4 | 0x1
    gpu.during()
    nvml.sm_mhz, nvml.celsius, nvml.milliwatts, nvml.used, nvml.reasons = 1700, 60, 510_000, 2 * 10**9, 0x80 | 0x2
    nvml.violation_ns, nvml.millijoules = {0: 1007, 1: 9}, 10**6 + 250
    assert gpu.after() == {
        "available": True,
        "sm_clock_mhz": {"min": 1500, "max": 1980},
        "memory_clock_mhz": {"min": 3201, "max": 3201},
        "throttle_reasons": ["hw_power_brake", "sw_power_cap"],
        "power_violation_ns": 1000,
        "thermal_violation_ns": 0,
        "temperature_c": 70,
        "power_w": {"mean": 500.0, "max": 690.0},
        "energy_mj": 250,
        "memory_used_bytes": 3 * 10**9,
        "other_processes": [],
        "not_available": {},
    }


def test_each_measurement_begins_anew_and_nvml_is_opened_once():
    nvml = Nvml()
    gpu = observer(nvml)
    nvml.reasons = 0x8
    gpu.before()
    assert gpu.after()["throttle_reasons"] == ["hw_slowdown"]
    nvml.reasons = 0
    gpu.before()
    reading = gpu.after()
    assert reading["throttle_reasons"] == [] and reading["power_violation_ns"] == 0
    assert nvml.opened == 1


@given(bits=st.integers(0, 0xFFF))
def test_idling_and_set_clocks_are_no_throttling(bits):
    nvml = Nvml()
    nvml.reasons = bits
    gpu = observer(nvml)
    gpu.before()
    found = gpu.after()["throttle_reasons"]
    assert found == sorted(name for bit, name in THROTTLE_REASONS.items() if bits & bit)
    assert bool(found) == bool(bits & ~(0x001 | 0x002 | 0x010 | 0x100 | 0x800))


QUANTITY_OF = {
    "nvmlDeviceGetClockInfo": {"sm_clock_mhz", "memory_clock_mhz"},
    "nvmlDeviceGetViolationStatus": {"power_violation_ns", "thermal_violation_ns"},
    "nvmlDeviceGetPowerUsage": {"power_w"},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_mj"},
    "nvmlDeviceGetMemoryInfo": {"memory_used_bytes"},
}


@given(
    refused=st.sets(st.sampled_from(sorted(QUANTITY_OF))),
    missing=st.sets(st.sampled_from(sorted(QUANTITY_OF))),
)
def test_what_nvml_refuses_is_left_out_and_named(refused, missing):
    nvml = Nvml(refused=refused, missing=missing)
    gpu = observer(nvml)
    gpu.before()
    nvml.millijoules += 1
    reading = gpu.after()
    absent = {quantity for name in refused | missing for quantity in QUANTITY_OF[name]}
    assert set(reading["not_available"]) == absent
    assert set(reading) == {"available", "not_available"} | (EVERYTHING - absent)
    assert set(reading["not_available"].values()) <= {
        "NVML: Not Supported",
        *(f"the installed nvidia-ml-py has no {name}" for name in missing),
    }
    assert json.loads(json.dumps(reading)) == reading


@pytest.mark.parametrize("how", ["refused", "missing"])
def test_older_names_answer_where_newer_ones_do_not(how):
    newer = (
        *("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetTemperatureV"),
        *("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3"),
    )
    nvml = Nvml(**{how: newer})
    nvml.reasons, nvml.graphics = 0x20, [(STRANGER, 5)]
    gpu = observer(nvml)
    gpu.before()
    reading = gpu.after()
    assert reading["throttle_reasons"] == ["sw_thermal_slowdown"] and reading["temperature_c"] == 50
    assert [one["pid"] for one in reading["other_processes"]] == [STRANGER]
    assert set(reading["not_available"]) == {"energy_mj"}


def test_a_counter_that_stood_still_or_went_back_is_not_zero():
    nvml = Nvml()
    gpu = observer(nvml)
    gpu.before()
    reading = gpu.after()
    assert "energy_mj" not in reading and "did not move" in reading["not_available"]["energy_mj"]
    gpu.before()
    nvml.millijoules, nvml.violation_ns = 5, {0: 0, 1: 9}
    reading = gpu.after()
    assert reading["not_available"] == {
        "energy_mj": "the counter went backwards",
        "power_violation_ns": "the counter went backwards",
    }


def test_a_mig_instance_has_the_gpus_clocks_but_no_meter():
    nvml = Nvml()
    gpu = observer(nvml, MIG)
    gpu.before()
    nvml.millijoules += 1000
    reading = gpu.after()
    reason = "a MIG instance has no meter of its own"
    assert reading["not_available"] == {"energy_mj": reason, "power_w": reason}
    assert reading["sm_clock_mhz"] == {"min": 1980, "max": 1980} and reading["memory_used_bytes"] == 10**9


def test_strangers_are_told_from_the_family():
    nvml = Nvml()
    asked = []
    gpu = GpuObserver(GPU, nvml, lambda: asked.append(1) or {OWN, SERVER}, is_there=HERE.__contains__)
    gpu.before()
    nvml.compute = [(OWN, 10**9), (SERVER, 5), (STRANGER, 7), (GONE, 9)]
    gpu.during()
    nvml.compute = [(OWN, 10**9), (STRANGER, None)]
    for _ in range(10):
        gpu.during()
    nvml.compute = [(OWN, 10**9)]
    assert gpu.after()["other_processes"] == [{"pid": STRANGER, "used_bytes": 7, "sm_percent": None}]
    assert len(asked) == 2, "the family is searched for only when an unknown process appears"
    gpu.before()
    assert gpu.after()["other_processes"] == []


def test_ids_of_another_namespace_accuse_nobody():
    nvml = Nvml()
    nvml.compute = []
    gpu = observer(nvml)
    gpu.before()
    nvml.compute = [(GONE, 10**9)]  # this very process, as the host numbers it
    reading = gpu.after()
    assert "other_processes" not in reading
    assert "another namespace" in reading["not_available"]["other_processes"]


def test_a_refused_list_of_graphics_processes_does_not_hide_the_others():
    nvml = Nvml(refused=[f"nvmlDeviceGetGraphicsRunningProcesses_v{number}" for number in (2, 3)])
    nvml.compute = [(OWN, 1), (STRANGER, 2)]
    gpu = observer(nvml)
    gpu.before()
    reading = gpu.after()
    assert [one["pid"] for one in reading["other_processes"]] == [STRANGER]
    assert reading["not_available"]["graphics_processes"] == "NVML: Not Supported"


def sm_percent(gpu):
    return gpu.after()["other_processes"][0]["sm_percent"]


def test_activity_of_a_stranger_follows_the_drivers_samples():
    nvml = Nvml()
    nvml.compute = [(OWN, 1), (STRANGER, 2)]
    nvml.ran(1000, p900=80)  # long ago
    gpu = observer(nvml)
    gpu.before()
    assert sm_percent(gpu) is None
    gpu.before()
    nvml.ran(2000, p100=90)
    assert sm_percent(gpu) == 0
    gpu.before()
    assert sm_percent(gpu) == 0, "without a new sample the last one stands"
    nvml.ran(3000, p100=60, p900=40)
    gpu.before()
    assert sm_percent(gpu) == 40
    nvml.ran(4000, p555=30)  # none of ours: ids may be another namespace's, absence proves nothing
    gpu.before()
    assert sm_percent(gpu) == 40


def test_a_stranger_stays_active_for_a_second_after_its_last_sample():
    nvml = Nvml()
    nvml.compute = [(OWN, 1), (STRANGER, 2)]
    nvml.ran(1000, p900=80)
    gpu = observer(nvml)
    gpu.before()
    nvml.ran(2000, p100=10, p900=70)
    gpu.before()
    for at_us, expected in ((300_000, 70), (1_001_999, 70), (1_002_001, 0)):
        nvml.ran(at_us, p100=60)
        gpu.before()
        assert sm_percent(gpu) == expected


def test_activity_is_unknown_where_the_driver_does_not_tell():
    nvml = Nvml(refused=["nvmlDeviceGetProcessUtilization"])
    nvml.compute = [(OWN, 1), (STRANGER, 2)]
    gpu = observer(nvml)
    for _ in range(3):
        gpu.before()
        assert sm_percent(gpu) is None


@pytest.mark.parametrize(
    ("device", "nvml", "reason"),
    [
        (CPU, Nvml(), "a CPU has no NVML"),
        (GPU, Nvml(refused=["nvmlInit"]), "NVML: Not Supported"),
        (Device(kind="cuda", name="X", uuid="GPU-9", capability=(9, 0)), Nvml(), "NVML: Not Found"),
        (MIG, Nvml(refused=["nvmlDeviceGetDeviceHandleFromMigDeviceHandle"]), "NVML: Not Supported"),
    ],
)
def test_where_nvml_cannot_be_opened_there_is_a_reason(device, nvml, reason):
    gpu = GpuObserver(device, nvml, set)
    assert gpu.after()["available"] is False
    for _ in range(2):
        gpu.before()
        gpu.during()
        assert gpu.after() == {"available": False, "reason": reason}
    assert nvml.opened <= 1
    with pytest.raises(OSError, match=reason):
        open_nvml(device, nvml)


def test_a_process_is_here_or_not():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_there(os.getpid()) and is_there(1)
    assert not any(is_there(pid) for pid in (0, -5, ended.pid, 2**40))


LEADER = """
import subprocess, sys, json, os
worker = "import json, os; from autotune.measure.nvml import family; print(json.dumps([os.getpid(), sorted(family())]))"
beside = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
command = [sys.executable, "-c", worker, sys.stdin.read()]
answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
beside.communicate(b"\\n")
print(json.dumps([os.getpid(), beside.pid, *json.loads(answer)]))
"""


@pytest.mark.parametrize("command", [WORKER, "something.else"])
def test_the_family_is_the_study_and_not_the_whole_machine(command):
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        leading = [sys.executable, "-c", LEADER]
        answer = subprocess.run(leading, input=command, capture_output=True, text=True, check=True)
    finally:
        stranger.communicate(b"\n")
    leader, beside, worker, found = json.loads(answer.stdout)
    assert {leader, worker, os.getpid()} <= set(found)
    assert stranger.pid not in found
    assert (beside in found) == (command == WORKER)


@pytest.mark.gpu
def test_this_gpu_is_read():
    import torch

    from autotune.runtime import discovery

    gpu = GpuObserver(discovery.find("cuda"))
    matrix = torch.randn((4096, 4096), device="cuda", dtype=torch.float16)
    gpu.before()
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        for _ in range(20):
            torch.mm(matrix, matrix)
        torch.cuda.synchronize()
        gpu.during()
    reading = gpu.after()
    assert reading["available"] is True and json.loads(json.dumps(reading)) == reading
    assert set(reading) | set(reading["not_available"]) >= EVERYTHING
    assert reading["sm_clock_mhz"]["max"] > 300 and reading["memory_used_bytes"] > matrix.nbytes
    if "energy_mj" in reading and "power_w" in reading:
        assert reading["energy_mj"] > 10_000 and reading["power_w"]["max"] > 20
    assert os.getpid() not in {one["pid"] for one in reading.get("other_processes", ())}
