"""What a coordinator writes in one statement, and what happens where that has written nothing."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import create_engine, text

from autotune.database import rows, trials
from autotune.database.engine import for_writing
from autotune.database.leases import Owner
from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.database.trials import MOST_ATTEMPTS
from autotune.errors import DatabaseError, StudyTakenOverError
from autotune.programs.reliability.postgresql import Server
from autotune.records.canonical import canonical, digest
from autotune.records.trial import Measurement, Trial
from tests.database.records import SAMPLES, TOOLCHAIN, begin, complete, configuration, failed
from tests.databases import TEMPLATE, Databases

FINALS = Measurement(samples_ms=((2.0, 2.1),), conditions={"text": 'é "\\ \x00', "big": 2**70, "small": 1e-300})
OVERTAKE = text("UPDATE lease SET fence = fence + 1, token = 'theirs' WHERE study = :study")


@pytest.fixture
def store(tmp_path: Path, databases: Databases) -> Iterator[Store]:
    with Store.open(databases.url(tmp_path / "a.db")) as opened:
        yield opened


def lead(store: Store, **changes: object) -> tuple[Store, StudyRow]:
    study = begin(store, **changes)
    return store.under(store.leases.take(study.uid, Owner.this_process())), study


def claim(store: Store, study: StudyRow, level: int = 0, toolchain: str = TOOLCHAIN.digest) -> Trial:
    return store.trials.claim(study.uid, configuration(level), toolchain)


def test_it_writes_what_the_long_way_writes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, held = begin(store, seed=1), lead(store)
    claimed = [claim(store, alone, level) for level in range(3)]
    ends = [complete(claimed[0]), failed(claimed[1]), replace(complete(claimed[2]), artifact="a" * 64, score=3.0)]
    for end in ends:
        store.trials.finish(end, {"screening": SAMPLES})
    monkeypatch.setattr(trials, "claim", None)
    monkeypatch.setattr(trials, "finish", None)
    mine = [claim(*held, level) for level in range(3)]
    assert [trial for trial in store.trials.of_study(held[1].uid) if trial.state == "running"] == mine
    for end, trial in zip(ends, mine, strict=True):
        held[0].trials.finish(replace(end, uid=trial.uid), {"screening": SAMPLES})
    assert store.trials.of_study(held[1].uid) == [
        replace(end, uid=trial.uid) for end, trial in zip(ends, mine, strict=True)
    ]
    columns = "number, attempt, handed_back, backend, configuration, configuration_digest, structure, weights, "
    columns += "device_class, toolchain, state, latency_ms, score, signal_error, build_s, artifact, failure, reused, "
    query = text(f"SELECT {columns} tried_here FROM trial WHERE study = :study ORDER BY number")
    with store.transactions.reading() as session:
        assert (
            session.execute(query, {"study": alone.uid}).all() == session.execute(query, {"study": held[1].uid}).all()
        )
    assert [store.trials.measurements(trial.uid) for trial in mine] == [[SAMPLES]] * 3


def test_a_trial_may_end_with_no_measurement_or_with_several(store: Store) -> None:
    held, study = lead(store)
    first, second = (complete(claim(held, study, level)) for level in range(2))
    held.trials.finish(first)
    held.trials.finish(second, {"screening": SAMPLES, "finals": FINALS})
    assert store.trials.of_study(study.uid) == [first, second] and store.trials.measurements(first.uid) == []
    assert [store.trials.measurements(second.uid, role) for role in ("screening", "finals")] == [[SAMPLES], [FINALS]]
    held.trials.finish(second, {"screening": SAMPLES})
    held.trials.finish(first, {"alone": FINALS})
    assert store.trials.measurements(first.uid) == [FINALS] and len(store.trials.measurements(second.uid)) == 2


@pytest.mark.parametrize("measurement", [SAMPLES, FINALS])
def test_a_measurement_is_named_by_the_digest_of_all_it_is(measurement: Measurement) -> None:
    uid, record = rows.measurement_content("né", "finals", measurement)
    assert uid == digest(["né", "finals", measurement.as_dict()])
    assert record == canonical(measurement.as_dict())


def test_what_is_refused_is_refused_in_the_same_words(store: Store) -> None:
    messages = []
    for seed, under_lease in enumerate((False, True)):
        held, study = lead(store, seed=seed) if under_lease else (store, begin(store, seed=seed))
        done = complete(claim(held, study))
        held.trials.finish(done, {"screening": SAMPLES})
        cut_off = claim(held, study, 1)
        assert (claim(held, study, 1).number, claim(held, study, 1).attempt) == (cut_off.number, 3)
        newer = claim(held, study, 1, "0" * 64)
        assert (newer.uid, newer.attempt, newer.toolchain) == (cut_off.uid, 4, "0" * 64)
        before = store.trials.of_study(study.uid), store.trials.measurements(cut_off.uid)
        refused: list[Callable[[], object]] = [
            lambda: claim(held, study),  # noqa: B023  # called in this turn of the loop
            lambda: held.trials.claim("absent", configuration(), TOOLCHAIN.digest),  # noqa: B023
            lambda: held.trials.finish(complete(cut_off), {"screening": SAMPLES}),  # noqa: B023
            lambda: held.trials.finish(newer),  # noqa: B023
            lambda: held.trials.finish(replace(complete(newer), number=7)),  # noqa: B023
            lambda: held.trials.finish(replace(complete(newer), configuration=configuration(9))),  # noqa: B023
            lambda: held.trials.finish(complete(done, latency_ms=9.0), {"screening": SAMPLES}),  # noqa: B023
            lambda: held.trials.finish(replace(done, uid="absent")),  # noqa: B023
            lambda: held.trials.finish(replace(complete(newer), latency_ms=float("inf"), state="pruned")),  # noqa: B023
        ]
        told = []
        for call in refused:
            with pytest.raises(ValueError) as error:
                call()
            told.append(str(error.value).replace(cut_off.uid, "UID"))
        messages.append(told)
        assert (store.trials.of_study(study.uid), store.trials.measurements(cut_off.uid)) == before
    assert messages[0] == messages[1] and len(messages[0]) == len(refused)


def test_a_lease_lost_between_claim_and_finish(store: Store) -> None:
    held, study = lead(store)
    claimed = claim(held, study)
    with store.transactions.writing() as session:
        session.execute(OVERTAKE, {"study": study.uid})
    for write in (lambda: held.trials.finish(complete(claimed), {"screening": SAMPLES}), lambda: claim(held, study, 1)):
        with pytest.raises(StudyTakenOverError):
            write()
    assert store.trials.of_study(study.uid) == [claimed] and store.trials.measurements(claimed.uid) == []


@pytest.mark.parametrize("what", ["claim", "finish"])
@pytest.mark.parametrize("locked", ["database", "lease"])
def test_a_lease_lost_while_a_statement_waits(store: Store, databases: Databases, what: str, locked: str) -> None:
    """The statement has begun and has seen its lease as its own; it must look again once it goes on."""
    held, study = lead(store)
    claimed = claim(held, study)
    server = databases.kind == "postgresql"
    alone = store.transactions.engine.execution_options(**({"isolation_level": "READ COMMITTED"} if server else {}))
    writer = for_writing(store.transactions.engine) if locked == "database" else alone
    with ThreadPoolExecutor(1) as threads:
        with writer.begin() as connection:
            connection.execute(OVERTAKE, {"study": study.uid})
            if what == "claim":
                late = threads.submit(claim, held, study, 1)
            else:
                late = threads.submit(lambda: held.trials.finish(complete(claimed), {"screening": SAMPLES}))  # type: ignore[arg-type]
            while server and not connection.execute(text("SELECT 1 FROM pg_locks WHERE NOT granted")).first():
                time.sleep(0.01)
            assert not late.done()
        with pytest.raises(StudyTakenOverError):
            late.result()
    assert store.trials.of_study(study.uid) == [claimed] and store.trials.measurements(claimed.uid) == []


def test_two_that_finish_one_attempt_finish_it_once(store: Store) -> None:
    held, study = lead(store)
    for level in range(5):
        claimed, start = claim(held, study, level), Barrier(2)

        def finish(latency_ms: float, claimed: Trial = claimed, start: Barrier = start) -> str:
            start.wait()
            try:
                held.trials.finish(complete(claimed, latency_ms), {"screening": SAMPLES})
            except ValueError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(2) as threads:
            told = sorted(threads.map(finish, (1.0, 2.0)))
        assert told == ["", f"trial {level} is finished as complete and keeps its result"]
        assert store.trials.measurements(claimed.uid) == [SAMPLES]


def test_threads_that_claim_one_configuration_share_one_row(store: Store) -> None:
    held, study = lead(store)
    for level in range(5):
        start = Barrier(MOST_ATTEMPTS)

        def one(_: int, level: int = level, start: Barrier = start) -> Trial:
            start.wait()
            return claim(held, study, level)

        with ThreadPoolExecutor(MOST_ATTEMPTS) as threads:
            claimed = list(threads.map(one, range(MOST_ATTEMPTS)))
        assert {(trial.uid, trial.number) for trial in claimed} == {(claimed[0].uid, level)}
        assert sorted(trial.attempt for trial in claimed) == list(range(1, MOST_ATTEMPTS + 1))
    assert len(store.trials.of_study(study.uid)) == 5


def test_threads_that_claim_several_number_them_without_a_gap(store: Store) -> None:
    held, study = lead(store)
    with ThreadPoolExecutor(4) as threads:
        claimed = list(threads.map(lambda level: claim(held, study, level), range(40)))
    assert sorted(trial.number for trial in claimed) == list(range(40))
    assert store.trials.of_study(study.uid) == sorted(claimed, key=lambda trial: trial.number)


def test_a_lease_of_one_study_writes_about_another_as_it_did(store: Store) -> None:
    (held, _), other = lead(store), begin(store, seed=1)
    done = complete(claim(held, other))
    held.trials.finish(done)
    assert store.trials.of_study(other.uid) == [done]


def test_an_old_sqlite_goes_the_long_way(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.database.own_trials.begin", None)
    monkeypatch.setattr("autotune.database.own_trials.end", None)
    monkeypatch.setattr(store.transactions.engine.dialect, "insert_returning", False)
    held, study = lead(store)
    done = complete(claim(held, study))
    held.trials.finish(done, {"screening": SAMPLES})
    assert store.trials.of_study(study.uid) == [done]


def test_an_error_of_the_database_is_told_without_what_was_written(store: Store) -> None:
    held, study = lead(store)
    claimed = claim(held, study)
    with store.transactions.writing() as session:
        session.execute(text("ALTER TABLE measurement RENAME TO mislaid"))
    with pytest.raises(DatabaseError, match=r"no such table|does not exist") as error:
        held.trials.finish(complete(claimed), {"screening": SAMPLES})
    assert "samples_ms" not in str(error.value)
    assert store.trials.of_study(study.uid) == [claimed], "the trial and its samples are one transaction"


@pytest.mark.parametrize("pause_s", [0.0, 3600.0])
def test_a_server_that_hung_up_is_asked_again_and_one_that_did_not_is_kept(
    postgresql: Server, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    monkeypatch.setattr("autotune.database.engine.PAUSE_S", pause_s)
    hang_up = text("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = 'hung_up'")
    other = create_engine(postgresql.url("postgres"), isolation_level="AUTOCOMMIT")
    with Store.open(postgresql.create("hung_up", TEMPLATE)) as store, other.connect() as connection:
        study = begin(store)
        held = store.under(store.leases.take(study.uid, Owner.this_process()))
        uses = (
            lambda: held.trials.claim(study.uid, configuration(), TOOLCHAIN.digest),
            lambda: held.trials.finish(complete(store.trials.of_study(study.uid)[0])),
            lambda: store.plans.find(study.identity.plan),
            store.studies.list,
        )
        for use in uses:
            assert connection.execute(hang_up).all(), "no connection was in the pool"
            use()
        pid = "SELECT pg_backend_pid()"
        with store.transactions.reading() as session:
            kept = session.scalar(text(pid))
        with store.transactions.writing() as session:
            assert session.scalar(text(pid)) == kept
    other.dispose()
    postgresql.drop("hung_up")
