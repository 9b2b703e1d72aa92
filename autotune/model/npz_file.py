"""The shape and dtype that an entry of an ``.npz`` file declares, read before more than its header is decompressed."""

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import numpy.typing

HEADER_BYTES = 16384
"""numpy reads no header longer than 10,000 characters; its writer needs a few hundred."""

MOST_INFLATED, LEAST_BYTES = 200, 64 * 2**20
"""Deflate makes zeros a thousand times smaller and measured numbers hardly; a size below the least does no harm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """Shape and dtype (by numpy's name) in an entry's header."""

    shape: tuple[int, ...]
    dtype: str


def declared(path: Path, key: str) -> tuple[list[str], Declared | None]:
    """Return the names in a file, and the declaration of the entry under a key; ``None`` if there is none.

    Raises ValueError if the entry's size does not fit its shape, if it was compressed further than rows of
    numbers ever are, or if it holds Python objects.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        entry = _entry(archive, key)
        if entry is None:
            return names, None
        with archive.open(entry) as file:
            head = io.BytesIO(file.read(min(HEADER_BYTES, entry.file_size)))
    shape, dtype = _header(head)
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds Python objects, which are read by running them")
    needed = head.tell() + math.prod(shape) * dtype.itemsize
    if entry.file_size != needed:
        raise ValueError(f"{entry.filename} holds {entry.file_size} bytes, and its shape {list(shape)} needs {needed}")
    if entry.file_size > max(LEAST_BYTES, MOST_INFLATED * entry.compress_size):
        raise ValueError(
            f"{entry.filename} grows from {entry.compress_size} to {entry.file_size} bytes, more than {MOST_INFLATED} "
            "times: a decompression bomb, or rows that numpy.savez would store uncompressed"
        )
    return names, Declared(shape=shape, dtype=dtype.name)


def read(path: Path, key: str) -> "numpy.typing.NDArray[numpy.generic]":
    """Read the entry that :func:`declared` has checked."""
    from numpy.lib import format as npy

    with zipfile.ZipFile(path) as archive:
        entry = _entry(archive, key)
        if entry is None:
            raise KeyError(key)
        with archive.open(entry) as file:
            return npy.read_array(file, allow_pickle=False)


def _entry(archive: zipfile.ZipFile, key: str) -> zipfile.ZipInfo | None:
    """Return the entry under a key, to which ``numpy.savez`` adds an ending."""
    return archive.NameToInfo.get(f"{key}.npy") or archive.NameToInfo.get(key)


def _header(head: io.BytesIO) -> "tuple[tuple[int, ...], numpy.dtype[numpy.generic]]":
    from numpy.lib import format as npy

    version = npy.read_magic(head)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(head)
    return shape, dtype
