"""The availability of torch for a device, found without importing it."""

import importlib.util
import re
import shlex
from pathlib import Path

from autotune.backend import Availability
from autotune.records.device import Device

DISTRIBUTION = "autotune-inference"
OLDEST_TORCH = (2, 11)
WORKS = Availability(works=True)


def install_command(extra: str) -> str:
    """Return the command that installs the packages of an extra; PyPI has these, and not this distribution itself."""
    from importlib import metadata  # here because it takes longer to import than the rest of this module

    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # the source tree is on the path and was never installed
        lines = []
    wanted = re.compile(rf"extra == ['\"]{re.escape(extra)}['\"]")
    packages = [line.partition(";")[0].strip() for line in lines if wanted.search(line)]
    return shlex.join(["pip", "install", *(packages or ["-e", f".[{extra}]"])])


def torch_availability(device: Device) -> Availability:
    """Return whether torch is installed, new enough and, for a GPU, built with CUDA."""
    from importlib import metadata  # here because it takes longer to import than the rest of this module

    extra = "gpu" if device.kind == "cuda" else "cpu"
    spec = importlib.util.find_spec("torch")
    if spec is None:
        return Availability(works=False, reason="torch is not installed", remedy=install_command(extra))
    version = metadata.version("torch")
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        return Availability(
            works=False,
            reason=f"torch {version} is older than {wanted}",
            remedy=f"pip install --upgrade 'torch>={wanted}'",
        )
    if device.kind == "cuda" and not _built_with_cuda(Path(spec.origin or "").parent):
        return Availability(
            works=False,
            reason=f"torch {version} is built without CUDA",
            remedy="pip install --force-reinstall torch",
        )
    return WORKS


def cuda_of_torch() -> tuple[int, int] | None:
    """Return the release of CUDA that the installed torch is built for, such as (13, 0), without importing it."""
    spec = importlib.util.find_spec("torch")
    return _cuda_of(Path(spec.origin).parent) if spec is not None and spec.origin else None


def _built_with_cuda(package: Path) -> bool:
    return _cuda_of(package) is not None


def _cuda_of(package: Path) -> tuple[int, int] | None:
    """Read the build's entry in ``torch/version.py``, such as ``cuda: Optional[str] = '13.0'``."""
    version = package / "version.py"
    if not version.is_file():
        return None
    release = re.search(r"^cuda\b[^=]*=\s*['\"](\d+)\.(\d+)", version.read_text(), re.MULTILINE)
    return (int(release[1]), int(release[2])) if release else None
