"""Who holds a lock file: what a holder notes in it, and what a process that waits can say."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.measure.process_owner import owner, plain, user_name

LOCKS = Path("/proc/locks")
NOTES_LIMIT_BYTES = 64 * 1024
"""A lock file of more notes than this begins anew; each shared holder adds one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holders:
    """Who has a device: a sentence about the first one, and process ids as far as they are known here."""

    text: str
    pids: tuple[int, ...] = ()

    def includes(self, other: "Holders") -> bool:
        """Return whether the one that the other sentence is about is still among these."""
        return other.pids[0] in self.pids if other.pids else not self.pids


def note(descriptor: int, purpose: str, *, alone: bool) -> None:
    """Write down who takes a lock and what for; without permission, or room, the lock holds all the same.

    Whoever has it alone begins the file anew. Others add to it, each by one write at its end.
    """
    record = {
        "pid": os.getpid(), "pid_space": _pid_space(), "user": user_name(os.geteuid()), "purpose": purpose,
        "since": time.time(),
    }  # fmt: skip
    with contextlib.suppress(OSError):
        if alone or os.fstat(descriptor).st_size > NOTES_LIMIT_BYTES:
            os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(record).encode() + b"\n")


def erase(descriptor: int) -> None:
    """Take back the note of a holder that had the lock alone."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)


def holders(descriptor: int, doing: str = "uses it") -> Holders:
    """Describe who holds the lock of an open file, by the kernel's list and the notes in the file.

    A note counts only if its process holds the lock now. One of another namespace of process ids, as in a container,
    cannot be checked, and is passed on as its own account.
    """
    pids, notes = _holding(descriptor), _notes(descriptor)
    if not pids:
        strangers = [one for one in notes if one["pid_space"] != _pid_space()]
        if not strangers:
            return Holders(text=f"a process that cannot be seen from here {doing}")
        return Holders(text=f"{_sentence(strangers[-1], doing)}, by its own account from another container")
    known = {one["pid"]: one for one in notes if one["pid_space"] == _pid_space()}
    pids = sorted(pids, key=lambda pid: (pid not in known, pid))
    text = _sentence(known.get(pids[0], {}), doing, pids[0])
    more = f" (and {len(pids) - 1} more)" if len(pids) > 1 else ""
    return Holders(text=f"{text}{more}", pids=tuple(pids))


def _sentence(told: Mapping[str, Any], doing: str, pid: int | None = None) -> str:
    """What a note tells; of a process id that the kernel names, user and program are the system's own answer."""
    user, program = (None, None) if pid is None else owner(pid)
    who = f"process {told.get('pid', pid)}" if pid != os.getpid() else f"this process ({pid})"
    user = user or told.get("user")
    of = f" of {user}" if user else ""
    why = f" for {told['purpose']}" if told.get("purpose") else f" ({program})" if program else ""
    since = f" since {_clock_time(told['since'])}" if "since" in told else ""
    return f"{who}{of} {doing}{why}{since}"


def _holding(descriptor: int) -> list[int]:
    """Ids of the processes that the kernel lists with a lock on the file; others' namespaces are not in its list."""
    found = os.fstat(descriptor)
    wanted = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pids: set[int] = set()
    with contextlib.suppress(OSError):
        for line in LOCKS.read_text().splitlines():
            parts = line.split()  # "1: FLOCK  ADVISORY  WRITE 4711 00:1b:1285 0 EOF"; one that waits has "->"
            if parts[1:2] == ["FLOCK"] and parts[5:6] == [wanted] and int(parts[4]) > 0:
                pids.add(int(parts[4]))
    return sorted(pids)


def _notes(descriptor: int) -> list[dict[str, Any]]:
    """The readable notes of a file, oldest first; anybody may have written to it."""
    try:
        lines = os.pread(descriptor, 2 * NOTES_LIMIT_BYTES, 0).decode(errors="replace").splitlines()
    except OSError:
        return []
    return [told for line in lines if (told := _note(line)) is not None]


def _note(line: str) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
        return {
            "pid": int(told["pid"]), "pid_space": int(told["pid_space"]), "user": plain(told["user"]),
            "purpose": plain(told["purpose"]), "since": float(told["since"]),
        }  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _pid_space() -> int:
    """What tells process ids of one container from another's."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _clock_time(since: float) -> str:
    """The local time of day of a moment, with its date if that is another day."""
    try:
        then = time.localtime(since)
    except (ValueError, OverflowError, OSError):
        return "an unknown time"
    today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)
