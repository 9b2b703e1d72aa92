import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from autotune import environment
from autotune.database import migrate
from autotune.database.engine import WRITE, _file_system, locate, open_engine, schema_version
from autotune.database.plan_rows import REVISIONS, VERSION_TABLE
from autotune.database.schema import Base
from autotune.database.store import Store
from autotune.errors import DatabaseError
from tests.database.records import begin

SECRET = "hunter2-secret"


def test_the_migrations_make_exactly_the_tables_of_the_models(tmp_path: Path) -> None:
    engine = open_engine(str(tmp_path / "a.db"))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []
        assert schema_version(connection) == REVISIONS[-1]
        found = {
            table: {check["name"] for check in inspect(connection).get_check_constraints(table)}
            for table in Base.metadata.tables
        }
    fresh = open_engine(str(tmp_path / "b.db"))
    with fresh.execution_options(**{WRITE: True}).begin() as connection:
        connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        Base.metadata.drop_all(connection)
        Base.metadata.create_all(connection)
        for table, checks in found.items():
            assert {check["name"] for check in inspect(connection).get_check_constraints(table)} == checks


def test_downgrade_and_upgrade_again(tmp_path: Path) -> None:
    engine = open_engine(str(tmp_path / "a.db"))
    with engine.execution_options(**{WRITE: True}).begin() as connection:
        migrate.downgrade(connection, "base")
        assert inspect(connection).get_table_names() == [VERSION_TABLE]
    with Store.open(str(tmp_path / "a.db")) as store:
        assert store.studies() == []
        begin(store)


def test_sqlite_runs_with_the_settings_that_results_need(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/a.db")
    with engine.connect() as connection:
        settings = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_a_write_takes_the_lock_at_once_and_a_read_does_not(tmp_path: Path) -> None:
    engine = open_engine(str(tmp_path / "a.db"))
    other = sqlite3.connect(tmp_path / "a.db", timeout=0, isolation_level=None)
    with engine.connect() as connection, connection.begin():
        connection.execute(text("SELECT 1"))
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    with (
        engine.execution_options(**{WRITE: True}).connect() as connection,
        connection.begin(),
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        other.execute("BEGIN IMMEDIATE")
    other.close()


def test_eight_processes_open_an_empty_database_at_once(tmp_path: Path) -> None:
    program = """
import sys
from autotune.database import migrate  # the imports are done before the start is given
from autotune.database.store import Store
from tests.database.records import begin
print("ready", flush=True)
sys.stdin.readline()
with Store.open(sys.argv[1]) as store:
    begin(store, sys.argv[2])
"""
    path = str(tmp_path / "new" / "a.db")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, path, f"study{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for number in range(8)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, answers
    with Store.open(path, create=False) as store:
        assert {study.name for study in store.studies()} == {f"study{number}" for number in range(8)}


def test_a_look_up_imports_no_alembic(tmp_path: Path) -> None:
    Store.open(str(tmp_path / "a.db")).close()
    program = """
import sys
from autotune.database.store import Store
with Store.open(sys.argv[1], create=False) as store:
    assert store.plans() == [] and store.studies() == []
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


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Store.open(str(path)).close()
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(DatabaseError, match="newer version"):
        Store.open(str(path))


def test_tables_of_another_program_in_the_way_leave_nothing_half_written(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("CREATE TABLE trial (id INTEGER)")
    connection.commit()
    with pytest.raises(DatabaseError, match="already exists"):
        Store.open(str(tmp_path / "a.db"))
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    connection.close()
    assert tables == [("trial",)]


def test_the_file_system_of_a_path_is_known() -> None:
    assert _file_system(Path("/proc/self/status")) == "proc"


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.database.engine._file_system", lambda _file: "nfs4")
    with pytest.raises(DatabaseError, match="network file system"):
        Store.open(str(tmp_path / "a.db"))
