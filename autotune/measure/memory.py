"""The peak of the memory that a runner uses: PeakMemory."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from autotune.measure.nvml import NvmlDevice, open_nvml
from autotune.records.device import Device


class PeakMemory:
    """Peak of the memory that was allocated after :meth:`before`: begin before a runner is loaded, end after its calls.

    Earlier memory does not count; memory that was freed in between and used again does not show. In the reading,
    ``source`` names the counter, and ``per_process`` says whether no other process can have changed it.
    """

    name = "memory"

    def __init__(self, device: Device, *, nvml: ModuleType | None = None, process: Path = Path("/proc/self")) -> None:
        """``nvml`` are NVML's bindings; ``process`` the folder in which Linux describes this process."""
        self._meter: _CpuMemory | _CudaMemory
        self._meter = _CpuMemory(process) if device.kind == "cpu" else _CudaMemory(device, nvml)
        self._begun = False

    def before(self) -> None:
        """Reset the peaks and note the present use."""
        self._meter.begin()
        self._begun = True

    def during(self) -> None:
        """Look once more: some counters show a peak only at the moment of a look."""
        self._meter.look()

    def after(self) -> Mapping[str, object]:
        """Return the peak with its source."""
        if not self._begun:
            return {"available": False, "reason": "no measurement was begun"}
        self._meter.look()
        return self._meter.reading()


class _CpuMemory:
    """The resident set of this process, whose peak Linux keeps and lets a process reset (proc(5), ``clear_refs``)."""

    def __init__(self, process: Path) -> None:
        self._process = process

    def begin(self) -> None:
        try:
            (self._process / "clear_refs").write_text("5")
            self._reset = True
        except OSError:
            self._reset = False
        self._before = self._resident()
        self._before_peak = self._peak()
        self._seen: list[int] = []

    def look(self) -> None:
        resident = self._resident()
        if resident is not None:
            self._seen.append(resident)

    def reading(self) -> Mapping[str, object]:
        before, peak = self._before, self._peak()
        if before is None:
            return {"available": False, "reason": f"{self._process} does not report the resident set"}
        if peak is not None and self._reset:
            source = "peak resident set, reset before"
        elif peak is not None and self._before_peak is not None and peak > self._before_peak:
            source = "peak resident set of the process"
        elif self._seen:  # the peak belongs to an earlier time and hides later ones
            peak, source = max(self._seen), "largest resident set seen"
        else:
            return {"available": False, "reason": f"{self._process} does not report the resident set"}
        return {
            "available": True,
            "peak_bytes": max(0, peak - before),
            "before_bytes": before,
            "source": source,
            "per_process": True,
        }

    def _resident(self) -> int | None:
        return _status(self._process, "VmRSS")

    def _peak(self) -> int | None:
        peak = _status(self._process, "VmHWM")
        if peak is not None or self._process != Path("/proc/self"):
            return peak
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(process: Path, name: str) -> int | None:
    """Read an entry of ``status``, which is in KiB, as bytes."""
    try:
        entry = re.search(rf"^{name}:\s*(\d+) kB", (process / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(entry[1]) * 1024 if entry else None


class _CudaMemory:
    """Device memory in the order of trust: this process as NVML sees it, the whole device, torch's allocator.

    Libraries beside torch (ONNX Runtime, TensorRT, cuBLAS) allocate on their own, and each process has a CUDA context,
    so torch's figure alone is too small; its exact peak supplements the others.
    """

    def __init__(self, device: Device, nvml: ModuleType | None) -> None:
        self._device, self._bindings = device, nvml
        self._gpu: NvmlDevice | None = None
        self._refusal = ""

    def begin(self) -> None:
        if self._gpu is None:
            try:
                self._gpu = open_nvml(self._device, self._bindings)
            except OSError as error:
                self._refusal = str(error)
        cuda = _torch_cuda()
        self._torch_before = 0
        if cuda is not None:
            cuda.reset_peak_memory_stats(self._device.torch_name)
            self._torch_before = int(cuda.memory_reserved(self._device.torch_name))
        self._own_before, self._whole_before = self._own(), self._whole()
        self._own_seen: list[int] = []
        self._whole_seen: list[int] = []

    def look(self) -> None:
        for seen, now in ((self._own_seen, self._own()), (self._whole_seen, self._whole())):
            if now is not None:
                seen.append(now)

    def reading(self) -> Mapping[str, object]:
        details: dict[str, object] = {}
        torch_peak: int | None = None
        cuda = _torch_cuda()
        if cuda is not None:
            torch_peak = int(cuda.max_memory_reserved(self._device.torch_name)) - self._torch_before
            details["torch_allocated_bytes"] = int(cuda.max_memory_allocated(self._device.torch_name))
            details["torch_reserved_bytes"] = int(cuda.max_memory_reserved(self._device.torch_name))
        details["per_process"] = True
        if self._own_seen:
            before, source = self._own_before or 0, "NVML, this process"
            peak = max(self._own_seen) - before
        elif self._whole_seen and self._whole_before is not None:
            before, source = self._whole_before, "NVML, all processes on the device"
            peak = max(self._whole_seen) - before
            details["per_process"] = False
        elif torch_peak is not None:
            before, peak, source = self._torch_before, torch_peak, "torch's allocator alone"
        else:
            return {"available": False, "reason": self._refusal or "neither NVML nor torch reports device memory"}
        if torch_peak is not None and torch_peak > peak:  # a peak between two looks
            peak, source = torch_peak, f"torch's allocator, above what was seen through {source}"
        return {"available": True, "peak_bytes": max(0, peak), "before_bytes": before, "source": source, **details}

    def _own(self) -> int | None:
        """Return the use of this process; ``None`` if NVML does not list it (no CUDA context, or another namespace)."""
        if self._gpu is None:
            return None
        try:
            return self._gpu.processes("Compute").get(os.getpid())
        except OSError as error:
            self._refusal = str(error)
            return None

    def _whole(self) -> int | None:
        if self._gpu is None:
            return None
        try:
            return self._gpu.memory_used_bytes()
        except OSError as error:
            self._refusal = str(error)
            return None


def _torch_cuda() -> ModuleType | None:
    """Return ``torch.cuda`` if this process uses it already, else ``None``: a reading must not initialise CUDA."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
