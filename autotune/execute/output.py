"""The output of a step on its way to a file of bounded size: OutputLog."""

import contextlib
import os
from pathlib import Path

from autotune.execute.limits import LOG_BYTES


class OutputLog:
    """Keeps the last :data:`LOG_BYTES` of the output, and counts all of it.

    Output that fits is in the file at once; of more output the file has the beginning until :meth:`close`.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._tail = bytearray()
        self.total_bytes = 0

    def write(self, data: bytes) -> None:
        """Add output; a disk that is full loses it, and nothing else is hurt."""
        self.total_bytes += len(data)
        self._tail += data
        if self.total_bytes <= LOG_BYTES:
            with contextlib.suppress(OSError):
                os.write(self._file, data)
        elif len(self._tail) > 2 * LOG_BYTES:
            del self._tail[:-LOG_BYTES]

    def close(self) -> None:
        """Leave the tail in the file."""
        with contextlib.suppress(OSError):
            if self.total_bytes > LOG_BYTES:
                os.pwrite(self._file, bytes(self._tail[-LOG_BYTES:]), 0)
        os.close(self._file)
