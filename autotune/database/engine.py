"""An engine for the tuning database: Engine of SQLAlchemy, with the locks and the schema that autotune needs.

SQLite runs with a write-ahead log, synchronous FULL and ``BEGIN IMMEDIATE`` for writes; on PostgreSQL a write takes an
advisory lock. On both there is therefore one writer at a time, and everything that a transaction has read stays true in
it. Only the writes of coordinators about their own studies run side by side on PostgreSQL: each holds the row of its
lease, and together they share the lock, so that many wait for the disk at once.

A SQLite file that this process cannot write is only read, see :mod:`autotune.database.sqlite_file`; so is a PostgreSQL
database by a role that may only select.
"""

import hashlib
import select
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, inspect, text
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from autotune.database.location import Location, check_file, database_errors
from autotune.database.plan_rows import READABLE, REVISIONS, VERSION_TABLE
from autotune.database.sqlite_file import ReadOnlyFile
from autotune.errors import DatabaseError

BUSY_TIMEOUT_S = 30.0
PAUSE_S = 1.0
"""A pooled connection to a server that has been idle for this long is tested before it is used."""
_RETURNED = "autotune_returned"
WRITE = "autotune_write"
"""The execution option of a write: true, or :data:`OWN`."""
OWN = "own"
"""A write about a study whose lease the transaction locks first."""
ADVISORY_LOCK = int.from_bytes(hashlib.sha256(b"autotune").digest()[:8], "big", signed=True)


def engine_at(location: Location, *, create: bool = True) -> Engine:
    """Return an engine with the newest schema; Alembic is imported only if the schema is absent or old.

    On PostgreSQL each of its statements is a transaction; for several in one see for_reading and for_writing.
    Raises DatabaseError if the database is absent (and ``create`` is false), newer than this version, or unusable;
    also if it is read-only and older than :data:`~autotune.database.plan_rows.READABLE`.
    """
    if location.file is not None:
        check_file(location.file, create=create)
    with database_errors(location):
        engine = _connected(location)
        try:
            with for_reading(engine, once=True).connect() as connection:
                version = schema_version(connection)
            if version != REVISIONS[-1]:
                _bring_up_to_date(engine, location, create=create)
        except BaseException:
            engine.dispose()
            raise
    return engine


def _connected(location: Location) -> Engine:
    if location.file is None:
        try:
            engine = create_engine(
                location.url,
                hide_parameters=True,
                isolation_level="AUTOCOMMIT",  # a change costs more than a statement: see for_reading, for_writing
                use_native_hstore=False,  # no table uses that type, and the query for it delays a first look-up
                connect_args={"connect_timeout": 10},
            )
        except ModuleNotFoundError as error:
            raise DatabaseError(
                f"The tuning database {location.shown} cannot be opened",
                found=f"the package {error.name} is not installed",
                run="pip install 'psycopg[binary]>=3.2'",
            ) from None
        event.listen(engine, "begin", _begin_postgresql)
        event.listen(engine, "checkin", _note_return)
        event.listen(engine, "checkout", partial(_ping_if_in_doubt, engine.dialect))
        return engine
    if location.read_only:
        return _reading_only(location.file)
    engine = create_engine(location.url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _reading_only(file: Path) -> Engine:
    source = ReadOnlyFile(file)
    path, _, query = source.uri.partition("?")
    url = URL.create("sqlite", database=path, query={"uri": "true", **dict(parse_qsl(query))})
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_read_only)
    event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "engine_disposed", lambda _: source.close())
    return engine


def _prepare_read_only(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA query_only = ON")  # a copy in a temporary folder could be written


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transaction of its own: _begin_sqlite does
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:  # several processes may switch at once, and for this SQLite does not wait
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(WRITE) else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    if kind := connection.get_execution_options().get(WRITE):
        lock = "pg_advisory_xact_lock_shared" if kind == OWN else "pg_advisory_xact_lock"
        connection.exec_driver_sql(f"SELECT {lock}({ADVISORY_LOCK})")


def _note_return(_driver: object, record: ConnectionPoolEntry) -> None:
    record.info[_RETURNED] = time.monotonic()


def _ping_if_in_doubt(dialect: Dialect, driver: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Test a pooled connection after a pause, or if the server has sent bytes: it may have closed the connection.

    If the test fails, the pool connects again.
    """
    paused_s = time.monotonic() - record.info.get(_RETURNED, time.monotonic())
    # A test before each use would cost a round trip, and a write is only one.
    sent = select.poll()
    try:
        sent.register(driver.fileno(), select.POLLIN)
        if paused_s > PAUSE_S or sent.poll(0):
            dialect.do_ping(driver)
    except dialect.loaded_dbapi.OperationalError as error:
        raise DisconnectionError("the server has closed the connection") from error


def for_reading(engine: Engine, *, once: bool = False) -> Engine:
    """Return an engine whose transactions see one state throughout, as those of SQLite do by themselves.

    ``once`` is for a single query, which needs no transaction: on PostgreSQL that saves half of the round trips.
    """
    if engine.dialect.name == "sqlite":
        return engine
    return engine if once else engine.execution_options(isolation_level="REPEATABLE READ")


def for_writing(engine: Engine, *, own: bool = False) -> Engine:
    """Return an engine whose transactions write; ``own`` as in :data:`OWN`."""
    options: dict[str, object] = {WRITE: OWN if own else True}
    if engine.dialect.name != "sqlite":
        options["isolation_level"] = "READ COMMITTED"
    return engine.execution_options(**options)


def has_returning(engine: Engine) -> bool:
    """Return whether a statement that writes can return the rows that it wrote: SQLite can since 3.35."""
    return engine.dialect.insert_returning


@contextmanager
def driver_writing(engine: Engine) -> Iterator[Callable[[str, Mapping[str, object]], DBAPICursor]]:
    """Yield the driver's ``execute`` for a write: on PostgreSQL each statement is a transaction with its own locks.

    On SQLite the transaction begins with the first statement, so that no other process waits while its values are
    computed. An error of the database is raised as the error of SQLAlchemy for it.
    """
    dialect = engine.dialect
    refusals = dialect.loaded_dbapi.Error
    with closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        begun = False

        def execute(statement: str, values: Mapping[str, object]) -> DBAPICursor:
            nonlocal begun
            if not begun and dialect.name == "sqlite":
                cursor.execute("BEGIN IMMEDIATE")
                begun = True
            cursor.execute(statement, values)
            return cursor

        try:
            yield execute
            if begun:
                connection.commit()
        except refusals as error:
            raise DBAPIError.instance("", None, error, refusals, hide_parameters=True, dialect=dialect) from error


def schema_version(connection: Connection) -> str | None:
    """Return the revision of the schema, by one plain SELECT; ``None`` if there is no schema."""
    query = text(f"SELECT version_num FROM {VERSION_TABLE}")
    try:
        return connection.execute(query).scalar()
    except DBAPIError:
        connection.rollback()
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        # Either it cannot be read, or another process has created it since: a second query decides.
        return connection.execute(query).scalar()


def _bring_up_to_date(engine: Engine, location: Location, *, create: bool) -> None:
    """Apply the missing revisions in one write transaction; of several processes the first does it, the others wait."""
    # A file that is only read accepts no write transaction; the error below gives the reason.
    with (engine if location.read_only else for_writing(engine)).begin() as connection:
        version = schema_version(connection) if inspect(connection).has_table(VERSION_TABLE) else None
        if version == REVISIONS[-1]:
            return
        if version is not None and version not in REVISIONS:
            raise DatabaseError(
                f"The tuning database {location.shown} was written by a newer version of autotune",
                found=f"schema {version}",
                expected=f"schema {REVISIONS[-1]} or older",
                run="the same command with that version of autotune, or a newer one",
            )
        if version is None and not create:
            raise DatabaseError(f"{location.shown} is no tuning database", found="a database without its tables")
        if only_reads(connection):
            if version in READABLE:
                return
            raise DatabaseError(
                f"The tuning database {location.shown} is read-only and has to be brought up to date before it is read",
                found=f"schema {version or 'none'}",
                expected=f"schema {REVISIONS[-1]}",
                run="autotune db upgrade --db PATH, on a copy of it that can be written or as a user who can write it",
            )
        from autotune.database import migrate

        migrate.upgrade(connection)


def only_reads(connection: Connection) -> bool:
    """Return whether a connection's database accepts no writes from this process."""
    if connection.dialect.name == "sqlite":
        return bool(connection.exec_driver_sql("PRAGMA query_only").scalar())
    if connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on":
        return True
    if inspect(connection).has_table(VERSION_TABLE):
        query = "SELECT has_table_privilege(%(table)s, 'UPDATE')"
        return not connection.exec_driver_sql(query, {"table": VERSION_TABLE}).scalar()
    return False
