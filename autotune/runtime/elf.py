"""The shared libraries that a Linux library needs."""

import struct
from typing import BinaryIO

_HEADER, _PROGRAM, _DYNAMIC = struct.Struct("<16sHHIQQQIHHH"), struct.Struct("<IIQQQQQQ"), struct.Struct("<QQ")
_LOAD, _DYNAMIC_SEGMENT = 1, 2
_NEEDED, _STRING_TABLE = 1, 5


def needed_libraries(file: BinaryIO) -> tuple[str, ...]:
    """Read the ``DT_NEEDED`` entries of a 64-bit little-endian ELF file (System V ABI, chapter 5).

    Raises ValueError if the file is something else.
    """
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    _, _, _, _, _, table, _, _, _, entry_size, entries = _HEADER.unpack(header)
    segments = []
    for index in range(entries):
        file.seek(table + index * entry_size)
        kind, _, offset, address, _, size, _, _ = _PROGRAM.unpack(file.read(_PROGRAM.size))
        segments.append((kind, offset, address, size))
    dynamic = [
        pair
        for kind, offset, _, size in segments
        if kind == _DYNAMIC_SEGMENT
        for pair in _DYNAMIC.iter_unpack(_read(file, offset, size - size % _DYNAMIC.size))
    ]
    strings = next((value for tag, value in dynamic if tag == _STRING_TABLE), 0)
    loads = (segment for segment in segments if segment[0] == _LOAD)
    start = next((strings - at + offset for _, offset, at, size in loads if at <= strings < at + size), None)
    if start is None:
        return ()
    return tuple(_text(file, start + value) for tag, value in dynamic if tag == _NEEDED)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _text(file: BinaryIO, offset: int) -> str:
    return _read(file, offset, 4096).split(b"\0", 1)[0].decode()
