"""Who may use a device now: a lock per device that holds across processes and studies."""

import fcntl
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from autotune.errors import WorkError
from autotune.measure.clock import Clock, SystemClock

LOG_EVERY_S = 10.0
POLL_EVERY_S = 0.05

_log = logging.getLogger(__name__)


def locks_folder() -> Path:
    """Name the user's own folder for locks: under ``XDG_RUNTIME_DIR`` if that exists, else the temporary folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(runtime) if runtime and os.access(runtime, os.W_OK) else Path(tempfile.gettempdir())
    return base / f"autotune-{os.getuid()}" / "locks"


@contextmanager
def device_lock(
    uuid: str,
    exclusive: bool,
    *,
    folder: Path | None = None,
    clock: Clock | None = None,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[], None] | None = None,
) -> Iterator[float]:
    """Hold the device: exclusively for a timing, shared for a build that uses it; yields the seconds it had to wait.

    It waits as long as it takes, calls ``on_wait`` once when it begins to, and says so in the log every 10 s. Who waits
    first is next: nobody who comes later, not even for a shared lock, overtakes it. Two locks in one process exclude
    each other too. A forked child keeps its parent's lock alive; a spawned one does not. Raises ``WorkError`` if a lock
    file cannot be made or its folder belongs to someone else.
    """
    clock = clock or SystemClock()
    folder = folder or locks_folder()
    started_ns = clock.now_ns()
    said_s: float | None = None
    descriptors: list[int] = []
    try:
        for suffix, alone in (("next", True), ("lock", exclusive)):
            descriptors.append(_open(uuid, folder, suffix))
            while not _take(descriptors[-1], alone):
                waited_s = (clock.now_ns() - started_ns) / 1e9
                if said_s is None:
                    said_s = waited_s
                    if on_wait is not None:
                        on_wait()
                elif waited_s - said_s >= LOG_EVERY_S:
                    said_s = waited_s
                    _log.info("waiting for device %s, in use by another process for %.0f s so far", uuid, waited_s)
                sleep(POLL_EVERY_S)
        os.close(descriptors.pop(0))  # the next one may wait for the device itself
        yield (clock.now_ns() - started_ns) / 1e9
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _take(descriptor: int, exclusive: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(uuid: str, folder: Path, suffix: str) -> int:
    """Open a lock file of a device; closing it gives the lock back."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", uuid)
    if not name.strip("_"):
        raise ValueError(f"a device's uuid has letters or digits, found {uuid!r}")
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for part in (folder.parent, folder):
            found = part.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise PermissionError(f"{part} is not a folder of this user's own")
        return os.open(folder / f"{name}.{suffix}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise WorkError(
            f"locking device {uuid} needs a lock file in {folder}",
            found=str(error),
            expected="a folder that this user owns and can write",
            run="set XDG_RUNTIME_DIR or TMPDIR to such a folder and try again",
        ) from error
