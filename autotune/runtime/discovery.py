"""The devices of this machine, found without torch: GPUs through NVML, the CPU through the operating system."""

import hashlib
import importlib
import logging
import math
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from autotune import environment
from autotune.errors import DeviceError
from autotune.records.device import Device

ISA = (
    *("sse4_2", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "amx_int8"),
    *("asimd", "sve", "bf16"),
)
"""The instruction sets, as Linux names them, that decide a CPU's speed and in which precisions it computes."""

ARM_PARTS = {"0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1", "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2"}
"""Server cores by their part number (Arm's ``MIDR_EL1``): Linux gives them no model name."""

log = logging.getLogger(__name__)


def devices() -> list[Device]:
    """List every device that this process may use: GPUs in the order of ``cuda:N``, then the CPU."""
    return [*_gpus()[0], cpu()]


def local(name: str) -> Device | None:
    """Find the device that a name of :func:`find` means here, in whatever case; ``None`` for every other name."""
    lower = name.lower()
    return find(lower) if lower in ("auto", "cpu", "cuda") or lower.startswith("cuda:") else None


def find(asked: str) -> Device:
    """Find the device for ``auto`` (first GPU, else CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` skips the GPUs if the installed torch is a build for CPUs only. Raises
    :class:`~autotune.errors.DeviceError`, which lists the devices of this machine, if the requested one does not exist.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", asked)
    if match is None:
        raise DeviceError(f"device {asked!r} cannot be understood", expected="auto, cpu, cuda or cuda:N")
    if asked == "cpu":
        return cpu()
    gpus, reason = _gpus()
    if asked == "auto":
        if gpus and _torch_is_for_cpus():
            log.warning("the installed torch is built for CPUs only: auto means cpu, not %s", gpus[0].name)
            gpus = []
        return gpus[0] if gpus else cpu()
    index = int(match[1] or 0)
    if index < len(gpus):
        return gpus[index]
    there = ", ".join(f"{device.torch_name} ({device.name})" for device in (*gpus, cpu()))
    why = f" ({reason})" if reason else ""
    raise DeviceError(
        f"device {asked} is not there", found=there + why, expected="one of these, or auto", run="autotune doctor"
    )


def cpu() -> Device:
    """Describe this host's CPU with the cores that this process may use."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        cpuinfo = ""
    name, isa = read_cpuinfo(cpuinfo)
    return Device(
        kind="cpu",
        name=name or platform.processor() or platform.machine() or "unknown CPU",
        uuid=f"cpu-{_host_id()}",
        cores=usable_cores(),
        isa=isa,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def read_cpuinfo(text: str) -> tuple[str | None, tuple[str, ...]]:
    """Read the model name (``None`` if it is not known) and the entries of :data:`ISA` from ``/proc/cpuinfo``."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    part = fields.get("CPU part")
    arm = ARM_PARTS.get(part, f"Arm {fields.get('CPU implementer', '')} part {part}") if part else None
    return fields.get("model name") or arm, tuple(name for name in ISA if name in flags)


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores of this process's affinity mask, bounded by the CPU quota of its control groups, rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield every CPU quota, in cores, that control groups (version 2, then 1) set on this process or its ancestors."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside a container the path may be the host's, which does not exist here; the mount's own root replaces it.
        for folder in [base / group.strip("/"), *(base / group.strip("/")).parents]:
            if not folder.is_relative_to(base):
                break
            quota, period = _quota_in(folder)
            if quota > 0 and period > 0:
                yield quota / period


def _quota_in(folder: Path) -> tuple[int, int]:
    """Read quota and period in microseconds; a quota of -1 if none is set."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
    except OSError:
        return -1, 1
    return (-1, 1) if quota == "max" else (int(quota), int(period))


def _host_id() -> str:
    """Return a short hash that identifies this host."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text:
            break
    else:
        text = platform.node()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _torch_is_for_cpus() -> bool:
    from importlib import metadata  # here because it takes longer to import than the rest of this module

    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


@contextmanager
def nvml_session() -> Iterator[ModuleType]:
    """Yield NVML's bindings, initialised; raises ``OSError`` with the reason if library or driver is missing."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError as error:
        raise OSError("the package nvidia-ml-py is not installed") from error
    try:
        nvml.nvmlInit()
        try:
            yield nvml
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        raise OSError(str(error)) from error


def _gpus() -> tuple[list[Device], str]:
    """List the visible GPUs, with the reason if they cannot be listed."""
    try:
        with nvml_session() as nvml:
            return read_gpus(nvml, environment.visible_cuda_devices(), cores=usable_cores()), ""
    except OSError as error:
        log.debug("no GPU through NVML: %s", error)
        return [], f"no GPU can be listed: {error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seat:
    """A device that CUDA can enumerate: a whole GPU, or one MIG device of it. Handles are NVML's."""

    uuid: str
    gpu: object
    mig: object = None


def read_gpus(nvml: ModuleType, visible: str | None, *, cores: int) -> list[Device]:
    """List the GPUs that CUDA would enumerate, in its order; ``visible`` is the value of ``CUDA_VISIBLE_DEVICES``.

    Numbers in it count in PCI bus order, as CUDA does under ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` and on a host whose GPUs
    are alike. CUDA uses one MIG device at most, the first, and then no whole GPU (NVIDIA MIG User Guide, "Device
    Enumeration").
    """
    by_gpu = [_seats(nvml, nvml.nvmlDeviceGetHandleByIndex(number)) for number in range(nvml.nvmlDeviceGetCount())]
    seats = [seat for group in by_gpu for seat in group] if visible is None else _selected(by_gpu, visible)
    migs = [seat for seat in seats if seat.mig is not None]
    return [_device(nvml, seat, index, cores) for index, seat in enumerate(migs[:1] or seats)]


def _seats(nvml: ModuleType, gpu: object) -> list[_Seat]:
    """Return the GPU itself, or its MIG devices if it is partitioned."""
    mode = _optional(nvml, nvml.nvmlDeviceGetMigMode, gpu)
    if not mode or mode[0] != nvml.NVML_DEVICE_MIG_ENABLE:
        return [_Seat(uuid=nvml.nvmlDeviceGetUUID(gpu), gpu=gpu)]
    most = _optional(nvml, nvml.nvmlDeviceGetMaxMigDeviceCount, gpu) or 0
    handles = (_optional(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, number) for number in range(most))
    return [_Seat(uuid=nvml.nvmlDeviceGetUUID(mig), gpu=gpu, mig=mig) for mig in handles if mig is not None]


def _selected(by_gpu: Sequence[Sequence[_Seat]], visible: str) -> list[_Seat]:
    """Return the devices in ``visible``, by number or by (the beginning of) a UUID, to the first unknown entry."""
    chosen: list[_Seat] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdecimal():
            named = list(by_gpu[int(entry)][:1]) if int(entry) < len(by_gpu) else []
        elif entry.startswith(("GPU-", "MIG-")):
            named = [seat for group in by_gpu for seat in group if seat.uuid.startswith(entry)]
        else:
            named = []
        if len(named) != 1 or named[0] in chosen:
            break
        chosen += named
    return chosen


def _device(nvml: ModuleType, seat: _Seat, index: int, cores: int) -> Device:
    here = seat.mig if seat.mig is not None else seat.gpu
    name, _, profile = nvml.nvmlDeviceGetName(here).partition(" MIG ")
    if seat.mig is not None:
        name = nvml.nvmlDeviceGetName(seat.gpu)
    limit_mw = _optional(nvml, nvml.nvmlDeviceGetPowerManagementLimit, seat.gpu) or _optional(
        nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, seat.gpu
    )
    memory = _optional(nvml, nvml.nvmlDeviceGetMemoryInfo, here)
    return Device(
        kind="cuda",
        name=name,
        uuid=seat.uuid,
        index=index,
        cores=cores,
        capability=tuple(nvml.nvmlDeviceGetCudaComputeCapability(seat.gpu)),
        memory_bytes=memory.total if memory else 0,
        mig_profile=profile or None,
        power_limit_w=round(limit_mw / 1000) if limit_mw else None,
    )


def _optional(nvml: ModuleType, function: Callable[..., Any], *arguments: object) -> Any:
    """Call NVML; return its answer, or ``None`` if this device or driver does not answer."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None
