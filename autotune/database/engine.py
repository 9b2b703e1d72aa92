"""Where the tuning database is, and an engine that is ready for it.

SQLite runs with a write-ahead log, synchronous FULL and ``BEGIN IMMEDIATE`` for writes; on PostgreSQL a write takes an
advisory lock. On both there is therefore one writer at a time, and what a transaction has read stays true in it. Only
what coordinators write about their own studies goes side by side on PostgreSQL: each holds the row of its lease, and
together they share the lock, so that many wait for the disk at once.

A SQLite file that this process cannot write is only read, see :mod:`autotune.database.sqlite_file`; so is a PostgreSQL
database by a role that may only select.
"""

import hashlib
import os
import select
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from autotune import environment
from autotune.database.plan_rows import REVISIONS, VERSION_TABLE
from autotune.database.sqlite_file import ReadOnlyFile, is_read_only
from autotune.errors import DatabaseError
from autotune.records.device import slug

BUSY_TIMEOUT_S = 30.0
PAUSE_S = 1.0
"""A pooled connection to a server that has rested for so long is asked for a sign of life before it is used."""
_RETURNED = "autotune_returned"
WRITE = "autotune_write"
"""The execution option of a write: true, or :data:`OWN`."""
OWN = "own"
"""A write about a study whose lease the transaction locks first."""
ADVISORY_LOCK = int.from_bytes(hashlib.sha256(b"autotune").digest()[:8], "big", signed=True)
MOUNTS = Path("/proc/self/mounts")
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "lustre", "ceph", "beegfs", "gpfs"}
_NETWORK |= {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs"}
_FORMS = "a path, sqlite:///PATH or postgresql://USER@HOST/NAME"
_MAY_NOT_WRITE = ("25006", "42501")
"""PostgreSQL's SQLSTATE of a read-only transaction, and of a role without the privilege."""
_ELSEWHERE = "the same command with --db PATH, or set AUTOTUNE_DB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A tuning database: its URL, how it is shown (never with a password), and the folder of its artifacts."""

    url: URL
    shown: str
    artifacts: Path

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database."""
        return Path(str(self.url.database)) if self.url.get_backend_name() == "sqlite" else None

    @property
    def read_only(self) -> bool:
        """Whether it is a SQLite file that this process cannot write."""
        return self.file is not None and is_read_only(self.file)


def locate(url: str | None = None) -> Location:
    """Give the database asked for, else ``AUTOTUNE_DB``, else ``autotune.db`` in the user's data folder."""
    asked = url or environment.database_url() or str(environment.data_folder() / "autotune.db")
    if "://" not in asked:
        return _sqlite(Path(asked))
    try:
        parsed = make_url(asked)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise DatabaseError("The URL of the tuning database cannot be read", expected=_FORMS) from None
    if backend != "sqlite" and set(asked.partition("://")[2].rpartition("@")[0]) & set("@/?#[]"):
        # Else part of a password would be taken, and shown, for the host or the name of the database.
        raise DatabaseError(
            "The URL of the tuning database cannot be read",
            found="one of @ / ? # [ ] in the user's name or the password, or @ after the host",
            expected="%40 for @, %2F for /, %3F for ?, %23 for #, %5B for [, %5D for ]",
        )
    if backend == "sqlite" and parsed.database and not parsed.database.startswith((":", "file:")):
        return _sqlite(Path(parsed.database))
    database = parsed.database
    if backend not in ("postgresql", "postgres") or not database:
        raise DatabaseError(
            "This is no place for a tuning database", found=f"a {backend} URL, or one without a name", expected=_FORMS
        )
    hidden = parsed.query.get("password")  # libpq takes a password there too, where a URL does not hide it
    if hidden is not None:
        parsed = parsed.set(password=str(hidden)).difference_update_query(["password"])
    host = f"{parsed.host or 'local'}:{parsed.port or 5432}"
    key = hashlib.sha256(f"{host}/{database}".encode()).hexdigest()[:8]
    return Location(
        url=parsed.set(drivername="postgresql+psycopg"),
        shown=URL.create("postgresql", parsed.username, None, parsed.host, parsed.port, database).render_as_string(),
        artifacts=environment.data_folder() / f"{slug(database)}-{key}-artifacts",
    )


def _sqlite(path: Path) -> Location:
    file = Path(os.path.abspath(path.expanduser()))
    return Location(
        url=URL.create("sqlite", database=str(file)), shown=str(file), artifacts=file.parent / f"{file.stem}-artifacts"
    )


@contextmanager
def database_errors(location: Location) -> Iterator[None]:
    """Turn what the database raises into DatabaseError, with the reason and without a password."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        reason = str(cause).strip().split("\n")[0]
        if location.url.password:
            reason = reason.replace(str(location.url.password), "***")
        refused = _is_read_only(cause, reason)
        raise DatabaseError(
            f"The tuning database {location.shown} {'is read-only' if refused else 'cannot be used'}",
            found=reason,
            expected="a tuning database, or an empty one, that this user can read and write",
            run=_ELSEWHERE,
        ) from (error if not location.url.password else None)


def _is_read_only(cause: BaseException, reason: str) -> bool:
    """Whether a driver's error says that nothing may be written; SQLite has few texts, and each is its own."""
    if isinstance(cause, sqlite3.Error):
        return reason == "attempt to write a readonly database"
    return getattr(cause, "sqlstate", None) in _MAY_NOT_WRITE


def engine_at(location: Location, *, create: bool = True) -> Engine:
    """Give an engine with the newest schema; Alembic is imported only where the schema is absent or old.

    On PostgreSQL each of its statements is a transaction; for several in one see for_reading and for_writing.
    Raises DatabaseError where the database is absent (and ``create`` is false), newer than this version, or unusable;
    also where it is older and read-only.
    """
    if location.file is not None:
        _check_file(location.file, create=create)
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


def _check_file(file: Path, *, create: bool) -> None:
    asked = f"The tuning database {file} cannot be opened"
    if not create and not os.path.exists(file):
        raise DatabaseError(asked, found="no such file", run="autotune tune STUDY, which makes it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_other = file.exists() and not file.is_file()
    except OSError as error:
        raise DatabaseError(
            asked,
            found=f"{error.strerror} ({error.filename})",
            expected="a folder that this user can write",
            run=_ELSEWHERE,
        ) from error
    if is_other:
        raise DatabaseError(asked, found="something that is not a file", expected="a SQLite file, or none yet")
    kind = _file_system(file)
    if kind in _NETWORK:
        raise DatabaseError(
            asked,
            found=f"a network file system ({kind}), where SQLite's locks do not hold",
            expected="a local disk, or a PostgreSQL database for several machines",
        )


def _file_system(file: Path) -> str:
    """Give the type of the file system a file lies on, as the kernel lists it; empty where there is no such list."""
    try:
        mounts = MOUNTS.read_text(errors="replace")
    except OSError:
        return ""
    real = Path(os.path.realpath(file))
    best, kind = -1, ""
    for line in mounts.splitlines():
        _, point, found, *_ = line.split(" ")
        place = Path(point.replace("\\040", " "))
        if real.is_relative_to(place) and len(place.parts) >= best:  # of two on one point the later one is seen
            best, kind = len(place.parts), found
    return kind


def _connected(location: Location) -> Engine:
    if location.file is None:
        try:
            engine = create_engine(
                location.url,
                hide_parameters=True,
                isolation_level="AUTOCOMMIT",  # to change it costs more than a statement: see for_reading, for_writing
                use_native_hstore=False,  # nobody here uses that type, and asking for it delays a first look-up
                connect_args={"connect_timeout": 10},
            )
        except ModuleNotFoundError as error:
            raise DatabaseError(
                f"The tuning database {location.shown} cannot be opened",
                found=f"the package {error.name} is not installed",
                run="pip install 'autotune-inference[postgres]'",
            ) from None
        event.listen(engine, "begin", _begin_postgresql)
        event.listen(engine, "checkin", _note_return)
        event.listen(engine, "checkout", partial(_ping_where_in_doubt, engine.dialect))
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


def _ping_where_in_doubt(
    dialect: Dialect, driver: DBAPIConnection, record: ConnectionPoolEntry, _proxy: object
) -> None:
    """Ask a pooled connection for a sign of life after a pause, or where the server has said something: a farewell.

    Before each use it would cost a round trip, and a write is one. Where there is no sign, the pool connects again.
    """
    paused_s = time.monotonic() - record.info.get(_RETURNED, time.monotonic())
    said = select.poll()
    try:
        said.register(driver.fileno(), select.POLLIN)
        if paused_s > PAUSE_S or said.poll(0):
            dialect.do_ping(driver)
    except dialect.loaded_dbapi.OperationalError as error:
        raise DisconnectionError("the server has closed the connection") from error


def for_reading(engine: Engine, *, once: bool = False) -> Engine:
    """Give an engine whose transactions see one state throughout, as SQLite's do by themselves.

    ``once`` is for a single query, which needs no transaction: on PostgreSQL that saves half of the round trips.
    """
    if engine.dialect.name == "sqlite":
        return engine
    return engine if once else engine.execution_options(isolation_level="REPEATABLE READ")


def for_writing(engine: Engine, *, own: bool = False) -> Engine:
    """Give an engine whose transactions write; ``own`` as in :data:`OWN`."""
    options: dict[str, object] = {WRITE: OWN if own else True}
    if engine.dialect.name != "sqlite":
        options["isolation_level"] = "READ COMMITTED"
    return engine.execution_options(**options)


def has_returning(engine: Engine) -> bool:
    """Whether a statement that writes can say what it wrote: SQLite can since 3.35."""
    return engine.dialect.insert_returning


@contextmanager
def driver_writing(engine: Engine) -> Iterator[Callable[[str, Mapping[str, object]], DBAPICursor]]:
    """Give the driver's ``execute`` for a write: on PostgreSQL each statement is a transaction and takes its own locks.

    On SQLite the transaction begins with the first statement, so that nobody waits while its values are made. Raises
    what SQLAlchemy raises, where it is the database that refuses.
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
    """Give the revision of the schema, by one plain SELECT; ``None`` where there is no schema."""
    query = text(f"SELECT version_num FROM {VERSION_TABLE}")
    try:
        return connection.execute(query).scalar()
    except DBAPIError:
        connection.rollback()
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        # Either it cannot be read, or another process made it since: asking again tells.
        return connection.execute(query).scalar()


def _bring_up_to_date(engine: Engine, location: Location, *, create: bool) -> None:
    """Apply what is missing in one write transaction; of several processes the first does it, the others wait."""
    # A file that is only read takes no write transaction, and the reason is said below.
    with (engine if location.read_only else for_writing(engine)).begin() as connection:
        found = inspect(connection).has_table(VERSION_TABLE)
        version = schema_version(connection) if found else None
        if version == REVISIONS[-1]:
            return
        if version is not None and version not in REVISIONS:
            raise DatabaseError(
                f"The tuning database {location.shown} was written by a newer version of autotune",
                found=f"schema {version}",
                expected=f"schema {REVISIONS[-1]} or older",
                run="pip install --upgrade autotune-inference",
            )
        if version is None and not create:
            raise DatabaseError(f"{location.shown} is no tuning database", found="a database without its tables")
        if only_reads(connection):
            raise DatabaseError(
                f"The tuning database {location.shown} is read-only and has to be brought up to date before it is read",
                found=f"schema {version or 'none'}",
                expected=f"schema {REVISIONS[-1]}",
                run="autotune db upgrade --db PATH, on a copy of it that can be written or as a user who can write it",
            )
        from autotune.database import migrate

        migrate.upgrade(connection)


def only_reads(connection: Connection) -> bool:
    """Whether a connection's database takes no writes from this process."""
    if connection.dialect.name == "sqlite":
        return bool(connection.exec_driver_sql("PRAGMA query_only").scalar())
    if connection.exec_driver_sql("SHOW transaction_read_only").scalar() == "on":
        return True
    if inspect(connection).has_table(VERSION_TABLE):
        query = "SELECT has_table_privilege(%(table)s, 'UPDATE')"
        return not connection.exec_driver_sql(query, {"table": VERSION_TABLE}).scalar()
    return False
