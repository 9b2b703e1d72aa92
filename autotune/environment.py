"""The one place where autotune reads environment variables by name.

Others pass on all of them (:mod:`autotune.execute.server`) or watch which ones a model's own code reads
(:mod:`autotune.model.reading`). Libraries read variables of their own, as Python's library reads ``TMPDIR``.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path


def database_url() -> str | None:
    """Return the tuning database that ``AUTOTUNE_DB`` names: a path or a URL; ``None`` if it is unset or empty."""
    return os.environ.get("AUTOTUNE_DB", "").strip() or None


def data_folder() -> Path:
    """Return the folder for this user's data: ``$XDG_DATA_HOME/autotune``, else ``~/.local/share/autotune``.

    A relative ``XDG_DATA_HOME`` is ignored, as the XDG base directory specification asks.
    """
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "share") / "autotune"


def visible_cuda_devices() -> str | None:
    """Return ``CUDA_VISIBLE_DEVICES``: ``None`` if it is unset, an empty string if it hides every GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def cxx_compiler() -> str | None:
    """Return the C++ compiler command that ``CXX`` names; ``None`` if it is unset or empty."""
    return os.environ.get("CXX", "").strip() or None


def nvcc() -> str | None:
    """Return the CUDA compiler that ``NVCC`` names, else the one on ``PATH``; ``None`` without either."""
    return os.environ.get("NVCC", "").strip() or shutil.which("nvcc")


def nvrtc() -> str | None:
    """Return the path of NVIDIA's run-time compiler that ``NVRTC`` names; ``None`` if it is unset or empty."""
    return os.environ.get("NVRTC", "").strip() or None


def cache_folder() -> Path:
    """Return the folder for files that can be made again: ``$XDG_CACHE_HOME/autotune``, else ``~/.cache/autotune``."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "autotune"


def columns() -> int | None:
    """Return the width that ``COLUMNS`` asks for; ``None`` if it is no positive number."""
    given = os.environ.get("COLUMNS", "").strip()
    return int(given) if given.isdecimal() and 0 < int(given) < 10_000 else None


def compiler() -> str | None:
    """Return the full path of the C++ compiler that ``CXX`` names, else of ``g++``; ``None`` if there is none."""
    return shutil.which(cxx_compiler() or "g++")


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that a library reads, and restore the earlier values afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
