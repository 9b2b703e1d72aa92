"""The surroundings of a program's figures: device, host, versions and load."""

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from autotune.programs.check_result import rounded


def environment(device: str) -> dict[str, object]:
    """Return device, host, versions, and how busy the host is."""
    versions: dict[str, str | None] = {}
    for name in ("autotune", "torch", "triton", "numpy", "scipy", "nvidia-ml-py"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "device": device,
        **_device(device),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "load_before": load_average(),
    }


def _device(device: str) -> dict[str, object]:
    if device == "cpu":
        return {"device_name": _cpu_name()}
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "device_name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def load_average() -> float:
    """Return the host's load average over one minute."""
    return rounded(os.getloadavg()[0])
