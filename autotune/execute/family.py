"""All processes below one process: their numbers, their memory, and their end."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PAUSE_S = 0.002
"""The time between two looks for processes that were killed and are not gone."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

PF_EXITING = 0x4
"""The flag of a process that the kernel takes down (include/linux/sched.h, field 9 of proc_pid_stat(5))."""

ASK_EVERY = 16
"""The number of processes whose memory is read between two calls of ``stop``."""


def members(root: int, spare: Collection[int] = ()) -> list[int]:
    """Return every process below ``root``, without those in ``spare`` and the processes below these."""
    return [member.pid for member in _look(root, spare, _all(), ())]


def memory_bytes(pids: Collection[int], limit_bytes: int, stop: Callable[[], bool] = lambda: False) -> int:
    """Return the memory of some processes; pages that several share count once.

    Resident memory counts such pages once for each process, so it is never less. The exact figure is read only if
    resident memory is past the limit. ``stop`` is called now and then while it is read; if true, the rest is left out.
    """
    # Resident memory costs far less to read. Each exact reading waits for a process that forks just then, and a fork
    # bomb does nothing else: so ``stop``.
    resident = sum(_resident(pid) for pid in pids)
    if resident <= limit_bytes:
        return resident
    exact = 0
    for number, pid in enumerate(pids, 1):
        exact += _proportional(pid)
        if number % ASK_EVERY == 0 and stop():
            break
    return exact


def is_ending(pid: int) -> bool:
    """Return whether a process has died and the kernel still frees what it held: a context on a GPU takes seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & PF_EXITING)


def end(root: int, reap: Callable[[], None], spare: Collection[int] = (), limit_s: float = 10.0) -> bool:
    """Kill everything below ``root``, which adopts orphans; returns whether all of it was gone in time.

    ``reap`` waits, without blocking, for children of this process that have ended.
    """
    # Each process is stopped at the moment that a look sees it, until a look at all sees no new one: a stopped process
    # starts no other. After a look that saw new ones, the next looks only read processes that were started since, so
    # that a look is quicker than they are. A process that forks and ends before it can be stopped leaves a new zombie:
    # only two looks in a row that see none alive and the same zombies prove that all are gone.
    deadline = time.monotonic() + limit_s
    stopped: set[_Member] = set()
    zombies: set[_Member] | None = None
    since: int | None = None
    while time.monotonic() < deadline:
        reap()
        newest = _newest()
        pids = _all() if since is None else range(newest, since, -1)
        fresh, members_seen = False, []
        for member in _look(root, spare, pids, stopped if since is not None else ()):
            members_seen.append(member)
            if not member.is_zombie and member not in stopped:
                _send(member, signal.SIGSTOP)
                stopped.add(member)
                fresh = True
        if fresh or since is not None:
            since = (since or newest) if fresh else None
            continue
        before, zombies = zombies, {member for member in members_seen if member.is_zombie}
        if len(zombies) == len(members_seen) and zombies == before:
            return True
        for member in members_seen:
            _send(member, signal.SIGKILL)
        time.sleep(PAUSE_S)
    return False


class _Member(NamedTuple):
    """A process at one look; its number may be given again, but not together with its time of start."""

    pid: int
    start: bytes
    is_zombie: bool


def _look(
    root: int, spare: Collection[int], pids: Iterable[int], members_before: Iterable[_Member]
) -> Iterator[_Member]:
    """Yield the processes among ``pids`` that are below ``root``; ``members_before`` are below it, and not yielded."""
    # Each is yielded as soon as it is read: while all are read, a fork bomb grows.
    below = dict.fromkeys((member.pid for member in members_before), True)
    below |= {0: False, 1: False, root: True} | dict.fromkeys(spare, False)
    stats: dict[int, tuple[int, bytes, bytes]] = {}
    for pid in pids:
        line, at = [], pid
        while at not in below:
            line.append(at)
            stats[at] = _stat(at)
            at = stats[at][0]
        below.update(dict.fromkeys(line, below[at]))
        if below[pid] and pid in stats:
            _, state, start = stats[pid]
            yield _Member(pid, start, state in (b"Z", b"X"))


def _all() -> list[int]:
    """Return the number of every process, the newest first, because these start others."""
    return sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)


def _newest() -> int:
    """Return the newest number of a process or a thread (proc_loadavg(5)); 0 if it cannot be read."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[-1])
    except (OSError, ValueError, IndexError):
        return 0


def _stat(pid: int) -> tuple[int, bytes, bytes]:
    """Return parent, state and time of start (proc_pid_stat(5)); a process that is gone has the parent 0."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(1024).rpartition(b")")[2].split()
    except OSError:
        return 0, b"X", b""
    return int(fields[1]), fields[0], fields[19]


def _send(member: _Member, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(member.pid, number)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    """Return its share of the pages that it has (PSS), or its resident memory if the kernel does not report that."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _resident(pid)
