"""All processes below one process: who they are, what memory they take, and how they end."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path

import psutil

PAUSE_S = 0.002
"""Between two looks at whether the killed are gone."""


def descendants(root: int, spare: Collection[int] = ()) -> list[psutil.Process]:
    """Every living process below ``root``, without those in ``spare`` and what is below them."""
    if not spare:
        return _below(root, recursive=True)
    near = [child for child in _below(root, recursive=False) if child.pid not in spare]
    return [*near, *(one for child in near for one in _below(child.pid, recursive=True))]


def memory_bytes(root: int, limit_bytes: int) -> int:
    """Memory of everything below ``root``: pages that several share count once.

    Resident memory counts them once each, so it is never less, and costs far less to read: only where it is past the
    limit is the exact figure asked for.
    """
    members = descendants(root)
    resident = sum(_resident(member) for member in members)
    return resident if resident <= limit_bytes else sum(_proportional(member) for member in members)


def end(root: int, reap: Callable[[], None], spare: Collection[int] = (), limit_s: float = 5.0) -> bool:
    """Kill everything below ``root``, which adopts orphans; returns whether all of it was gone in time.

    They are stopped first, until no look finds a new one: who is stopped starts no other. ``reap`` waits for children
    of this process that have ended, without blocking.
    """
    deadline = time.monotonic() + limit_s
    stopped: set[psutil.Process] = set()
    while time.monotonic() < deadline:
        reap()
        members = _living(root, spare)
        if not members:
            return True
        fresh = [member for member in members if member not in stopped]
        for member in fresh or members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member.pid, signal.SIGSTOP if fresh else signal.SIGKILL)
        stopped.update(fresh)
        if not fresh:
            time.sleep(PAUSE_S)
    return False


def _living(root: int, spare: Collection[int]) -> list[psutil.Process]:
    living = []
    for member in descendants(root, spare):
        with contextlib.suppress(psutil.Error):
            if member.status() != psutil.STATUS_ZOMBIE:
                living.append(member)
    return living


def _below(pid: int, *, recursive: bool) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=recursive)
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _proportional(process: psutil.Process) -> int:
    """Its share of the pages that it has (PSS); what is resident where the kernel does not tell that."""
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _resident(process)
