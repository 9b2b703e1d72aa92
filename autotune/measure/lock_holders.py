"""The holders of a lock file: the notes that they write into it, and the description that a waiting process reads."""

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from autotune.measure.process_owner import owner, plain, user_name

LOCKS = Path("/proc/locks")
NOTES_LIMIT_BYTES = 64 * 1024
"""A lock file of more notes than this begins anew; each shared holder adds one."""


class Note(TypedDict):
    """The entry of one holder in a lock file; ``pid_space`` identifies the namespace of the process id."""

    pid: int
    pid_space: int
    user: str
    purpose: str
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Holders:
    """The holders of a device: a sentence about the first one, and the process ids that are visible here."""

    text: str
    pids: tuple[int, ...] = ()

    def includes(self, other: "Holders") -> bool:
        """Return whether the one that the other sentence is about is still among these."""
        return other.pids[0] in self.pids if other.pids else not self.pids


def note(descriptor: int, purpose: str, *, alone: bool) -> None:
    """Note this process and its purpose in a lock file; without permission, or room, the lock is valid without a note.

    An exclusive holder begins the file anew. Shared holders append to it, each by one write.
    """
    record: Note = {
        "pid": os.getpid(), "pid_space": _pid_space(), "user": user_name(os.geteuid()), "purpose": purpose,
        "since": time.time(),
    }  # fmt: skip
    with contextlib.suppress(OSError):
        if alone or os.fstat(descriptor).st_size > NOTES_LIMIT_BYTES:
            os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(record).encode() + b"\n")


def erase(descriptor: int) -> None:
    """Delete the note of an exclusive holder."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)


def holders(descriptor: int, doing: str = "uses it") -> Holders:
    """Describe who holds the lock of an open file, by the kernel's list and the notes in the file.

    A note counts only if its process holds the lock now. A note from another namespace of process ids, as in a
    container, cannot be checked, and is reported as such.
    """
    pids, notes = _holding(descriptor), _notes(descriptor)
    if not pids:
        strangers = [entry for entry in notes if entry["pid_space"] != _pid_space()]
        if not strangers:
            return Holders(text=f"a process that cannot be seen from here {doing}")
        return Holders(text=f"{_sentence(strangers[-1], doing)}, by its own account from another container")
    by_pid = {entry["pid"]: entry for entry in notes if entry["pid_space"] == _pid_space()}
    pids = sorted(pids, key=lambda pid: (pid not in by_pid, pid))
    text = _sentence(by_pid.get(pids[0]), doing, pids[0])
    more = f" (and {len(pids) - 1} more)" if len(pids) > 1 else ""
    return Holders(text=f"{text}{more}", pids=tuple(pids))


def _sentence(entry: Note | None, doing: str, pid: int | None = None) -> str:
    """Describe a holder by its note; for a process id from the kernel, the system's user and program come first."""
    user, program = (None, None) if pid is None else owner(pid)
    who = f"process {entry['pid'] if entry else pid}" if pid != os.getpid() else f"this process ({pid})"
    user = user or (entry["user"] if entry else None)
    of = f" of {user}" if user else ""
    why = f" for {entry['purpose']}" if entry and entry["purpose"] else f" ({program})" if program else ""
    since = f" since {_clock_time(entry['since'])}" if entry else ""
    return f"{who}{of} {doing}{why}{since}"


def _holding(descriptor: int) -> list[int]:
    """Return the processes that the kernel lists with a lock on the file; it lists none of other namespaces."""
    status = os.fstat(descriptor)
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    pids: set[int] = set()
    with contextlib.suppress(OSError):
        for line in LOCKS.read_text().splitlines():
            parts = line.split()  # "1: FLOCK  ADVISORY  WRITE 4711 00:1b:1285 0 EOF"; one that waits has "->"
            if parts[1:2] == ["FLOCK"] and parts[5:6] == [wanted] and int(parts[4]) > 0:
                pids.add(int(parts[4]))
    return sorted(pids)


def _notes(descriptor: int) -> list[Note]:
    """Return the readable notes of a file, oldest first; any user may have written to it."""
    try:
        lines = os.pread(descriptor, 2 * NOTES_LIMIT_BYTES, 0).decode(errors="replace").splitlines()
    except OSError:
        return []
    return [entry for line in lines if (entry := _note(line)) is not None]


def _note(line: str) -> Note | None:
    try:
        data = json.loads(line)
        return {
            "pid": int(data["pid"]), "pid_space": int(data["pid_space"]), "user": plain(data["user"]),
            "purpose": plain(data["purpose"]), "since": float(data["since"]),
        }  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _pid_space() -> int:
    """Return the number that distinguishes the process ids of one container from another's."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _clock_time(since: float) -> str:
    """Return the local time of day of a moment, with its date if that is another day."""
    try:
        then = time.localtime(since)
    except (ValueError, OverflowError, OSError):
        return "an unknown time"
    today = time.localtime()[:3] == then[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)
