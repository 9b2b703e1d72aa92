"""The oldest versions of libraries that may be handed a stranger's model."""

import re

from autotune.errors import WorkError

SAFE = {"torch": (2, 10), "onnx": (1, 21)}
"""Older ones run or read what a file asks them to, against what ``weights_only`` and external data promise."""


def require_safe(library: str) -> None:
    """Raise WorkError if an installed library is too old to be handed a stranger's model."""
    from importlib import metadata  # here because it takes long to import

    try:
        found = metadata.version(library)
    except metadata.PackageNotFoundError:
        return  # what is not there reads nothing
    if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < SAFE[library]:
        floor = ".".join(map(str, SAFE[library]))
        raise WorkError(
            f"no model file is handed to {library}",
            found=f"{library} {found}",
            expected=f"{library} >= {floor}, which does not run what a file asks it to",
            run=f"pip install --upgrade '{library}>={floor}'",
        )
