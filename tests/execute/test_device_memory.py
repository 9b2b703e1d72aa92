import threading
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from autotune.execute.device_memory import LEFT_OVER_BYTES, SETTLE_S, DeviceMemory, free_bytes
from autotune.records.device import Device

CPU = Device(kind="cpu", name="Some CPU", uuid="cpu-1")
GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))
GIB = 2**30


class Nvml:
    """NVML's bindings as far as they are asked for the memory of a GPU."""

    NVMLError = RuntimeError

    def __init__(self, *used):
        self.used, self.asked = list(used), 0

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle):
        self.asked += 1
        used = self.used.pop(0)
        if used is None:
            raise RuntimeError("GPU is lost")
        return SimpleNamespace(used=used)


@pytest.mark.parametrize(
    ("used", "told"),
    [
        ((GIB, GIB), None),
        ((GIB, GIB + LEFT_OVER_BYTES), None),
        ((GIB, 3 * GIB, GIB), None),  # the driver took a moment
        ((GIB, 3 * GIB, 2 * GIB), "1024 MiB"),
        ((GIB, 0), None),
        ((None,), None),
        ((GIB, None), None),
    ],
)
def test_what_a_step_leaves_on_the_device_is_told(caplog, used, told):
    slept = []
    nvml = Nvml(*used)
    with DeviceMemory(GPU, nvml=nvml, sleep=slept.append).around("measure"):
        pass
    assert nvml.asked == len(used) and slept == [SETTLE_S] * (len(used) - 2)
    assert (told is None and not caplog.records) or f"after step measure, {told} more of NVIDIA H200's" in caplog.text


def test_the_device_is_looked_at_when_no_step_runs_on_it(caplog):
    nvml = Nvml(GIB, 2 * GIB, 2 * GIB)
    memory = DeviceMemory(GPU, nvml=nvml, sleep=lambda seconds: None)
    begun, leave = threading.Event(), threading.Event()

    def run():
        with memory.around("build"):
            begun.set()
            leave.wait(10)

    other = threading.Thread(target=run)
    with memory.around("measure"):
        other.start()
        begun.wait(10)
    assert nvml.asked == 1
    leave.set()
    other.join()
    assert nvml.asked == 3 and "after step build" in caplog.text


def test_what_a_step_raises_goes_through_and_a_cpu_is_not_looked_at():
    with pytest.raises(KeyError), DeviceMemory(CPU, nvml=Nvml()).around("measure"):
        raise KeyError


def test_free_memory_is_what_nobody_uses():
    gpu = replace(GPU, memory_bytes=10 * GIB)
    assert free_bytes(gpu, nvml=Nvml(4 * GIB)) == 6 * GIB
    assert free_bytes(gpu, nvml=Nvml(None)) is None
    free = free_bytes(CPU)
    assert free is not None and 0 < free <= psutil.virtual_memory().total
