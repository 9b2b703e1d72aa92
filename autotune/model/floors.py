"""The oldest versions of libraries that may read a stranger's model."""

import re

from autotune.errors import WorkError

SAFE = {"torch": (2, 10), "onnx": (1, 21)}
"""Older ones run code or read files that a model file names, against the promise of ``weights_only``."""


def require_safe(library: str) -> None:
    """Raise WorkError if an installed library is too old to read a stranger's model."""
    from importlib import metadata  # here because it takes long to import

    try:
        version = metadata.version(library)
    except metadata.PackageNotFoundError:
        return  # a library that is not installed reads nothing
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < SAFE[library]:
        floor = ".".join(map(str, SAFE[library]))
        raise WorkError(
            f"no model file is handed to {library}",
            found=f"{library} {version}",
            expected=f"{library} >= {floor}, which runs no code from a model file",
            run=f"pip install --upgrade '{library}>={floor}'",
        )
