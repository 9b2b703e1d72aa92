"""NVML's readings of a GPU around a measurement: GpuObserver, and the session that it reads through.

One full look asks about ten things and takes a few milliseconds at most, nearly all of it for the list of processes.
"""

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from autotune.records.device import Device

THROTTLE_REASONS = {
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake",
    0x200: "board_limit",
    0x400: "reliability",
}
"""The reasons for lowered clocks, by NVML's bits; idling, set clocks and synchronised boards are no throttling."""

WORKER = "autotune.execute.worker"
"""The module that every worker process of a study runs; its name in a command line identifies a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlDevice:
    """One device in an open NVML session. ``whole`` is the GPU that a MIG instance is a part of, else the device."""

    nvml: ModuleType
    handle: object
    whole: object
    mig: bool

    def ask(self, *names: str, arguments: tuple[object, ...]) -> Any:
        """Call the first of these functions that answers; raises ``OSError`` with the first refusal if none does."""
        refusal = ""
        for name in names:
            function = getattr(self.nvml, name, None)
            if function is None:
                refusal = refusal or f"the installed nvidia-ml-py has no {name}"
                continue
            try:
                return function(*arguments)
            except self.nvml.NVMLError as error:
                refusal = refusal or f"NVML: {error}"
        raise OSError(refusal)

    def clock_mhz(self, which: int) -> int:
        """Return one of the clocks, by NVML's number for it; ``OSError`` if refused, as from everything below."""
        return int(self.ask("nvmlDeviceGetClockInfo", arguments=(self.whole, which)))

    def throttle_reasons(self) -> tuple[str, ...]:
        """Return the reasons for which its clocks are lowered now: values of :data:`THROTTLE_REASONS`."""
        names = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        bits = self.ask(*names, arguments=(self.whole,))
        return tuple(name for bit, name in THROTTLE_REASONS.items() if bits & bit)

    def violation_ns(self, policy: int) -> int:
        """Return the time, since the driver was loaded, during which power or heat lowered its clocks."""
        return int(self.ask("nvmlDeviceGetViolationStatus", arguments=(self.whole, policy)).violationTime)

    def temperature_c(self) -> int:
        """Return the temperature of the chip."""
        names = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature")
        return int(self.ask(*names, arguments=(self.whole, self.nvml.NVML_TEMPERATURE_GPU)))

    def power_w(self) -> float:
        """Return the power of the board: on GPUs since Ampere an average over a second."""
        if self.mig:
            raise OSError("a MIG instance has no meter of its own")
        return float(self.ask("nvmlDeviceGetPowerUsage", arguments=(self.handle,))) / 1e3

    def memory_used_bytes(self) -> int:
        """Return the memory that all processes and the driver use."""
        return int(self.ask("nvmlDeviceGetMemoryInfo", arguments=(self.handle,)).used)

    def energy_mj(self) -> int:
        """Return the millijoules since the driver was loaded; the counter moves about every 100 ms."""
        if self.mig:
            raise OSError("a MIG instance has no meter of its own")
        return int(self.ask("nvmlDeviceGetTotalEnergyConsumption", arguments=(self.handle,)))

    def processes(self, kind: str) -> dict[int, int | None]:
        """Return the bytes used (``None``: not reported) by process id; ``kind`` is Compute or Graphics."""
        names = (f"nvmlDeviceGet{kind}RunningProcesses_v3", f"nvmlDeviceGet{kind}RunningProcesses_v2")
        return {int(process.pid): process.usedGpuMemory for process in self.ask(*names, arguments=(self.handle,))}


def open_nvml(device: Device, nvml: ModuleType | None = None) -> NvmlDevice:
    """Open NVML for one device, by its UUID; raises ``OSError`` with the reason if that is not possible.

    ``nvml`` are its bindings, by default the package nvidia-ml-py. The session lasts as long as the process.
    """
    if device.kind != "cuda":
        raise OSError("a CPU has no NVML")
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError as error:
            raise OSError("the package nvidia-ml-py is not installed") from error
    mig = device.uuid.startswith("MIG-")
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(device.uuid)
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if mig else handle
    except nvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from error
    return NvmlDevice(nvml=nvml, handle=handle, whole=whole, mig=mig)


def family() -> set[int]:
    """Find the processes of this study: this one, its ancestors, and all descendants of the one that leads the study.

    The leader is the parent of the outermost worker above this process; without a worker it is this process. Other
    processes that a shell or a session manager further up has started do not belong to the study.
    """
    import psutil

    chain = [psutil.Process(), *psutil.Process().parents()]
    leader = 0
    for number, process in enumerate(chain):
        try:
            if WORKER in process.cmdline():
                leader = min(number + 1, len(chain) - 1)
        except psutil.Error:
            continue
    try:
        below = chain[leader].children(recursive=True)
    except psutil.Error:
        below = []
    return {process.pid for process in (*chain, *below)}


def is_there(pid: int) -> bool:
    """Return whether this process id means a process here, in the PID namespace of this process."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:  # it exists, and belongs to another user
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@dataclass(slots=True)
class _Strangers:
    """Separates processes of the study from others; looks the family up only if a new process appears."""

    own_pids: Callable[[], set[int]]
    is_there: Callable[[int], bool]
    own: set[int] = field(default_factory=set)
    foreign: set[int] = field(default_factory=set)

    def among(self, pids: set[int]) -> set[int]:
        """Return the foreign ones; raises ``OSError`` if the ids belong to another namespace."""
        self.foreign &= pids
        if pids - self.own - self.foreign:
            self.own = self.own_pids()
        unknown = pids - self.own - self.foreign
        here = {pid for pid in unknown if self.is_there(pid)}
        if unknown - here and not pids & self.own:
            # If the list has a process of ours, the ids are of this namespace, and the missing ones have just ended.
            raise OSError("NVML reports process ids of another namespace; in a container, share the host's to see them")
        self.foreign |= here
        return set(self.foreign)


RECENT_US = 1_000_000
"""A process counts as active for this long after a sample in which it was active.

Rounds are shorter than the driver's periods: beside a process that multiplied matrices all the time on an H200, 16 of
100 rounds met no sample of it.
"""


@dataclass(slots=True)
class _Activity:
    """The share of the SMs that foreign processes use, in percent, by the driver's samples (up to 6 a second)."""

    sm_percent: dict[int, int] = field(default_factory=dict)
    until: int | None = None
    active: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By process the time of the last sample in which it was active, and its share."""

    def look(self, gpu: NvmlDevice, foreign: set[int], own: set[int]) -> None:
        """Add the samples since the last look; the first look ignores its samples, which are old."""
        if not foreign:
            return
        arguments = (gpu.handle, self.until or 0)
        try:
            samples = list(gpu.ask("nvmlDeviceGetProcessUtilization", arguments=arguments))
        except OSError:  # not supported, or no sample since
            samples = []
        fresh = [sample for sample in samples if sample.timeStamp > (self.until or 0) and sample.smUtil <= 100]
        is_first_look = self.until is None
        self.until = max([self.until or 0, *(sample.timeStamp for sample in fresh)])
        if is_first_look:
            return
        # Without a sample of our own, the absence of others may only mean that the ids are another namespace's.
        comparable = any(sample.pid in own for sample in fresh)
        for pid in foreign:
            shares = [(int(sample.timeStamp), int(sample.smUtil)) for sample in fresh if sample.pid == pid]
            at_work = [sample for sample in shares if sample[1] > 0]
            if at_work:
                self.active[pid] = at_work[-1]
            if shares or comparable:
                recent = [self.active[pid]] if pid in self.active else []
                counted = [share for at, share in (*shares, *recent) if at > self.until - RECENT_US]
                self.sm_percent[pid] = max(counted, default=0)


@dataclass(slots=True)
class _Answers:
    """The answers since a measurement began: values by quantity in their order, and the reasons of refusals."""

    values: dict[str, list[Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    others: dict[int, int | None] = field(default_factory=dict)

    def note(self, name: str, question: Callable[..., object], *arguments: object) -> None:
        """Ask, and keep the answer or the refusal."""
        try:
            answer = question(*arguments)
        except OSError as error:
            self.refused[name] = str(error)
        else:
            self.values.setdefault(name, []).append(answer)


class GpuObserver:
    """Clocks, throttling, temperature, power, energy, memory and other processes of one GPU.

    Of a MIG instance, clocks, throttling and temperature are the whole GPU's. NVML is opened once, at the first
    measurement.
    """

    name = "gpu"

    def __init__(
        self,
        device: Device,
        nvml: ModuleType | None = None,
        own_pids: Callable[[], set[int]] | None = None,
        *,
        is_there: Callable[[int], bool] = is_there,
    ) -> None:
        """``own_pids`` returns this study's processes (default :func:`family`)."""
        self._device, self._bindings = device, nvml
        self._strangers = _Strangers(own_pids=own_pids or family, is_there=is_there)
        self._activity = _Activity()
        self._gpu: NvmlDevice | None = None
        self._reason = ""
        self._seen = _Answers()

    def before(self) -> None:
        """Open NVML, the first time, and look."""
        if self._gpu is None and not self._reason:
            try:
                self._gpu = open_nvml(self._device, self._bindings)
            except OSError as error:
                self._reason = str(error)
        self._seen = _Answers()
        self._look()
        self._count()

    def sm_clock_mhz(self) -> float | None:
        """Read the clock of the SMs now; ``None`` if NVML does not report it."""
        if self._gpu is None:
            return None
        try:
            return float(self._gpu.clock_mhz(self._gpu.nvml.NVML_CLOCK_SM))
        except OSError:
            return None

    def during(self) -> None:
        """Look once more."""
        self._look()

    def after(self) -> Mapping[str, object]:
        """Return extremes of the values, differences of the counters, and the refusals under ``not_available``."""
        if self._gpu is None:
            return {"available": False, "reason": self._reason or "NVML was not opened: no measurement was begun"}
        self._count()
        self._look()
        seen = self._seen.values
        reading: dict[str, object] = {"available": True}
        for name in ("sm_clock_mhz", "memory_clock_mhz"):
            if name in seen:
                reading[name] = {"min": min(seen[name]), "max": max(seen[name])}
        for name in ("temperature_c", "memory_used_bytes"):
            if name in seen:
                reading[name] = max(seen[name])
        if "power_w" in seen:
            reading["power_w"] = {"mean": sum(seen["power_w"]) / len(seen["power_w"]), "max": max(seen["power_w"])}
        if "throttle_reasons" in seen:
            reading["throttle_reasons"] = sorted({reason for reasons in seen["throttle_reasons"] for reason in reasons})
        if self._seen.others or ("other_processes" in seen and "other_processes" not in self._seen.refused):
            reading["other_processes"] = [
                {"pid": pid, "used_bytes": used, "sm_percent": self._activity.sm_percent.get(pid)}
                for pid, used in sorted(self._seen.others.items())
            ]
        reading.update(self._differences())
        missing = {name: why for name, why in sorted(self._seen.refused.items()) if name not in reading}
        return {**reading, "not_available": missing}

    def _look(self) -> None:
        gpu, note = self._gpu, self._seen.note
        if gpu is None:
            return
        note("sm_clock_mhz", gpu.clock_mhz, gpu.nvml.NVML_CLOCK_SM)
        note("memory_clock_mhz", gpu.clock_mhz, gpu.nvml.NVML_CLOCK_MEM)
        note("throttle_reasons", gpu.throttle_reasons)
        note("temperature_c", gpu.temperature_c)
        note("power_w", gpu.power_w)
        note("memory_used_bytes", gpu.memory_used_bytes)
        note("other_processes", self._look_for_others, gpu)

    def _look_for_others(self, gpu: NvmlDevice) -> int:
        """Take note of the foreign processes and return their number."""
        listed = gpu.processes("Compute")
        try:
            listed = {**gpu.processes("Graphics"), **listed}
        except OSError as error:
            self._seen.refused["graphics_processes"] = str(error)
        foreign = self._strangers.among(set(listed))
        self._activity.look(gpu, foreign, self._strangers.own)
        for pid in foreign:
            used = [bytes_ for bytes_ in (listed[pid], self._seen.others.get(pid)) if bytes_ is not None]
            self._seen.others[pid] = max(used, default=None)
        return len(foreign)

    def _count(self) -> None:
        gpu, note = self._gpu, self._seen.note
        if gpu is None:
            return
        note("power_violation_ns", gpu.violation_ns, gpu.nvml.NVML_PERF_POLICY_POWER)
        note("thermal_violation_ns", gpu.violation_ns, gpu.nvml.NVML_PERF_POLICY_THERMAL)
        note("energy_mj", gpu.energy_mj)

    def _differences(self) -> dict[str, int]:
        differences = {}
        for name in ("power_violation_ns", "thermal_violation_ns", "energy_mj"):
            first, *rest = self._seen.values.get(name, [0])
            if not rest:
                continue
            difference = int(rest[-1] - first)
            if difference < 0:
                self._seen.refused[name] = "the counter went backwards"
            elif difference == 0 and name == "energy_mj":
                self._seen.refused[name] = "the counter, renewed about every 100 ms, did not move meanwhile"
            else:
                differences[name] = difference
        return differences
