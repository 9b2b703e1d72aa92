"""The one place where autotune reads environment variables by name.

Others pass on all of them (:mod:`autotune.execute.server`) or watch which ones a model's own code reads
(:mod:`autotune.model.reading`). What libraries read of their own accord is theirs, such as ``TMPDIR`` by Python's.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path


def database_url() -> str | None:
    """Give the tuning database that ``AUTOTUNE_DB`` names: a path or a URL; ``None`` where it is unset or empty."""
    return os.environ.get("AUTOTUNE_DB", "").strip() or None


def data_folder() -> Path:
    """Give the folder for this user's data: ``$XDG_DATA_HOME/autotune``, else ``~/.local/share/autotune``.

    A relative ``XDG_DATA_HOME`` is ignored, as the XDG base directory specification asks.
    """
    base = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".local" / "share") / "autotune"


def visible_cuda_devices() -> str | None:
    """Give what ``CUDA_VISIBLE_DEVICES`` says: ``None`` where it is unset, an empty string where it hides every GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def cxx_compiler() -> str | None:
    """Give the C++ compiler command that ``CXX`` names; ``None`` where it is unset or empty."""
    return os.environ.get("CXX", "").strip() or None


def nvcc() -> str | None:
    """Give the compiler of the CUDA toolkit that ``NVCC`` names, else the one on ``PATH``; ``None`` without either."""
    return os.environ.get("NVCC", "").strip() or shutil.which("nvcc")


def cache_folder() -> Path:
    """Give the folder for what can be made again: ``$XDG_CACHE_HOME/autotune``, else ``~/.cache/autotune``."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "autotune"


def columns() -> int | None:
    """Give the width that ``COLUMNS`` asks for; ``None`` where it is no positive number."""
    given = os.environ.get("COLUMNS", "").strip()
    return int(given) if given.isdecimal() and 0 < int(given) < 10_000 else None


def compiler() -> str | None:
    """Give the full path of the C++ compiler that ``CXX`` names, else of ``g++``; ``None`` where it is not there."""
    return shutil.which(cxx_compiler() or "g++")


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that a library reads, and put back what was there."""
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
