"""Trial writes against plain inserts: eight processes on one database, by turns."""

import hashlib
import multiprocessing
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from typing import Any

from sqlalchemy import create_engine

from autotune.database.engine import BUSY_TIMEOUT_S
from autotune.database.leases import Owner
from autotune.database.location import locate
from autotune.database.store import Store
from autotune.programs.check_result import CheckResult, rounded
from autotune.programs.reliability.campaign import Campaign
from autotune.programs.reliability.places import own_database
from autotune.records.canonical import canonical
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.objective import Objective
from autotune.records.trial import Measurement, Trial
from autotune.records.workload import TensorSpec, Workload

__all__ = ["check"]

WRITERS = 8
LEAST = 0.5
PATIENCE_S = 300.0
DEVICE = Device(kind="cpu", name="reliability", uuid="reliability")
TOOLCHAIN = hashlib.sha256(b"toolchain").hexdigest()
SAMPLES = Measurement(samples_ms=((1.0, 1.1, 1.2),) * 7, protocol={"name": "trial"}, conditions={"threads": 2})
CONTENT = canonical(SAMPLES.as_dict())
Write = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of one writer; all processes read the same clock."""

    started_s: float
    ended_s: float
    errors: tuple[str, ...] = ()


def check(campaign: Campaign) -> list[CheckResult]:
    """Trial writes reach half of what plain inserts reach, with eight writers, and none fails."""
    return [_compare(campaign, kind) for kind in campaign.databases]


def _compare(campaign: Campaign, kind: str) -> CheckResult:
    writes, rounds = campaign.pick(100, 10), campaign.pick(9, 3)
    with own_database(campaign, kind, "writers") as url:
        Store.open(url).close()
        with _plain(url, create=True):
            writers = _together(url, writes, rounds)
    turns = [[writer[turn] for writer in writers] for turn in range(2 * rounds)]
    rates = [writes * WRITERS / (max(w.ended_s for w in turn) - min(w.started_s for w in turn)) for turn in turns]
    plain, trial = rates[0::2], rates[1::2]
    ratio = statistics.median(ours / theirs for ours, theirs in zip(trial, plain, strict=True))
    errors = [error for turn in turns for writer in turn for error in writer.errors]
    return CheckResult(
        check=f"trial writes with {WRITERS} writers, {kind}",
        figure=f"{ratio:.2f} of plain inserts ({statistics.median(trial):.0f} of {statistics.median(plain):.0f} "
        f"transactions/s), {len(errors)} errors",
        limit=f">= {LEAST}, 0 errors",
        passed=ratio >= LEAST and not errors,
        raw={
            "plain_per_s": [rounded(rate) for rate in plain],
            "trial_per_s": [rounded(rate) for rate in trial],
            "transactions": writes * WRITERS,
            "errors": errors[:20],
        },
    )


def _together(url: str, writes: int, rounds: int) -> list[list[Turn]]:
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(WRITERS), spawn.Queue()
    processes = [
        spawn.Process(target=_writer, args=(url, number, writes, rounds, barrier, answers)) for number in range(WRITERS)
    ]
    for process in processes:
        process.start()
    try:
        return [answers.get(timeout=PATIENCE_S) for _ in processes]
    finally:
        for process in processes:
            process.join(10.0)
            process.kill()


def _writer(url: str, number: int, writes: int, rounds: int, barrier: Barrier, answers: Any) -> None:
    with Store.open(url) as store, _plain(url) as plain, _trials(store, number) as trial:
        turns = []
        for turn in range(2 * rounds):
            barrier.wait(PATIENCE_S)
            turns.append(_turn(trial if turn % 2 else plain, range(turn * writes, (turn + 1) * writes), number))
        answers.put(turns)


def _turn(write: Write, numbers: Sequence[int], writer: int) -> Turn:
    errors = []
    started = time.monotonic()
    for number in numbers:
        try:
            write(number * WRITERS + writer)
        except Exception as error:  # counted: the promise is that there are none
            errors.append(f"{type(error).__name__}: {error}")
    return Turn(started_s=started, ended_s=time.monotonic(), errors=tuple(errors))


@contextmanager
def _trials(store: Store, number: int) -> Iterator[Write]:
    """Claim a trial or finish it, by turns, under a lease: each is one transaction."""
    spec = TensorSpec(name="x", shape=(1, 8), dtype="float32")
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    workload = Workload(
        name=f"writer{number}", batch=1, structure=digest, weights=digest, inputs=(spec,), outputs=(spec,)
    )
    study = store.studies.begin(workload.name, workload, DEVICE, Objective(), "any", digest, 0, {})
    held = store.under(store.leases.take(study.uid, Owner.this_process()))
    claimed: list[Trial] = []

    def write(number: int) -> None:
        if not claimed:
            configuration = Configuration.of("eager", {"level": number})
            claimed.append(held.trials.claim(study.uid, configuration, TOOLCHAIN))
        else:
            trial = replace(claimed.pop(), state="complete", latency_ms=1.25, signal_error=1e-3, build_s=2.0)
            held.trials.finish(trial, {"screening": SAMPLES})

    yield write


@contextmanager
def _plain(url: str, *, create: bool = False) -> Iterator[Write]:
    """Insert rows of a trial's samples by the driver alone, with the durability of the tuning database."""
    place = locate(url)
    table = "CREATE TABLE plain (number BIGINT PRIMARY KEY, content TEXT)"
    if place.file is not None:
        connection = sqlite3.connect(f"{place.file}.plain", timeout=BUSY_TIMEOUT_S, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if create:
            connection.execute(table)

        def write(number: int) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO plain VALUES (?, ?)", (number, CONTENT))
            connection.execute("COMMIT")

        try:
            yield write
        finally:
            connection.close()
        return
    engine = create_engine(place.url, isolation_level="AUTOCOMMIT", hide_parameters=True)
    try:
        with engine.connect() as outer:
            driver: Any = outer.connection.driver_connection
            if create:
                driver.execute(table)
            yield lambda number: driver.execute("INSERT INTO plain VALUES (%s, %s)", (number, CONTENT))
    finally:
        engine.dispose()
