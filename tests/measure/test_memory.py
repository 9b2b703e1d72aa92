import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from autotune.measure.memory import PeakMemory
from autotune.records.device import Device

CPU = Device(kind="cpu", name="Some CPU", uuid="cpu-1")
GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))
MIB = 2**20


# In a process of its own: what this one frees meanwhile, left behind by other tests, would be missing from the peak.
FREED = f"""
import json, os
from autotune.records.device import Device
from autotune.measure.memory import PeakMemory
memory = PeakMemory(Device(kind="cpu", name="Some CPU", uuid="cpu-1"))
memory.before()
block = bytearray(os.urandom(64)) * {MIB}  # 64 MiB, written
memory.during()
del block
print(json.dumps(memory.after()))
"""


def test_the_peak_of_this_process_is_seen_after_it_was_freed():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True, timeout=120)
    reading = json.loads(done.stdout)
    assert reading["available"] is True
    assert 0.95 * 64 * MIB < reading["peak_bytes"] < 128 * MIB
    assert reading["before_bytes"] > MIB and reading["source"] and reading["per_process"] is True


class Process:
    """A process as Linux describes it in a folder; memory in KiB."""

    def __init__(self, folder, *, resident=1000, peak=1000, resettable=True):
        self.folder, self.resident, self.peak = folder, resident, peak
        if not resettable:
            (folder / "clear_refs").mkdir()
        self.write()

    def write(self):
        peak = "" if self.peak is None else f"VmHWM:\t{self.peak:8} kB\n"
        resident = "" if self.resident is None else f"VmRSS:\t{self.resident:8} kB\n"
        (self.folder / "status").write_text(f"Name:\tpython\n{peak}{resident}")

    def use(self, resident, *, peak=None):
        self.resident = resident
        self.peak = peak
        self.write()


@pytest.mark.parametrize(
    ("resettable", "earlier_peak", "later_peak", "growth", "source"),
    [
        (True, 1000, 5000, 4000, "reset"),
        (False, 3000, 5000, 4000, "of the process"),
        (False, 9000, 9000, 2000, "seen"),  # an earlier peak hides this one
        (False, None, None, 2000, "seen"),
    ],
)
def test_the_source_says_how_far_a_peak_can_be_trusted(tmp_path, resettable, earlier_peak, later_peak, growth, source):
    process = Process(tmp_path, peak=earlier_peak, resettable=resettable)
    memory = PeakMemory(CPU, process=tmp_path)
    memory.before()
    process.use(3000, peak=later_peak)
    memory.during()
    process.use(2000, peak=later_peak)
    reading = memory.after()
    assert (reading["peak_bytes"], reading["before_bytes"]) == (growth * 1024, 1000 * 1024)
    assert source in reading["source"]
    if resettable:
        assert (tmp_path / "clear_refs").read_text() == "5"


def test_where_nothing_is_told_it_is_not_available(tmp_path):
    memory = PeakMemory(CPU, process=tmp_path)
    assert memory.after() == {"available": False, "reason": "no measurement was begun"}
    memory.before()
    memory.during()
    reading = memory.after()
    assert reading["available"] is False and str(tmp_path) in reading["reason"]


class Nvml:
    """NVML's bindings for a GPU: what this process uses, or ``None`` where it is not listed, and what all use."""

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.own, self.whole, self.refused = None, 600 * MIB, set()

    def nvmlInit(self):
        if "open" in self.refused:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle):
        if "processes" in self.refused:
            raise self.NVMLError("Not Supported")
        listed = [SimpleNamespace(pid=1, usedGpuMemory=99 * MIB)]
        return listed if self.own is None else [*listed, SimpleNamespace(pid=os.getpid(), usedGpuMemory=self.own)]

    def nvmlDeviceGetMemoryInfo(self, handle):
        if "memory" in self.refused:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(used=self.whole)


def peak(nvml, *steps):
    memory = PeakMemory(GPU, nvml=nvml)
    memory.before()
    for own, whole in steps:
        nvml.own, nvml.whole = own, whole
        memory.during()
    return memory.after()


STEPS = [(900 * MIB, 1600 * MIB), (500 * MIB, 1100 * MIB)]


def test_device_memory_is_what_nvml_sees_of_this_process():
    reading = peak(Nvml(), *STEPS)
    assert reading == {
        "available": True,
        "peak_bytes": 900 * MIB,
        "before_bytes": 0,
        "source": "NVML, this process",
        "per_process": True,
    }
    nvml = Nvml()
    nvml.own = 400 * MIB
    assert peak(nvml, *STEPS)["peak_bytes"] == 500 * MIB


@pytest.mark.parametrize("unlisted", ["refused", "another namespace"])
def test_else_it_is_what_came_upon_the_device(unlisted):
    nvml = Nvml()
    steps = STEPS
    if unlisted == "refused":
        nvml.refused = {"processes"}
    else:
        steps = [(None, whole) for _, whole in STEPS]
    reading = peak(nvml, *steps)
    assert reading["peak_bytes"] == 1000 * MIB and "all processes" in reading["source"]
    assert reading["per_process"] is False


class TorchCuda:
    """What torch's allocator tells: nothing reserved before, ``peak`` at most."""

    def __init__(self, peak):
        self.peak = peak

    def reset_peak_memory_stats(self, name):
        assert name == GPU.torch_name

    def memory_reserved(self, name):
        return 0

    def max_memory_reserved(self, name):
        return self.peak

    max_memory_allocated = max_memory_reserved


@pytest.mark.parametrize(
    ("own", "refused", "source", "per_process"),
    [
        (900 * MIB, (), "above what was seen through NVML, this process", True),
        # with others beside it the whole device's figure would be the larger one, and win
        (None, (), "above what was seen through NVML, all processes", False),
        (None, ("open",), "torch's allocator alone", True),
    ],
)
def test_a_peak_between_two_looks_is_the_allocators(monkeypatch, own, refused, source, per_process):
    monkeypatch.setattr("autotune.measure.memory._torch_cuda", lambda: TorchCuda(2000 * MIB))
    nvml = Nvml()
    nvml.refused = set(refused)
    reading = peak(nvml, (own, 1600 * MIB))
    assert reading["peak_bytes"] == 2000 * MIB and source in reading["source"]
    assert reading["per_process"] is per_process


@pytest.mark.parametrize(("refused", "reason"), [("open", "Driver Not Loaded"), ("memory", "Not Supported")])
def test_without_nvml_and_torch_it_is_not_available(refused, reason):
    nvml = Nvml()
    nvml.refused = {refused, "processes"}
    assert peak(nvml, *STEPS) == {"available": False, "reason": f"NVML: {reason}"}


@pytest.mark.gpu
def test_the_peak_on_this_gpu_holds_torchs_tensors():
    import torch

    from autotune.runtime import discovery

    torch.zeros(1, device="cuda")
    memory = PeakMemory(discovery.find("cuda"))
    memory.before()
    block = torch.zeros(256 * MIB, device="cuda", dtype=torch.uint8)
    memory.during()
    del block
    torch.cuda.empty_cache()
    reading = memory.after()
    assert 256 * MIB <= reading["peak_bytes"] < 400 * MIB and reading["source"]
    assert reading["per_process"] is ("all processes" not in reading["source"])
