"""The right to use a device: one lock per device for all processes, users and studies of a host.

The lock is taken in every folder of :data:`autotune.measure.lock_files.FOLDERS` that any user may use. A process that
cannot use one of them (read-only for it, or full) takes the lock in the others: two processes exclude each other if
they have one folder in common.

In each folder, those that wait have tickets (:mod:`autotune.measure.lock_tickets`): only the lowest ticket tries to be
next, and only the next one tries the device. One that was stopped while it waited is passed. On a system without
tickets anyone who waits may become the next one. All take the folders in the same order, and draw a ticket in a folder
only as the next one of the folders before it. So each waits only for those that are further on, or have a lower ticket
in the same folder, and no circle can form.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from autotune.errors import WorkError
from autotune.measure import lock_files, lock_tickets
from autotune.measure.clock import Clock, SystemClock
from autotune.measure.lock_files import Place
from autotune.measure.lock_holders import Holders, erase, holders, note

LOG_EVERY_S = 10.0
LOOK_EVERY_S = 1.0
"""A waiting process looks for the holders of the device this often."""
UNREPORTED_S = 0.1
"""A wait that ends within this is not reported: some that share the device may pass one after the other in it."""
POLL_EVERY_S = 0.02
"""The device is idle for up to this long between two users."""

_log = logging.getLogger(__name__)
_warned: set[Path] = set()


@contextmanager
def device_lock(
    uuid: str,
    exclusive: bool,
    *,
    purpose: str = "",
    folders: Sequence[Path] | None = None,
    clock: Clock | None = None,
    sleep: Callable[[float], None] = time.sleep,
    on_wait: Callable[[Holders], None] | None = None,
) -> Iterator[float]:
    """Hold the device: exclusively for a timing, shared for a build that uses it; yields the seconds of waiting.

    It waits without a limit, calls ``on_wait`` with the holders when the wait begins and when they change, and logs
    them every 10 s. ``purpose`` is reported to processes that wait for this holder. Those that wait pass in their order
    of arrival: no later one overtakes, not even for a shared lock. (Without the kernel's locks of open file
    descriptions, as in some sandboxes, that holds only for the next one.) Two locks in one process exclude each other
    too. A forked child keeps its parent's lock alive; a spawned one does not. ``folders`` are those of
    :data:`autotune.measure.lock_files.FOLDERS` if not given. Raises ``WorkError`` if none of them can hold the lock.
    """
    wait = _Wait(uuid, clock or SystemClock(), sleep, on_wait)
    with ExitStack() as opened:
        places = _places(uuid, lock_files.FOLDERS if folders is None else folders)
        for place in places:
            opened.callback(os.close, place.lock)
        with ExitStack() as queued:
            for place in places:
                queued.callback(lock_tickets.leave, place.queue)
            for place in places:
                wait.stand_in_line(place)
            for place in places:
                wait.take(place, place.lock, alone=exclusive)
        for place in places:
            note(place.lock, purpose, alone=exclusive)
            if exclusive:
                opened.callback(erase, place.lock)
        yield wait.waited_s


class _Wait:
    """The wait of one process for a device, with the holders that it has reported."""

    def __init__(
        self, uuid: str, clock: Clock, sleep: Callable[[float], None], on_wait: Callable[[Holders], None] | None
    ) -> None:
        self._uuid, self._clock, self._sleep, self._on_wait = uuid, clock, sleep, on_wait
        self._started_ns = clock.now_ns()
        self._reported: Holders | None = None
        self._saw_nobody = False
        self._look_s = self._log_s = 0.0

    @property
    def waited_s(self) -> float:
        """Seconds since the wait began."""
        return (self._clock.now_ns() - self._started_ns) / 1e9

    def stand_in_line(self, place: Place) -> None:
        """Wait until all that came earlier have passed, and this process is next."""
        ticket = lock_tickets.draw(place.queue)
        if ticket is not None:
            self._poll(place, lock_tickets.PlaceInLine(place.queue, ticket, lambda: self.waited_s).is_next)
        self.take(place, place.queue, alone=True)

    def take(self, place: Place, descriptor: int, *, alone: bool) -> None:
        """Wait until the lock of a file is free, and take it."""
        self._poll(place, partial(lock_files.take, descriptor, alone=alone))

    def _poll(self, place: Place, attempt: Callable[[], bool]) -> None:
        """Wait until an attempt succeeds."""
        while not attempt():
            self._look(place)
            self._sleep(POLL_EVERY_S)

    def _look(self, place: Place) -> None:
        now_s = self.waited_s
        if now_s < UNREPORTED_S:
            return
        if self._reported is None:
            self._log_s = now_s + LOG_EVERY_S
        elif now_s < self._look_s:
            return
        users = _users(place)
        if not users.pids and not self._saw_nobody:
            self._saw_nobody = True  # perhaps between two users: the next poll looks again
            return
        self._saw_nobody = False
        self._look_s = now_s + LOOK_EVERY_S
        if self._reported is None or not users.includes(self._reported):
            self._reported = users
            if self._on_wait is not None:
                self._on_wait(users)
        if now_s >= self._log_s:
            self._log_s = now_s + LOG_EVERY_S
            _log.info("waiting for device %s for %.0f s so far: %s", self._uuid, now_s, users.text)


def _users(place: Place) -> Holders:
    """Return the holders of the device; between two holders, the next one."""
    users = holders(place.lock)
    following = users if users.pids else holders(place.queue, "is next to use it")
    return following if following.pids else users


def _remedy(uuid: str, folders: Sequence[Path]) -> str:
    """Return the command that makes a folder for locks, or removes the file in the place of one."""
    name = lock_files.safe_name(uuid)
    for folder in folders:
        if not lock_files.why_unsuitable(folder):
            there = [str(path) for suffix in ("next", "lock") if os.path.lexists(path := folder / f"{name}.{suffix}")]
            return f"rm {' '.join(there)}" if there else f"mount -o remount,rw {folder}, or make room in it"
    return f"install -d -m 1777 {folders[0]}"


def _places(uuid: str, folders: Sequence[Path]) -> list[Place]:
    """Open the lock in every folder for all users; warns once about a folder that this process cannot use."""
    lock_files.safe_name(uuid)  # refuses a wrong UUID before any folder is blamed
    places: list[Place] = []
    reasons = {folder: lock_files.why_unsuitable(folder) for folder in folders}
    for folder in folders:
        if reasons[folder]:
            continue
        try:
            places.append(lock_files.open_place(uuid, folder))
        except OSError as error:
            reasons[folder] = str(error)
    if not places:
        raise WorkError(
            f"locking device {uuid} needs a lock file in {' or '.join(map(str, folders))}",
            found="; ".join(f"{folder}: {reason}" for folder, reason in reasons.items()),
            expected="one of these as a folder of all users (mode drwxrwxrwt), and a plain file there for all to open",
            run=f"{_remedy(uuid, folders)} (as root), then the same again",
        )
    for folder, reason in reasons.items():
        if reason and folder not in _warned and not lock_files.why_unsuitable(folder):
            _warned.add(folder)
            _log.warning("%s holds no lock of device %s for this process: %s", folder, uuid, reason)
    return lock_files.without_repeats(places)
