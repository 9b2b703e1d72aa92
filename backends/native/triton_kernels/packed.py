"""A plan and its compiled kernels as files of a folder, from which they load without Triton."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.backends.native.triton_kernels.launch import LoadedPlan
from autotune.backends.native.triton_kernels.launch_plan import Launch, LaunchPlan
from autotune.backends.native.triton_kernels.triton_compiler import CompiledCubin
from autotune.errors import WorkError
from autotune.records.canonical import canonical, digest


def pack_plan(
    plan: LaunchPlan, kernels: Sequence[CompiledCubin], folder: Path, name: str | None = None
) -> dict[str, str]:
    """Copy kernels and write the plan beside them; returns file names with digests of their sources, the plan's last.

    Without a ``name`` the plan's file is named after its content.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copied: dict[str, str] = {}
    for kernel, source in zip(kernels, plan.sources, strict=True):
        kernel.copy_to(folder)
        copied |= {f"{kernel.key}.{suffix}": source.digest for suffix in ("cubin", "json")}
    record = {
        "kernels": [kernel.key for kernel in kernels], "workspace_bytes": plan.workspace_bytes,
        "launches": [asdict(launch) for launch in plan.launches],
    }  # fmt: skip
    name = name or f"{digest(record)}.plan.json"
    (folder / name).write_text(canonical(record))
    return {**copied, name: digest(record)}


def load_plan(path: Path, device: int) -> LoadedPlan:
    """Load the output of :func:`pack_plan` on a device; raises WorkError if it is damaged or for another GPU."""
    try:
        record: Mapping[str, Any] = json.loads(path.read_text())
        kernels = [CompiledCubin(key=key, folder=path.parent) for key in record["kernels"]]
        launches = [Launch.from_dict(launch) for launch in record["launches"]]
        workspace_bytes = int(record["workspace_bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkError(
            f"loading the kernel {path}", found=f"{type(error).__name__}: {error}",
            expected="a plan as it was packed", run="the build of the artifact again",
        ) from error  # fmt: skip
    return LoadedPlan(kernels, launches, workspace_bytes=workspace_bytes, device=device)
