"""Tickets of those that wait for a device: they pass in the order in which they came.

A ticket is a byte of the file whose lock the next user holds (:class:`autotune.measure.lock_files.Place`). It is locked
as an open file description (``F_OFD_SETLK`` in fcntl(2)), and nothing is written. Such a lock belongs to one opening of
the file, so threads of one process have tickets of their own, and the kernel frees those of a process that dies.
"""

import contextlib
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable

from autotune.measure import lock_files

STANDS_STILL_S = 2.0
"""A running process with the lowest ticket becomes the next one within one poll; a stopped one is passed after this."""
MOST_RACES = 1000
"""A newcomer that loses more bytes than this to others waits without a ticket."""

_FLOCK = struct.Struct("@hhqqi0q")  # struct flock of Linux: type, whence, start, length, process id (0 is demanded)


def draw(descriptor: int) -> int | None:
    """Lock the byte behind all locked ones, and return its offset; returns None if the system has no such locks.

    Two that come at once, and may only read the file, can have the same ticket: neither is before the other.
    """
    try:
        ticket = _behind_all(descriptor, 0)
        for _ in range(MOST_RACES):
            if _lock(descriptor, ticket):
                return ticket
            ticket = _behind_all(descriptor, ticket + 1)
    except (OSError, struct.error):  # a foreign lock up to the last possible byte leaves no ticket either
        return None
    return None


def lowest(descriptor: int, ticket: int) -> int:
    """Return the lowest ticket of those that wait: ``ticket`` itself if nobody came earlier."""
    first = ticket
    try:
        while first and (locked := _locked(descriptor, 0, first)) is not None:
            first = locked[0]
    except OSError:
        return ticket
    return first


def leave(descriptor: int) -> None:
    """Let go of the ticket, then of the right to be next, and close the file.

    Both are free even if a child that was forked meanwhile has the file open.
    """
    with contextlib.suppress(OSError):
        _fcntl(descriptor, _request(fcntl.F_UNLCK, 0, 0))
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


class PlaceInLine:
    """The place of one ticket among those that wait; ``now_s`` returns the time in seconds."""

    def __init__(self, descriptor: int, ticket: int, now_s: Callable[[], float]) -> None:
        self._descriptor, self._ticket, self._now_s = descriptor, ticket, now_s
        self._first, self._since_s = ticket, now_s()

    def is_next(self) -> bool:
        """Return whether all that came earlier have passed, or stand still without being next (as by Ctrl-Z)."""
        first, now_s = lowest(self._descriptor, self._ticket), self._now_s()
        if first == self._ticket:
            return True
        if first != self._first:
            self._first, self._since_s = first, now_s
        if now_s - self._since_s < STANDS_STILL_S:
            return False
        self._since_s = now_s
        if not lock_files.take(self._descriptor, alone=True):
            return False  # the first one is next, and waits for the device
        if lowest(self._descriptor, self._ticket) == first:
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # the first one has just passed: the second one is next
        return False


def _behind_all(descriptor: int, start: int) -> int:
    """Return the offset behind the last byte from ``start`` on that others have locked."""
    while (locked := _locked(descriptor, start, 0)) is not None:
        start = locked[0] + locked[1]
        if not locked[1]:
            raise OSError(errno.ENOLCK, "locked up to its last possible byte")
    return start


def _lock(descriptor: int, byte: int) -> bool:
    """Lock a byte if it is free; a file that was opened for reading only admits no lock for writing."""
    can_write = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    try:
        _fcntl(descriptor, _request(fcntl.F_WRLCK if can_write else fcntl.F_RDLCK, byte, 1))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def _locked(descriptor: int, start: int, length: int) -> tuple[int, int] | None:
    """Return start and length of a range of bytes that others have locked; a length of 0 reaches to any end."""
    reply = _fcntl(descriptor, _request(fcntl.F_WRLCK, start, length), test=True)
    kind, _, first, count, _ = _FLOCK.unpack(reply)
    return None if kind == fcntl.F_UNLCK else (first, count)


def _request(kind: int, start: int, length: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def _fcntl(descriptor: int, request: bytes, *, test: bool = False) -> bytes:
    """Set or test a lock; raises ``OSError`` if it is not free, and if the system has no such locks."""
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "no locks of open file descriptions")
    return fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK if test else fcntl.F_OFD_SETLK, request)
