"""All processes below one process: who they are, what memory they take, and how they end."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PAUSE_S = 0.002
"""Between two looks at whether the killed are gone."""

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

PF_EXITING = 0x4
"""The flag of a process that the kernel takes down (include/linux/sched.h, field 9 of proc_pid_stat(5))."""

ASK_EVERY = 16
"""So many processes' memory is read between two questions whether to go on."""


def members(root: int, spare: Collection[int] = ()) -> list[int]:
    """Every process below ``root``, without those in ``spare`` and what is below them."""
    return [member.pid for member in _look(root, spare, _all(), ())]


def memory_bytes(pids: Collection[int], limit_bytes: int, stop: Callable[[], bool] = lambda: False) -> int:
    """Memory of some processes: pages that several share count once.

    Resident memory counts them once each, so it is never less, and costs far less to read: only where it is past the
    limit is the exact figure asked for. ``stop`` is asked now and then while that is read, and leaves out the rest:
    each reading waits for a process that forks just then, and a fork bomb does nothing else.
    """
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
    """Whether a process has died and the kernel takes down what it held: a context on a GPU takes seconds."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & PF_EXITING)


def end(root: int, reap: Callable[[], None], spare: Collection[int] = (), limit_s: float = 10.0) -> bool:
    """Kill everything below ``root``, which adopts orphans; returns whether all of it was gone in time.

    Each is stopped at the moment it is found, until a look at all finds no new one: who is stopped starts no other.
    After a look that found some, the next are at nobody but those started since, so that they are quicker than these.
    Who forks and ends before it can be stopped leaves a new zombie behind: only two looks that find nobody alive and
    the same zombies tell that all are gone. ``reap`` waits for children of this process that have ended, without
    blocking.
    """
    deadline = time.monotonic() + limit_s
    stopped: set[_Member] = set()
    zombies: set[_Member] | None = None
    since: int | None = None
    while time.monotonic() < deadline:
        reap()
        newest = _newest()
        pids = _all() if since is None else range(newest, since, -1)
        fresh, found = False, []
        for member in _look(root, spare, pids, stopped if since is not None else ()):
            found.append(member)
            if not member.is_zombie and member not in stopped:
                _send(member, signal.SIGSTOP)
                stopped.add(member)
                fresh = True
        if fresh or since is not None:
            since = (since or newest) if fresh else None
            continue
        before, zombies = zombies, {member for member in found if member.is_zombie}
        if len(zombies) == len(found) and zombies == before:
            return True
        for member in found:
            _send(member, signal.SIGKILL)
        time.sleep(PAUSE_S)
    return False


class _Member(NamedTuple):
    """A process as one look found it; its number may be given again, its number with its start is not."""

    pid: int
    start: bytes
    is_zombie: bool


def _look(root: int, spare: Collection[int], pids: Iterable[int], known: Iterable[_Member]) -> Iterator[_Member]:
    """Give those of some processes that are below ``root``, as the known are, which are not given again.

    Each is given when it is found: while all are read, a fork bomb grows.
    """
    below = dict.fromkeys((member.pid for member in known), True)
    below |= {0: False, 1: False, root: True} | dict.fromkeys(spare, False)
    told: dict[int, tuple[int, bytes, bytes]] = {}
    for pid in pids:
        line, at = [], pid
        while at not in below:
            line.append(at)
            told[at] = _stat(at)
            at = told[at][0]
        below.update(dict.fromkeys(line, below[at]))
        if below[pid] and pid in told:
            _, state, start = told[pid]
            yield _Member(pid, start, state in (b"Z", b"X"))


def _all() -> list[int]:
    """The number of every process, the newest first: it is they who start others."""
    return sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)


def _newest() -> int:
    """The number that was given last to a process or a thread (proc_loadavg(5)); 0 where it is not told."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[-1])
    except (OSError, ValueError, IndexError):
        return 0


def _stat(pid: int) -> tuple[int, bytes, bytes]:
    """Parent, state and time of start (proc_pid_stat(5)); who is gone has the parent 0."""
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
    """Its share of the pages that it has (PSS); what is resident where the kernel does not tell that."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _resident(pid)
