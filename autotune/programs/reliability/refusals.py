"""Databases that cannot be written: the error is clear, and nothing is damaged."""

import contextlib
import json
import logging
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from sqlalchemy import make_url

from autotune.database.store import Store
from autotune.errors import DatabaseError, RequestError
from autotune.programs.check_result import CheckResult
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.places import own_database
from autotune.programs.reliability.postgresql import serving
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.records.workload import TensorSpec, Workload
from autotune.scratch import ScratchFolder

log = logging.getLogger(__name__)

__all__ = ["check", "write_until_refused"]

ROOM_BYTES = 2 << 20
SERVER_BYTES, LEFT_BYTES = 32 << 20, 1 << 18
"""An empty database of PostgreSQL takes about 8 MiB, and what is left for trials is soon full."""
NOBODY = 65_534
MOST_TRIALS = 100_000
DIGEST = "0" * 64


class Restrictions(TypedDict, total=False):
    """Restrictions of the process that writes: a limit on the size of its files, or an account without privileges."""

    limit_bytes: int
    unprivileged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The error that refused a process that wrote trials, and the number of trials whose write had succeeded before."""

    error: str
    message: str
    kept: int

    @property
    def is_clear(self) -> bool:
        """Whether the command line shows this error without a traceback, with the reason and a next step."""
        return self.error == DatabaseError.__name__ and "found: " in self.message and "expected: " in self.message


def check(campaign: Campaign) -> list[CheckResult]:
    """Each reason why a database cannot be written ends in one clear error and leaves it whole."""
    outcomes = []
    for kind in campaign.databases:
        if kind == "sqlite":
            outcomes += [_sqlite(name, case) for name, case in CASES.items()]
        else:
            outcomes += [_read_only_server(campaign, kind), *_full_server(kind)]
    return outcomes


@contextmanager
def _full_disk(folder: Path) -> Iterator[Restrictions]:
    """Mount a file system of a few MiB if root may do that, else limit the size of files."""
    with _mounted(folder, ROOM_BYTES) as reason:
        yield {"limit_bytes": ROOM_BYTES} if reason else {}


@contextmanager
def _mounted(folder: Path, size_bytes: int) -> Iterator[str]:
    """Mount a small file system for a while if that is possible; yields the reason if it is not, else nothing."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        yield "only root may mount a small file system"
        return
    mounting = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounting.returncode:
        yield mounting.stderr.strip() or f"mount ended with code {mounting.returncode}"
        return
    try:
        yield ""
    finally:
        subprocess.run(["umount", str(folder)], capture_output=True, check=True)


@contextmanager
def _size_limit(folder: Path) -> Iterator[Restrictions]:
    yield {"limit_bytes": ROOM_BYTES}


def _modes(file: int, folder: int) -> Callable[[Path], "contextlib.AbstractContextManager[Restrictions]"]:
    @contextmanager
    def case(place: Path) -> Iterator[Restrictions]:
        Store.open(str(place / "a.db")).close()
        (place / "a.db").chmod(file)
        place.chmod(folder)
        try:
            yield {"unprivileged": True}
        finally:
            place.chmod(0o700)
            (place / "a.db").chmod(0o600)

    return case


CASES: Mapping[str, Callable[[Path], "contextlib.AbstractContextManager[Restrictions]"]] = {
    "disk full": _full_disk,
    "file size limit": _size_limit,
    "read-only file": _modes(0o444, 0o777),
    "read-only file and folder": _modes(0o444, 0o555),
    "no permission on the file": _modes(0o000, 0o777),
    "no permission on the folder": _modes(0o600, 0o000),
}


def _sqlite(name: str, case: Callable[[Path], "contextlib.AbstractContextManager[Restrictions]"]) -> CheckResult:
    with ScratchFolder("refusals") as above:
        above.chmod(0o755)  # another user must reach what is below
        (above / "place").mkdir()
        url = str(above / "place" / "a.db")
        with case(above / "place") as restrictions:
            refusal = _refused(url, **restrictions)
            if "unprivileged" not in restrictions:
                intact, there = _examined(url)
        if "unprivileged" in restrictions:
            intact, there = _examined(url)
    return _outcome(f"{name}, sqlite", refusal, there, intact)


def _read_only_server(campaign: Campaign, kind: str) -> CheckResult:
    with own_database(campaign, kind, "refusals") as url:
        Store.open(url).close()
        options = make_url(url).query["options"]
        read_only = make_url(url).update_query_dict({"options": f"{options} -cdefault_transaction_read_only=on"})
        refusal = _refused(read_only.render_as_string(hide_password=False))
        with Store.open(url, create=False) as store:
            there = sum(len(store.trials.of_study(study.uid)) for study in store.studies.list())
    return _outcome(f"read-only, {kind}", refusal, there, "ok")


def _full_server(kind: str) -> list[CheckResult]:
    """Fill the file system of the tables of a server that is started here, whatever the campaign's server is."""
    with contextlib.ExitStack() as stack:
        above = stack.enter_context(ScratchFolder("refusals"))
        above.chmod(0o755)
        (above / "place").mkdir()
        try:
            if reason := stack.enter_context(_mounted(above / "place", SERVER_BYTES)):
                raise RequestError("No disk of a server can be filled", found=reason)
            server = stack.enter_context(serving())
        except RequestError as error:
            log.warning("disk full on %s was not tried: %s", kind, error.found)
            return []
        # The server's log of changes lies elsewhere: if its disk is full too, PostgreSQL ends until there is room.
        (above / "place" / "tables").mkdir()
        url = server.create_in(above / "place" / "tables", "full")
        Store.open(url).close()
        filler = above / "place" / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(filler.parent).free - LEFT_BYTES))
        refusal = _refused(url)
        filler.unlink()
        with Store.open(url, create=False) as store:
            (study,) = store.studies.list()
            there = len(store.trials.of_study(study.uid))
            store.trials.claim(study.uid, Configuration.of("eager", {"level": -1}), DIGEST)
            intact = "ok" if len(store.trials.of_study(study.uid)) == there + 1 else "a trial after it is not there"
    return [_outcome(f"disk full, {kind}", refusal, there, intact)]


def _outcome(name: str, refusal: Refusal, there: int, intact: str) -> CheckResult:
    return CheckResult(
        check=name,
        figure=f"{refusal.error}; integrity check: {intact}; {there} of {refusal.kept} trials there",
        limit="one clear error, database intact, no trial lost",
        passed=refusal.is_clear and intact == "ok" and there == refusal.kept,
        raw={"message": refusal.message},
    )


def _examined(file: str) -> tuple[str, int]:
    """Return the result of SQLite's integrity check, and the number of trials."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        intact = "; ".join(row[0] for row in connection.execute("PRAGMA integrity_check"))
        return intact, connection.execute("SELECT count(*) FROM trial").fetchone()[0]


def _refused(url: str, *, limit_bytes: int = 0, unprivileged: bool = False) -> Refusal:
    program = "from autotune.programs.reliability import refusals; refusals.write_until_refused()"
    request = json.dumps([url, limit_bytes, unprivileged])
    ran = subprocess.run([sys.executable, "-c", program], input=request, capture_output=True, text=True, check=False)
    if ran.returncode:
        return Refusal(error=f"exit code {ran.returncode}", message=ran.stderr[-2000:], kept=0)
    return Refusal(**json.loads(ran.stdout))


def write_until_refused() -> None:
    """Write trials until one is refused: the request comes from standard input, the Refusal goes to standard output."""
    url, limit_bytes, unprivileged = json.load(sys.stdin)
    if limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    if unprivileged and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    kept = 0
    try:
        with Store.open(url) as store:
            study = store.studies.begin("study", _WORKLOAD, _DEVICE, Objective(), "any", DIGEST, 0, {})
            for number in range(MOST_TRIALS):
                store.trials.claim(study.uid, Configuration.of("eager", {"level": number}), DIGEST)
                kept += 1
        refusal = Refusal(error="no error", message="", kept=kept)
    except Exception as error:  # the border of the process, which returns the kind of the error
        refusal = Refusal(error=type(error).__name__, message=str(error), kept=kept)
    sys.stdout.write(json.dumps({"error": refusal.error, "message": refusal.message, "kept": refusal.kept}))


_DEVICE = Device(kind="cpu", name="reliability", uuid="reliability")
_SPEC = TensorSpec(name="x", shape=(1, 8), dtype="float32")
_WORKLOAD = Workload(name="study", batch=1, structure=DIGEST, weights=DIGEST, inputs=(_SPEC,), outputs=(_SPEC,))
