"""Files that may have been tampered with: listed, hashed and compared without following a link."""

import fcntl
import hashlib
import os
import stat
from pathlib import Path
from typing import IO

from autotune.errors import ArtifactError

CHUNK_BYTES = 1 << 20


def names_below(folder: Path, *, refusal: str, hard_links: bool = False) -> list[str]:
    """Return the names of the regular files below a folder, sorted.

    Raises ArtifactError, which begins with ``refusal``, for any link or special file; a file with a second name
    somewhere is a link too, unless ``hard_links`` are expected.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactError(refusal, found="no folder of its own", expected="a folder of files")
    names = []
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=False):
        for entry in (*folders, *files):
            path = Path(parent, entry)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and (hard_links or status.st_nlink == 1):
                names.append(path.relative_to(folder).as_posix())
            elif not stat.S_ISDIR(status.st_mode):
                raise ArtifactError(refusal, found=f"{path} is a link or a special file", expected="plain files alone")
    return sorted(names)


def _refuse(error: OSError) -> None:
    raise error


def open_plain(path: Path) -> IO[bytes]:
    """Open a regular file, never through a symbolic link and never waiting for a pipe; raises ``OSError``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return open(descriptor, "rb", buffering=0)


def hashed(stream: IO[bytes], target: IO[bytes] | None = None) -> tuple[int, str]:
    """Return the size and SHA-256 of the rest of a stream, and copy it to ``target``."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        if target is not None:
            target.write(chunk)
    return size, digest.hexdigest()


def holds(path: Path, size_bytes: int, sha256: str) -> bool:
    """Return whether a path is a file, no link, with exactly this content."""
    try:
        with open_plain(path) as stream:
            return os.fstat(stream.fileno()).st_size == size_bytes and hashed(stream) == (size_bytes, sha256)
    except OSError:
        return False


def make_folder(path: Path) -> None:
    """Create a folder that only its owner can read, and write its name to the disk; an existing one is no error."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, and return when they are there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def in_use(path: Path) -> bool:
    """Return whether a living process holds the lock that the writer of a temporary file or folder takes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def may(path: Path, how: int) -> bool:
    """Return whether this process may use a path so (``os.R_OK`` and others), as the kernel sees it.

    Permissions, access lists, read-only mounts and root's privileges all count; nothing is opened.
    """
    return os.access(path, how, effective_ids=os.access in os.supports_effective_ids)
