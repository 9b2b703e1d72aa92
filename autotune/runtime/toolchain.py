"""The versions that decide the result of a build, read from package metadata: no library is imported."""

import functools
import importlib.metadata
import platform
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable

from autotune import environment
from autotune.records.device import Device, Toolchain
from autotune.runtime.discovery import nvml_session

EVERYWHERE = {
    "torch": ("torch",),
    "onnx": ("onnx",),
    "onnxscript": ("onnxscript",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
}
"""Entries of every device's toolchain, each with the distributions that may provide it, best first."""

ON_GPUS = {
    "triton": ("triton",),
    "tensorrt": ("tensorrt", "tensorrt-cu{cuda}"),
    "cutlass": ("nvidia-cutlass",),
    "cublaslt": ("nvidia-cublas", "nvidia-cublas-cu{cuda}"),
    "cudnn": ("nvidia-cudnn-cu{cuda}",),
    "cuda": ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu{cuda}"),
}
"""Entries of a GPU's toolchain alone: a new cuDNN must not outdate an artifact for a CPU.

nvcc has no entry: the same code for the same architecture is the same kernel, and a machine without nvcc runs
kernels that another one compiled.
"""

CUDA_MAJORS = ("13", "12")


def current(device: Device, only: tuple[str, ...] | None = None) -> Toolchain:
    """Read the toolchain that a build for this device would use now; a package that is not installed has no entry.

    With ``only``, these entries alone are read: each takes about a millisecond, and the version of a compiler takes
    longer than a whole look-up may take.
    """

    def wanted(name: str) -> bool:
        return only is None or name in only

    versions: dict[str, str | None] = {name: _installed(names) for name, names in EVERYWHERE.items() if wanted(name)}
    if wanted("python"):
        versions["python"] = ".".join(platform.python_version_tuple()[:2])
    if wanted("compiler"):
        versions["compiler"] = _first_line(environment.cxx_compiler())
    if device.kind == "cuda":
        versions |= _on_gpu(wanted)
    return Toolchain.of({name: version for name, version in versions.items() if version})


def _on_gpu(wanted: Callable[[str], bool]) -> dict[str, str | None]:
    """Return the entries that only a GPU's toolchain has."""
    cuda = _cuda_of(_installed(EVERYWHERE["torch"]))
    majors = (cuda.split(".")[0],) if cuda else CUDA_MAJORS
    versions = {
        name: _installed(dict.fromkeys(p.format(cuda=major) for p in patterns for major in majors))
        for name, patterns in ON_GPUS.items()
        if wanted(name)
    }
    if wanted("cuda"):
        versions["cuda"] = versions["cuda"] or cuda
    if wanted("driver"):
        versions["driver"] = _driver()
    return versions


def _installed(distributions: Iterable[str]) -> str | None:
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _cuda_of(torch: str | None) -> str | None:
    """Read the CUDA version that torch's local version names: ``2.11.0+cu130`` gives ``13.0``."""
    match = re.search(r"\+cu(\d+)(\d)$", torch or "")
    return f"{match[1]}.{match[2]}" if match else None


def _driver() -> str | None:
    try:
        with nvml_session() as nvml:
            return str(nvml.nvmlSystemGetDriverVersion())
    except OSError:
        return None


@functools.cache
def _first_line(compiler: str | None) -> str | None:
    """Return the first line of the C++ compiler's version; without ``CXX`` that of ``g++``, else ``c++``."""
    for command in [shlex.split(compiler)] if compiler else [["g++"], ["c++"]]:
        try:
            run = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        if run.stdout.strip():
            return run.stdout.strip().splitlines()[0]
    return None
