"""The folders and the files of device locks, opened safely among users who need not trust each other."""

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDERS = (Path("/run/lock"), Path("/dev/shm"))
"""The same for every process of a host: no environment variable, and no private temporary folder, changes them."""

TRIES, PAUSE_S = 5, 0.02
"""A file that another user has just made gets the mode for all users a moment later."""

_SHARED_MODE = 0o666
_STICKY_FOR_ALL = stat.S_ISVTX | stat.S_IWOTH | stat.S_IXOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The two open files of a device in one folder: the next user holds ``queue``, the present user ``lock``.

    Closing a file releases its lock.
    """

    folder: Path
    queue: int
    lock: int


def why_unsuitable(folder: Path) -> str:
    """Return the reason why no lock may lie in a folder; empty if it may.

    The answer depends on the folder alone, never on the user: users of different folders would not exclude each other.
    """
    try:
        status = folder.lstat()
    except OSError as error:
        return error.strerror or type(error).__name__
    if not stat.S_ISDIR(status.st_mode):
        return "no folder"
    if status.st_mode & _STICKY_FOR_ALL != _STICKY_FOR_ALL:
        return f"its mode is {stat.filemode(status.st_mode)}"
    return ""


def open_place(uuid: str, folder: Path) -> Place:
    """Open the files of a device in a folder; raises ``OSError`` with the reason if they cannot be used."""
    name = safe_name(uuid)
    queue = open_lock(folder / f"{name}.next")
    try:
        return Place(folder=folder, queue=queue, lock=open_lock(folder / f"{name}.lock"))
    except OSError:
        os.close(queue)
        raise


def safe_name(uuid: str) -> str:
    """Return the name of a device's files without endings; ``ValueError`` for a UUID without letters or digits."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", uuid)
    if not name.strip("_"):
        raise ValueError(f"a device's uuid has letters or digits, found {uuid!r}")
    return f"autotune-{name}"


def open_lock(path: Path) -> int:
    """Open a lock file, for writing too if that is permitted, and make it if it does not exist.

    It is never deleted: two processes would then hold two files of one name. Raises ``OSError`` if it is no plain file
    of one name (a link, a pipe, a folder), and if it can be neither opened nor made.
    """
    for left in reversed(range(TRIES)):
        try:
            return _checked(_opened(path), path)
        except FileNotFoundError:
            _make(path)
        except PermissionError:
            if not left:
                raise
            time.sleep(PAUSE_S)
    raise FileNotFoundError(errno.ENOENT, "it vanishes as often as it is made", str(path))


def _opened(path: Path) -> int:
    # Without O_CREAT: in a sticky folder fs.protected_regular refuses it for files of others, even to root.
    flags = os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from None
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    return os.open(path, os.O_RDONLY | flags)  # flock needs no permission to write


def _checked(descriptor: int, path: Path) -> int:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file of one name", str(path))
    if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != _SHARED_MODE:
        with contextlib.suppress(OSError):  # its maker was killed before it could do this
            os.fchmod(descriptor, _SHARED_MODE)
    return descriptor


def _make(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _SHARED_MODE)
    except FileExistsError:
        return
    try:
        os.fchmod(descriptor, _SHARED_MODE)  # whatever the umask
    finally:
        os.close(descriptor)


def take(descriptor: int, *, alone: bool) -> bool:
    """Take the lock of an open file if it is free; returns False if another one holds it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def without_repeats(places: Sequence[Place]) -> list[Place]:
    """Drop and close each place that is an earlier one by another path: a process would wait for itself there."""
    kept: dict[tuple[int, int], Place] = {}
    for place in places:
        status = os.fstat(place.lock)
        if kept.setdefault((status.st_dev, status.st_ino), place) is not place:
            close(place)
    return list(kept.values())


def close(place: Place) -> None:
    """Close both files."""
    os.close(place.queue)
    os.close(place.lock)
