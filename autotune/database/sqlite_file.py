"""A SQLite file that this process may only read, opened without a write beside it.

SQLite keeps a write-ahead log (``-wal``) and its index (``-shm``) beside the file, and creates both even to read.
"""

import os
import shutil
import weakref
from pathlib import Path

from autotune.database.files import may
from autotune.errors import DatabaseError
from autotune.scratch import ScratchFolder


def is_read_only(file: Path) -> bool:
    """Return whether a file exists that this process cannot write, or beside which it can create no log.

    The kernel is asked, so that permissions, access lists, read-only mounts and root's privileges all count.
    """
    # No file is opened for this: closing any descriptor of the file would drop the locks that SQLite holds for this
    # process (https://sqlite.org/howtocorrupt.html, section 2.2).
    if not os.path.exists(file):
        return False
    real = Path(os.path.realpath(file))
    beside = [path for path in (_log(real), _index(real)) if os.path.exists(path)]
    return not (all(may(path, os.R_OK | os.W_OK) for path in (real, *beside)) and may(real.parent, os.W_OK | os.X_OK))


class ReadOnlyFile:
    """The URI by which SQLite opens a file that this process may only read.

    There are three cases. If both parts of a log exist, another process may be writing: SQLite uses its locks and the
    log. If there is no log, SQLite reads the file as one that no process changes. If a log was left behind without its
    index, which can be restored only in a writable folder, SQLite reads a copy in a temporary folder; ``close`` deletes
    it.
    """

    def __init__(self, file: Path) -> None:
        real = Path(os.path.realpath(file))
        self._scratch: ScratchFolder | None = None
        if may(_log(real), os.R_OK) and may(_index(real), os.R_OK):
            self.uri = f"{real.as_uri()}?mode=ro"
        elif _size(_log(real)):
            self.uri = f"{self._copied(real).as_uri()}?mode=rw"
        else:
            self.uri = f"{real.as_uri()}?mode=ro&immutable=1"

    def _copied(self, real: Path) -> Path:
        try:
            scratch = self._scratch = ScratchFolder("database")
            weakref.finalize(self, scratch.close)
            copy = scratch.path / "copy.db"
            shutil.copyfile(real, copy)
            shutil.copyfile(_log(real), _log(copy))
        except OSError as error:
            self.close()
            raise DatabaseError(
                f"The tuning database {real} cannot be read",
                found=f"a log that was left behind, and no copy can be made of both: {error.strerror or error}",
                expected="a folder for temporary files with space for them",
                run="the same command with TMPDIR set to another folder",
            ) from error
        return copy

    def close(self) -> None:
        """Delete the copy, if there is one; a connection that is still open can be read to its end."""
        if self._scratch is not None:
            self._scratch.close()


def _log(file: Path) -> Path:
    return file.with_name(f"{file.name}-wal")


def _index(file: Path) -> Path:
    return file.with_name(f"{file.name}-shm")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
