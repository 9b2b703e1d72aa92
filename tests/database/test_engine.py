import logging
import os
import sqlite3
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, inspect, make_url, text

from autotune import environment
from autotune.database import migrate
from autotune.database.engine import _connected, engine_at, for_writing, schema_version
from autotune.database.leases import Owner
from autotune.database.location import _file_system, locate
from autotune.database.plan_rows import REVISIONS, VERSION_TABLE
from autotune.database.schema import Base
from autotune.database.store import Store
from autotune.errors import DatabaseError
from autotune.programs.reliability.postgresql import Server
from tests.database.records import TOOLCHAIN, begin, configuration, plan
from tests.databases import TEMPLATE, Databases

SECRET = "hunter2-secret"


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def test_the_migrations_make_exactly_the_tables_of_the_models(databases: Databases, tmp_path: Path) -> None:
    engine = engine_at(locate(databases.url(tmp_path / "a.db", empty=True)))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []
        assert schema_version(connection) == REVISIONS[-1]
        found = {table: checks(connection, table) for table in Base.metadata.tables}
    with for_writing(engine).begin() as connection:
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
        assert {table: checks(connection, table) for table in Base.metadata.tables} == found
    engine.dispose()


def checks(connection: Connection, table: str) -> set[tuple[str | None, str]]:
    return {(check["name"], check["sqltext"]) for check in inspect(connection).get_check_constraints(table)}


def test_every_migration_goes_down_and_up_again(databases: Databases, tmp_path: Path) -> None:
    url = databases.url(tmp_path / "a.db", empty=True)
    engine = engine_at(locate(url))
    writer = for_writing(engine)
    for revision in (*reversed(REVISIONS[:-1]), "base"):
        with writer.begin() as connection:
            migrate.downgrade(connection, revision)
            assert schema_version(connection) == (None if revision == "base" else revision)
    with writer.begin() as connection:
        assert tables(connection) == {VERSION_TABLE}
        assert connection.execute(text(f"SELECT count(*) FROM {VERSION_TABLE}")).scalar() == 0
        if databases.kind == "postgresql":
            ours = "SELECT count(*) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = 'public'"
            assert connection.execute(text(ours)).scalar() == 2  # that table and its index
        for revision in REVISIONS:
            migrate.upgrade(connection, revision)
            assert schema_version(connection) == revision
    engine.dispose()
    with Store.open(url) as store:
        assert store.studies.list() == []
        begin(store)


def test_a_migration_that_is_cut_off_leaves_nothing(databases: Databases, tmp_path: Path) -> None:
    url = databases.url(tmp_path / "a.db", empty=True)
    engine = engine_at(locate(url))
    writer = for_writing(engine)
    with writer.begin() as connection:
        migrate.downgrade(connection, "base")
    with pytest.raises(RuntimeError, match="power"), writer.begin() as connection:
        migrate.upgrade(connection)
        raise RuntimeError("power")
    with engine.connect() as connection:
        assert tables(connection) == {VERSION_TABLE} and schema_version(connection) is None
    engine.dispose()
    Store.open(url).close()


def test_sqlite_runs_with_the_settings_that_results_need(tmp_path: Path) -> None:
    engine = engine_at(locate(f"sqlite:///{tmp_path}/a.db"))
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_a_write_takes_the_lock_at_once_and_a_read_does_not(tmp_path: Path) -> None:
    engine = engine_at(locate(str(tmp_path / "a.db")))
    other = sqlite3.connect(tmp_path / "a.db", timeout=0, isolation_level=None)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SELECT 1"))
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    with (
        for_writing(engine).connect() as connection,
        connection.begin(),
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("BEGIN IMMEDIATE")
    other.close()


def test_sixteen_processes_open_an_empty_database_at_once(databases: Databases, tmp_path: Path) -> None:
    program = """
import multiprocessing
import sys
from autotune.database import migrate  # the imports are done before the processes part
from autotune.database.store import Store
from tests.database.records import begin

def work(number):
    start.wait()
    with Store.open(url) as store:
        begin(store, f"study{number}")

url = sys.stdin.read()
fork = multiprocessing.get_context("fork")
start = fork.Barrier(16)
processes = [fork.Process(target=work, args=(number,)) for number in range(16)]
for process in processes:
    process.start()
for process in processes:
    process.join()
assert [process.exitcode for process in processes] == [0] * 16
"""
    url, root = databases.url(tmp_path / "new" / "a.db", empty=True), Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], input=url, capture_output=True, text=True, cwd=root, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with Store.open(url, create=False) as store:
        assert {study.name for study in store.studies.list()} == {f"study{number}" for number in range(16)}


def test_on_a_server_coordinators_write_side_by_side_and_all_else_in_turn(postgresql: Server) -> None:
    url = postgresql.create("side_by_side", TEMPLATE)
    impatient = make_url(url).update_query_dict({"options": "-clock_timeout=300ms"})
    with Store.open(url) as first, Store.open(impatient.render_as_string(hide_password=False)) as second:
        studies = [begin(store, seed=seed) for seed, store in enumerate((first, second))]
        held, other = (
            store.under(store.leases.take(study.uid, Owner.this_process()))
            for study, store in zip(studies, (first, second), strict=True)
        )
        with held.transactions.writing(own=True):
            assert other.trials.claim(studies[1].uid, configuration(), TOOLCHAIN.digest).number == 0
            for write in (lambda: begin(second, seed=2), lambda: other.plans.promote(plan())):
                with pytest.raises(DatabaseError, match="lock timeout"):
                    write()
        begin(second, seed=2)
        with held.transactions.writing(), pytest.raises(DatabaseError, match="lock timeout"):
            other.trials.claim(studies[1].uid, configuration(1), TOOLCHAIN.digest)
    postgresql.drop("side_by_side")


def test_a_look_up_imports_no_alembic(tmp_path: Path) -> None:
    Store.open(str(tmp_path / "a.db")).close()
    program = """
import sys
from autotune.database.store import Store
with Store.open(sys.argv[1], create=False) as store:
    assert store.plans.list() == [] and store.studies.list() == []
heavy = {"alembic", "sqlalchemy.dialects.postgresql", "torch", "optuna", "pydantic", "numpy", "scipy"}
heavy &= set(sys.modules)
sys.exit(str(heavy) if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.db")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_where_the_database_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOTUNE_DB", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert locate().shown == str(tmp_path / "autotune" / "autotune.db")
    assert locate().artifacts == tmp_path / "autotune" / "autotune-artifacts"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert environment.data_folder() == Path.home() / ".local" / "share" / "autotune"
    monkeypatch.setenv("AUTOTUNE_DB", f"{tmp_path}/other.sqlite")
    assert locate().shown == str(tmp_path / "other.sqlite")
    assert locate(f"sqlite:///{tmp_path}/third.db").artifacts == tmp_path / "third-artifacts"
    monkeypatch.chdir(tmp_path)
    assert locate("x/y.db").file == tmp_path / "x" / "y.db"
    assert locate("~/y.db").file == Path.home() / "y.db"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:1/tuning",
        f"postgres://me:{SECRET}@127.0.0.1:1/tuning",
        f"postgresql+psycopg://127.0.0.1:1/tuning?user=me&password={SECRET}",
    ],
)
def test_a_password_is_never_shown(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    place = locate(url)
    assert SECRET not in place.shown + str(place.artifacts) + repr(place.url)
    assert place.artifacts.parent == tmp_path / "autotune" and place.artifacts.name.startswith("tuning-")
    pytest.importorskip("psycopg")
    with pytest.raises(DatabaseError, match="cannot be used") as caught:
        Store.open(url)
    assert SECRET not in str(caught.value) + str(caught.value.__cause__)


# Passwords of many kinds; the first letters are there so that none is part of a message by chance.
passwords = st.text(st.characters(codec="utf-8"), max_size=12).map("hunter2".__add__)


def told(error: BaseException, caplog: pytest.LogCaptureFixture) -> str:
    """Everything that a user, a log or a report of a crash could come to see of an error."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(vars(error)) + caplog.text


def assert_hidden(password: str, text: str) -> None:
    for form in (password, quote(password, safe=""), quote_plus(password), repr(password)[1:-1], "hunter2"):
        assert form not in text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(passwords)
@example("hunter2@host/name?x#y")
@example("hunter2%41 '\\\"")
@example("hunter2\x00")
def test_no_password_is_ever_told(postgresql: Server, caplog: pytest.LogCaptureFixture, password: str) -> None:
    caplog.set_level(logging.DEBUG)
    encoded = quote(password, safe="")
    where = f"{postgresql.host}:{postgresql.port}"
    for url in (
        f"postgresql://autotune:{encoded}@127.0.0.1:1/tuning",
        f"postgresql://127.0.0.1:1/tuning?user=autotune&password={encoded}",
        f"postgresql://autotune:{encoded}@{where}/newest",
        f"postgresql://autotune:{encoded}@{where}/absent",
        f"postgresql://autotune:{password}@127.0.0.1:1/tuning",
        f"postgresql://127.0.0.1:1/tuning?user=autotune&password={password}",
    ):
        with pytest.raises(DatabaseError) as caught:
            place = locate(url)
            assert_hidden(password, repr(place) + str(place) + place.shown)
            Store.open(url)
        assert_hidden(password, told(caught.value, caplog))


def test_the_right_password_is_never_told(postgresql: Server, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    secret = (postgresql.password, quote(postgresql.password, safe=""))
    absent = postgresql.url("absent")
    with pytest.raises(DatabaseError, match="does not exist") as caught:
        Store.open(absent)
    assert not any(form in told(caught.value, caplog) for form in secret)
    assert not any(form in repr(postgresql) for form in secret)
    with Store.open(postgresql.create("told", TEMPLATE)) as store:
        assert not any(form in repr(vars(store)) + store.location for form in secret)
        for statement in ("SELECT nonsense", f"SELECT {secret[0]!r}::integer"):
            with pytest.raises(DatabaseError) as caught, store.transactions.writing() as session:
                session.execute(text(statement.replace(":", "\\:")))
            assert not any(form in told(caught.value, caplog) for form in secret)
    postgresql.drop("told")


@pytest.mark.parametrize(
    "url",
    [f"mysql://me:{SECRET}@host/db", "sqlite://", "sqlite:///:memory:", f"::{SECRET}://", f"postgresql://{SECRET}"],
)
def test_a_url_of_no_use_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(DatabaseError, match="expected: a path") as caught:
        locate(url)
    assert SECRET not in str(caught.value)


def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"my notes, and no database\n" * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        Store.open(str(path))
    assert path.read_bytes() == b"my notes, and no database\n" * 100
    assert os.listdir(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("path", ["file/a.db", "folder"])
def test_a_place_that_cannot_hold_a_database_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DatabaseError, match="cannot be opened"):
        Store.open(str(tmp_path / path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    for path in ("locked/a.db", "locked/below/a.db"):
        with pytest.raises(DatabaseError, match="that this user can"):
            Store.open(str(tmp_path / path))


def test_without_create_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="no such file"):
        Store.open(str(tmp_path / "below" / "a.db"), create=False)
    assert os.listdir(tmp_path) == []
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(DatabaseError, match="no tuning database"):
        Store.open(str(tmp_path / "empty.db"), create=False)


def test_a_newer_schema_is_refused_and_left_alone(databases: Databases, tmp_path: Path) -> None:
    url = databases.url(tmp_path / "a.db")
    with Store.open(url) as store:
        begin(store)
        with store.transactions.writing() as session:
            session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    for create in (True, False):
        with pytest.raises(DatabaseError, match="newer version"):
            Store.open(url, create=create)
    engine = _connected(locate(url))
    with engine.connect() as connection:
        assert schema_version(connection) == "9999"
        assert connection.execute(text("SELECT count(*) FROM study")).scalar() == 1
    engine.dispose()


def test_tables_of_another_program_in_the_way_leave_nothing_half_written(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("CREATE TABLE trial (id INTEGER)")
    connection.commit()
    with pytest.raises(DatabaseError, match="already exists"):
        Store.open(str(tmp_path / "a.db"))
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    assert tables == [("trial",)]


def test_tables_of_other_programs_are_left_alone(databases: Databases, tmp_path: Path) -> None:
    engine = _connected(locate(databases.url(tmp_path / "a.db", empty=True)))
    with for_writing(engine).begin() as connection:
        connection.execute(text("CREATE TABLE notes (id INTEGER)"))
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('of another program')"))
    Store.open(databases.url(tmp_path / "a.db")).close()
    with for_writing(engine).begin() as connection:
        migrate.downgrade(connection, "base")
        assert tables(connection) == {"notes", "alembic_version", VERSION_TABLE}
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "of another program"
    engine.dispose()


def test_what_a_reading_sees_does_not_change(databases: Databases, tmp_path: Path) -> None:
    url = databases.url(tmp_path / "a.db")
    count = text("SELECT count(*) FROM study")
    with Store.open(url) as reader, Store.open(url) as writer:
        with reader.transactions.reading() as session:
            assert session.execute(count).scalar() == 0
            begin(writer)
            assert session.execute(count).scalar() == 0
        with reader.transactions.reading() as session:
            assert session.execute(count).scalar() == 1


def test_the_file_system_of_a_path_is_known() -> None:
    assert _file_system(Path("/proc/self/status")) == "proc"


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    monkeypatch.setattr("autotune.database.location.MOUNTS", mounts)
    shared = tmp_path / "on the net"
    shared.mkdir()
    (tmp_path / "link").symlink_to(shared)
    point = str(shared).replace(" ", "\\040")
    for kind in ("nfs", "nfs4", "cifs", "fuse.sshfs", "lustre", "ceph"):
        mounts.write_text(f"/dev/root / ext4 rw 0 0\nhost:/x {point} {kind} rw 0 0\ntmpfs {point}/local tmpfs rw 0 0\n")
        for path in (shared / "a.db", shared / "below" / "a.db", tmp_path / "link" / "a.db"):
            with pytest.raises(DatabaseError, match=rf"network file system \({kind}\)"):
                Store.open(str(path))
            assert not path.exists()
    Store.open(str(shared / "local" / "a.db")).close()
    Store.open(str(tmp_path / "a.db")).close()
    mounts.unlink()  # a system without such a list
    Store.open(str(shared / "b.db")).close()
