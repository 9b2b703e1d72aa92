"""The coordinator of a study: one owner at a time, and a fencing number that keeps a former owner from writing.

Safety depends on the fencing number alone: it grows each time a lease is taken, and every transaction of a coordinator
checks it before it writes. Clocks decide only how soon a silent owner is replaced. They may jump, and those of two
hosts differ; so a heartbeat that looks too old, or that lies in the future, counts only after its owner has been
watched for a while by a monotonic clock and has not renewed (see :meth:`Held.silent`).
"""

import os
import secrets
import socket
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from autotune.database.engine import BUSY_TIMEOUT_S
from autotune.database.schema import LeaseTable, StudyTable
from autotune.errors import StudyHeldError, StudyTakenOverError

RENEW_S = 10.0
LIMIT_S = 2 * RENEW_S + BUSY_TIMEOUT_S + 10.0
"""An owner is silent after this time: it may miss one renewal, and wait for a busy database at the next."""
WATCH_S = 1.5 * RENEW_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process that may coordinate a study.

    ``place`` identifies the space of process numbers in which ``pid`` counts (the boot, and the container), ``started``
    is the start of the process in clock ticks since that boot: no jump of a clock changes it, and two processes with
    one number differ in it.
    """

    host: str
    place: str
    pid: int
    started: int
    token: str

    @classmethod
    def this_process(cls) -> "Owner":
        """Return an owner in this process; each call returns another owner."""
        pid = os.getpid()
        return cls(
            host=socket.gethostname(), place=_place(), pid=pid, started=_started(pid) or 0, token=secrets.token_hex(16)
        )

    @property
    def is_gone(self) -> bool:
        """Whether its process has certainly ended; of a process of another host or container this is never certain."""
        return self.place == _place() and _started(self.pid) != self.started


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to write as the coordinator of a study, until another process takes it over."""

    study: str
    token: str
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A lease with an owner: ``beats`` renewals, of which the last is ``age_s`` old by the store's clock."""

    owner: Owner
    fence: int
    beats: int
    age_s: float

    @property
    def silent(self) -> bool:
        """Whether its heartbeat is too old, or from the future: the owner is dead, or a clock has jumped."""
        return not 0 <= self.age_s <= LIMIT_S

    def same_beat(self, other: "Held | None") -> bool:
        """Return whether the owner has not renewed its lease between two looks."""
        return other is not None and (self.fence, self.beats) == (other.fence, other.beats)


def holder(session: Session, study_uid: str, now: str) -> Held | None:
    """Return the lease on a study, if a process holds it."""
    row = session.get(LeaseTable, study_uid)
    if row is None or row.token is None:
        return None
    owner = Owner(host=row.host, place=row.place, pid=row.pid, started=row.started, token=row.token)
    age = datetime.fromisoformat(now) - datetime.fromisoformat(row.heartbeat)
    return Held(owner=owner, fence=row.fence, beats=row.beats, age_s=age.total_seconds())


def take(session: Session, study_uid: str, owner: Owner, now: str, watched: Held | None = None) -> Lease:
    """Take the lease of a study, with the next fencing number.

    Another owner's lease is taken over if its process is gone, or if it is silent and was silent in ``watched`` too, an
    earlier look of :data:`WATCH_S` ago. Raises StudyHeldError otherwise.
    """
    study = session.scalars(select(StudyTable).where(StudyTable.uid == study_uid).with_for_update()).one()
    held = holder(session, study_uid, now)
    if held is not None and not held.owner.is_gone and not (held.silent and held.same_beat(watched)):
        raise _refusal(study, held)
    row = session.get(LeaseTable, study_uid)
    if row is None:
        row = LeaseTable(study=study_uid, fence=0)
        session.add(row)
    row.fence += 1
    row.token, row.host, row.place = owner.token, owner.host, owner.place
    row.pid, row.started = owner.pid, owner.started
    row.beats, row.taken, row.heartbeat = 0, now, now
    session.flush()
    return Lease(study=study_uid, token=owner.token, fence=row.fence)


def renew(session: Session, lease: Lease, now: str) -> None:
    """Record that the owner is alive; raises StudyTakenOverError if it is the owner no longer."""
    check(session, lease)
    session.execute(
        update(LeaseTable).where(LeaseTable.study == lease.study).values(heartbeat=now, beats=LeaseTable.beats + 1)
    )


def release(session: Session, lease: Lease) -> None:
    """Release a lease, unless another process has taken it over. The fencing number stays."""
    mine = (LeaseTable.study == lease.study, LeaseTable.fence == lease.fence, LeaseTable.token == lease.token)
    session.execute(update(LeaseTable).where(*mine).values(token=None))


def check(session: Session, lease: Lease) -> None:
    """Raise StudyTakenOverError unless the lease is still its owner's, and keep it so until the transaction ends."""
    row = session.scalars(select(LeaseTable).where(LeaseTable.study == lease.study).with_for_update()).first()
    if row is not None and (row.fence, row.token) == (lease.fence, lease.token):
        return
    by = "nobody: it was released" if row is None or row.token is None else f"process {row.pid} on {row.host}"
    raise StudyTakenOverError(
        "this process coordinates the study no longer, and has written nothing since it lost it",
        found=f"it held the study under number {lease.fence}, now {row.fence if row else 0} is held by {by}",
        expected="one coordinator a study; this one was silent for too long (stopped, or its host slept)",
        run="the same command once the other one has ended; it prints the result",
    )


def _refusal(study: StudyTable, held: Held) -> StudyHeldError:
    owner = held.owner
    age = f"{held.age_s:.0f} s ago" if held.age_s >= 0 else f"{-held.age_s:.0f} s in the future: a clock has jumped"
    return StudyHeldError(
        f"study {study.name} at batch {study.batch} is being coordinated by another process",
        found=f"process {owner.pid} on host {owner.host}, last heard of {age}",
        expected=f"one coordinator a study; a dead one is replaced, on its host at once, else after {LIMIT_S:.0f} s",
        run=f"wait for it, or stop it on {owner.host} (kill {owner.pid}) and run the same command, which continues",
    )


def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> int | None:
    """Return the start of a process in clock ticks since the boot; ``None`` if it has ended, reaped or not."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, started = after_name[0], after_name[19]
    return None if state in "ZX" else int(started)
