"""The references of an ONNX file, checked before any library reads it: operators, and files with its weights.

Reads the few fields of the protobuf that matter (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); the package
``onnx`` is not installed on a machine that serves a model.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import ArtifactError
from autotune.model.floors import require_safe

# Domains that ONNX and ONNX Runtime define; an operator of another domain comes from another library.
DOMAINS = (
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft",
    "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc", "org.pytorch.aten",
)  # fmt: skip
DEEPEST = 64
"""Levels of graphs inside nodes inside graphs; an exported model has fewer than ten."""

# Where messages lie in messages: (message, field) -> message. The numbers are those of onnx.proto.
_INSIDE = {
    ("model", 7): "graph", ("model", 25): "function", ("model", 20): "training",
    ("training", 1): "graph", ("training", 2): "graph",
    ("function", 7): "node", ("graph", 1): "node", ("graph", 5): "tensor", ("graph", 15): "sparse",
    ("sparse", 1): "tensor", ("sparse", 2): "tensor", ("node", 5): "attribute",
    ("attribute", 5): "tensor", ("attribute", 10): "tensor", ("attribute", 6): "graph", ("attribute", 11): "graph",
    ("attribute", 22): "sparse", ("attribute", 23): "sparse", ("tensor", 13): "entry",
}  # fmt: skip
_DOMAIN = {("node", 7), ("function", 10)}


@dataclass(slots=True)
class _References:
    """The references so far: domains of nodes and of functions that the file itself defines, and external weights."""

    domains: set[str]
    own: set[str]
    weights: list[dict[str, str]]


def with_metadata(content: bytes, entries: Mapping[str, str]) -> bytes:
    """Return a model with more entries of metadata; a message of protobuf may have its fields in any order."""

    def field(number: int, value: bytes) -> bytes:
        return _encoded(number << 3 | 2) + _encoded(len(value)) + value

    added = (field(1, key.encode()) + field(2, value.encode()) for key, value in entries.items())
    return content + b"".join(field(14, entry) for entry in added)


def _encoded(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def check_onnx(path: Path) -> None:
    """Raise ArtifactError unless the file is whole, and refers only to known operators and to weights beside it.

    Raises WorkError if onnx is installed, but too old to read the file safely.
    """
    require_safe("onnx")
    try:
        seen = _References(domains=set(), own=set(), weights=[])
        _read(memoryview(path.read_bytes()), "model", seen, 0)
        foreign = sorted(seen.domains - seen.own - set(DOMAINS))
        if foreign:
            raise ValueError(f"an operator of the domain {foreign[0]!r}")
        for weights in seen.weights:
            _check_weights(path.parent, weights)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path.name} is refused",
            found=str(error),
            expected="a whole ONNX model with known operators, and its weights in plain files beside it",
        ) from error


def _check_weights(folder: Path, weights: dict[str, str]) -> None:
    location = weights.get("location", "")
    parts = location.split("/")
    if not location or "\\" in location or "\x00" in location or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"weights in {location!r}, which is no name below the model's folder")
    for depth in range(1, len(parts) + 1):
        mode = os.lstat(folder.joinpath(*parts[:depth])).st_mode
        if not (stat.S_ISREG(mode) if depth == len(parts) else stat.S_ISDIR(mode)):
            raise ValueError(f"weights in {location!r}, which is a link or no file")
    size = os.lstat(folder.joinpath(*parts)).st_size
    offset, length = _number(weights.get("offset", "0")), _number(weights.get("length", "0"))
    if offset + length > size:
        raise ValueError(f"weights up to byte {offset + length} of {location!r}, which has {size}")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"weights at {text!r}, expected a number of bytes that is not negative")
    return int(text)


def _read(data: memoryview, message: str, seen: _References, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"graphs nested deeper than {DEEPEST} levels")
    entries: dict[str, str] = {}
    for field, value in _fields(data):
        if (message, field) in _DOMAIN:
            (seen.own if message == "function" else seen.domains).add(bytes(value).decode())
        inside = _INSIDE.get((message, field))
        if inside == "entry":
            pair = {number: bytes(part).decode() for number, part in _fields(value)}
            entries[pair.get(1, "")] = pair.get(2, "")
        elif inside is not None:
            _read(value, inside, seen, depth + 1)
    if entries:
        seen.weights.append(entries)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of every field that has bytes; raises ``ValueError`` if the data ends too soon."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind, length = key & 7, 0
        if kind == 0:
            _, at = _varint(data, at)
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("no protobuf")
        if at + length > len(data):
            raise ValueError("a protobuf that ends too soon")
        if kind == 2:
            yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("a protobuf that ends too soon")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("no protobuf")
