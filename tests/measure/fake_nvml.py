"""NVML's bindings for tests, and an observer that reads through them."""

from types import SimpleNamespace

from autotune.measure.nvml import GpuObserver
from autotune.records.device import Device

GPU = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0))

OWN, SERVER, STRANGER, GONE = 100, 101, 900, 9_999_999
HERE = {OWN, SERVER, STRANGER}


class RefusedError(Exception):
    pass


class Nvml:
    """NVML's bindings for one GPU or MIG instance; ``refused`` names functions that are not supported."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1
    NVMLError = RefusedError

    def __init__(self, *, refused=(), missing=()):
        self.refused, self.missing, self.opened, self.asked = set(refused), set(missing), 0, []
        self.sm_mhz, self.memory_mhz, self.celsius, self.milliwatts, self.used = 1980, 3201, 50, 300_000, 10**9
        self.reasons, self.violation_ns, self.millijoules = 0, {0: 7, 1: 9}, 10**6
        self.compute, self.graphics, self.samples = [(OWN, 10**9)], [], []

    def __getattribute__(self, name):
        if name.startswith("nvml"):
            if name in self.missing:
                raise AttributeError(name)
            if name in self.refused:

                def refuse(*arguments):
                    raise RefusedError("Not Supported")

                return refuse
        return super().__getattribute__(name)

    def nvmlInit(self):
        self.opened += 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in ("GPU-1", "MIG-1"):
            raise RefusedError("Not Found")
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):
        return {"MIG-1": "GPU-1"}[handle]

    def _whole(self, handle):
        if handle != "GPU-1":
            raise RefusedError("Not Supported")

    def nvmlDeviceGetClockInfo(self, handle, which):
        self._whole(handle)
        return {1: self.sm_mhz, 2: self.memory_mhz}[which]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        self._whole(handle)
        return self.reasons

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        self._whole(handle)
        return self.reasons

    def nvmlDeviceGetViolationStatus(self, handle, policy):
        self._whole(handle)
        return SimpleNamespace(violationTime=self.violation_ns[policy], referenceTime=1)

    def nvmlDeviceGetTemperatureV(self, handle, sensor):
        self._whole(handle)
        return self.celsius

    nvmlDeviceGetTemperature = nvmlDeviceGetTemperatureV

    def nvmlDeviceGetPowerUsage(self, handle):
        return self.milliwatts

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self.millijoules

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=self.used, total=10**11)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.compute]

    nvmlDeviceGetComputeRunningProcesses_v2 = nvmlDeviceGetComputeRunningProcesses_v3

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle):
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.graphics]

    nvmlDeviceGetGraphicsRunningProcesses_v2 = nvmlDeviceGetGraphicsRunningProcesses_v3

    def nvmlDeviceGetProcessUtilization(self, handle, since):
        found = [sample for sample in self.samples if sample.timeStamp > since]
        if not found:
            raise RefusedError("Not Found")
        return found

    def ran(self, at_us, **percent):
        """Note how many percent of the SMs processes used, as ``p100=30``."""
        for pid, share in percent.items():
            self.samples.append(SimpleNamespace(pid=int(pid[1:]), timeStamp=at_us, smUtil=share))


def observer(nvml, device=GPU, own=frozenset({OWN, SERVER})):
    return GpuObserver(device, nvml, lambda: set(own), is_there=HERE.__contains__)
