"""One coordinator a study, in processes of their own and in this one."""

import contextlib
import os
import signal
import sqlite3
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from autotune.database import leases
from autotune.database.leases import Owner
from autotune.database.store import Store
from autotune.database.transactions import utc_now
from autotune.errors import DatabaseError, StudyHeldError, StudyInterruptedError, StudyTakenOverError
from autotune.programs.reliability import simulated
from autotune.programs.reliability.kills import start
from autotune.programs.reliability.simulated import Journal, Part
from autotune.study.lease import coordinating
from tests.database.records import begin, by_clock

ELSEWHERE = Owner(host="elsewhere", place="another boot", pid=4711, started=1, token="theirs")


@pytest.fixture
def store(tmp_path):
    with Store.open(str(tmp_path / "a.db")) as opened:
        yield opened


def take_part(store, study, lost=lambda: None, tell=lambda text: None, pause=lambda seconds: None):
    return coordinating(store, study.uid, lost=lost, tell=tell, pause=pause)


def late(store):
    """The same store by a clock that is an hour ahead."""
    return by_clock(store, lambda: utc_now() + timedelta(hours=1))


def test_a_lease_is_held_until_the_end_however_the_study_ends(store):
    study = begin(store)
    with take_part(store, study) as mine:
        assert store.leases.holder(study.uid).owner.pid == os.getpid()
        mine.studies.add_active_time(study.uid, 1.0)
        with pytest.raises(StudyHeldError), take_part(store, study):
            pass
    assert store.leases.holder(study.uid) is None
    with pytest.raises(StudyInterruptedError, match="stopped"), take_part(store, study):
        raise StudyInterruptedError("stopped")
    assert store.leases.holder(study.uid) is None
    with pytest.raises(ZeroDivisionError), take_part(store, study):
        _ = 1 / 0
    assert store.leases.holder(study.uid) is None
    with pytest.raises(StudyTakenOverError):
        mine.studies.add_active_time(study.uid, 1.0)


def test_a_lease_is_renewed_while_the_coordinator_waits_for_a_build(store, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    study = begin(store)
    with take_part(store, study):
        deadline = time.monotonic() + 20
        while store.leases.holder(study.uid).beats < 3:
            assert time.monotonic() < deadline


def test_a_silent_owner_elsewhere_is_watched_and_then_replaced(store):
    study = begin(store)
    theirs = store.leases.take(study.uid, ELSEWHERE)
    told, waited = [], []
    with take_part(late(store), study, tell=told.append, pause=waited.append) as mine:
        mine.studies.add_active_time(study.uid, 1.0)
    assert waited == [leases.WATCH_S] and "process 4711 on elsewhere" in told[0]
    with pytest.raises(StudyTakenOverError):
        store.leases.renew(theirs)


def test_an_owner_that_renews_while_it_is_watched_keeps_its_study(store):
    study = begin(store)
    theirs = store.leases.take(study.uid, ELSEWHERE)
    with pytest.raises(StudyHeldError), take_part(late(store), study, pause=lambda s: store.leases.renew(theirs)):
        pass
    store.leases.renew(theirs)


def test_a_coordinator_that_is_taken_over_is_stopped_and_says_so(store, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    study, stop = begin(store), threading.Event()
    with pytest.raises(StudyTakenOverError, match="held by process 4711 on elsewhere"):  # noqa: SIM117
        with take_part(store, study, lost=stop.set):
            # The keeper renews all the time: take the lease between a look and a renewal.
            deadline = time.monotonic() + 20
            while not stop.is_set() and time.monotonic() < deadline:
                ahead = late(store)
                try:
                    ahead.leases.take(study.uid, ELSEWHERE, ahead.leases.holder(study.uid))
                except StudyHeldError:
                    continue
                assert stop.wait(20)
            raise StudyInterruptedError("stopped, for whatever reason")
    assert store.leases.holder(study.uid).owner == ELSEWHERE, "what is another's is not given back"


def test_a_database_that_is_away_for_a_moment_ends_no_study(store, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_S", 0.01)
    study, renewals = begin(store), []
    renew = store.leases.renew

    def sometimes(lease):
        renewals.append(lease)
        if len(renewals) < 3:
            raise DatabaseError("the server is away")
        renew(lease)

    monkeypatch.setattr(store.leases, "renew", sometimes)
    with take_part(store, study):
        deadline = time.monotonic() + 20
        while store.leases.holder(study.uid).beats < 1:
            assert time.monotonic() < deadline
    assert len(renewals) >= 3


@pytest.fixture
def part(tmp_path):
    return Part(
        database=str(tmp_path / "simulated.db"), study="simulated", trials=400, journal=str(tmp_path / "journal"),
        site=str(simulated.install(tmp_path)),
    )  # fmt: skip


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.005)


def stop_between_transactions(pid, database):
    """Stop a process while it holds no lock of its database, or nobody could take over."""
    deadline = time.monotonic() + 60
    with contextlib.closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
        while True:
            os.kill(pid, signal.SIGSTOP)
            while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                assert time.monotonic() < deadline
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
                return
            except sqlite3.OperationalError:
                assert time.monotonic() < deadline
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.01)  # into another transaction, or between two


def test_a_coordinator_that_wakes_up_after_it_was_replaced_writes_nothing(part):
    """A coordinator that slept, as on a laptop, or was stopped: it continues in the middle of its work."""
    journal = Journal(Path(part.journal))
    process = start(part)
    try:
        wait_for(lambda: len(journal.lines("finished")) >= 3, process)
        with Store.open(part.database) as store:
            (study,) = store.studies.list("simulated")
            stop_between_transactions(process.pid, part.database)
            ahead = late(store)
            lease = ahead.leases.take(study.uid, Owner.this_process(), ahead.leases.holder(study.uid))
            mine = store.under(lease)
            before = (store.trials.of_study(study.uid), store.studies.get(study.uid))
            os.kill(process.pid, signal.SIGCONT)
            process.join(60)
            assert process.exitcode == 1
            assert (store.trials.of_study(study.uid), store.studies.get(study.uid)) == before
            assert store.leases.holder(study.uid).fence == lease.fence
            mine.studies.add_active_time(study.uid, 1.0)
    finally:
        process.kill()
    (error,) = journal.lines("error")
    assert error["kind"] == "StudyTakenOverError" and f"process {os.getpid()} on" in error["text"]


def test_a_second_coordinator_process_is_refused_and_takes_over_at_once_after_a_kill(part):
    journal = Journal(Path(part.journal))
    first = start(part)
    try:
        wait_for(lambda: len(journal.lines("finished")) >= 2, first)
        second = start(part)
        second.join(60)
        assert second.exitcode == 2 and first.is_alive()
        (refused,) = journal.lines("error")
        assert refused["kind"] == "StudyHeldError" and f"process {first.pid} on host" in refused["text"]
        first.kill()
        first.join(60)
        done = len(journal.lines("finished"))
        second = start(part)
        wait_for(lambda: len(journal.lines("finished")) >= done + 2, second)
        second.terminate()
        second.join(60)
        assert second.exitcode == 1
    finally:
        first.kill()
        second.kill()
    with Store.open(part.database) as store:
        (study,) = store.studies.list("simulated")
        assert store.leases.holder(study.uid) is None, "given back on interruption"
        fence = store.leases.take(study.uid, Owner.this_process()).fence
    assert fence == 3
