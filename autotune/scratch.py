"""Temporary folders that are deleted however their user ends: ScratchFolder."""

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "autotune-scratch-"
MARK = ".in-use"
"""The file in each folder that its users lock; the kernel releases a lock however a process ends."""

ATTEMPTS = 100

log = logging.getLogger(__name__)


class ScratchFolder:
    """A new folder at ``path`` for temporary files, of this user alone.

    ``close``, or the end of a ``with`` block, deletes it. The folder of a process that was killed is deleted by the
    next process of the same user that makes or closes one. ``purpose`` becomes part of its name, for people who look.
    ``parent`` is by default the system's folder for temporary files.
    """

    def __init__(self, purpose: str, parent: Path | None = None) -> None:
        self._parent = parent or Path(tempfile.gettempdir())
        sweep(self._parent)
        for _ in range(ATTEMPTS):
            folder = Path(tempfile.mkdtemp(dir=self._parent, prefix=f"{PREFIX}{purpose}-"))
            with contextlib.suppress(FileNotFoundError):  # another process swept it away before it was locked
                self._lock = _locked_mark(folder)
                self.path = folder
                return
        raise FileNotFoundError(f"other processes delete every new folder in {self._parent}")

    def close(self) -> None:
        """Delete the folder; nothing happens if it is deleted already."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        try:
            with contextlib.suppress(OSError):
                _delete(self.path)
        finally:
            os.close(lock)
        sweep(self._parent)  # a process that was killed shortly before may have kept its folder until now

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    _lock: int | None = None


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[tuple[int, ...]]:
    """Yield descriptors that keep a scratch folder as long as a child process has them; none for any other folder.

    A child that works on in the folder after its parent was killed inherits them.
    """
    if not folder.name.startswith(PREFIX) or not (folder / MARK).is_file():
        yield ()
        return
    lock = _locked_mark(folder)
    try:
        yield (lock,)
    finally:
        os.close(lock)


def sweep(parent: Path) -> None:
    """Delete the scratch folders in a folder that belong to this user and that no process uses any more."""
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                with contextlib.suppress(OSError):
                    _delete_unused(Path(entry.path))


def _delete_unused(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    try:
        lock = os.open(folder / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        folder.rmdir()  # only if it is empty: its user was killed before there was a mark, or is about to write one
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError if the folder is in use
        if _is_mark_of(lock, folder):
            _delete(folder)
            log.info("deleted %s, which a process that was killed has left behind", folder)
    finally:
        os.close(lock)


def _locked_mark(folder: Path) -> int:
    """Lock the mark of a folder, together with others; raises FileNotFoundError if the folder is being deleted."""
    # A lock on a file also holds on other hosts that share a network folder; one on the folder itself would not.
    lock = os.open(folder / MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not _is_mark_of(lock, folder):
            raise FileNotFoundError(folder)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _is_mark_of(lock: int, folder: Path) -> bool:
    """Return whether an open file is the one that lies in a folder now."""
    try:
        return os.path.samestat(os.fstat(lock), os.lstat(folder / MARK))
    except FileNotFoundError:
        return False


def _delete(folder: Path) -> None:
    """Delete a folder, its mark last: if this process is killed meanwhile, the next one continues."""
    for entry in list(os.scandir(folder)):
        if entry.name == MARK:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)
    if os.listdir(folder) == [MARK]:
        os.unlink(folder / MARK)
        folder.rmdir()
