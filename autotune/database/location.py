"""The place of the tuning database: a path or a URL, and whether a file there can be one."""

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from autotune import environment
from autotune.database.sqlite_file import is_read_only
from autotune.errors import DatabaseError
from autotune.records.device import slug

MOUNTS = Path("/proc/self/mounts")
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "lustre", "ceph", "beegfs", "gpfs"}
_NETWORK |= {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs"}
_FORMS = "a path, sqlite:///PATH or postgresql://USER@HOST/NAME"
_MAY_NOT_WRITE = ("25006", "42501")
"""PostgreSQL's SQLSTATE of a read-only transaction, and of a role without the privilege."""
_ELSEWHERE = "the same command with --db PATH, or set AUTOTUNE_DB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A tuning database: its URL, the text that is shown for it (never a password), and the folder of its artifacts."""

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
    """Return the database at a path or URL, else at ``AUTOTUNE_DB``, else ``autotune.db`` in the user's data folder.

    Raises DatabaseError for a URL that cannot be read or that names another kind of database.
    """
    place = url or environment.database_url() or str(environment.data_folder() / "autotune.db")
    if "://" not in place:
        return _sqlite(Path(place))
    try:
        parsed = make_url(place)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise DatabaseError("The URL of the tuning database cannot be read", expected=_FORMS) from None
    if backend != "sqlite" and set(place.partition("://")[2].rpartition("@")[0]) & set("@/?#[]"):
        # Otherwise part of a password would be read, and shown, as the host or the name of the database.
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
            "This URL names no tuning database", found=f"a {backend} URL, or one without a name", expected=_FORMS
        )
    hidden = parsed.query.get("password")  # libpq reads a password there too, and a URL does not hide it there
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
    """Turn an error of the database into DatabaseError, with the reason and without a password."""
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
    """Return whether a driver's error says that nothing may be written."""
    if isinstance(cause, sqlite3.Error):
        # SQLite has few texts, and each belongs to one error.
        return reason == "attempt to write a readonly database"
    return getattr(cause, "sqlstate", None) in _MAY_NOT_WRITE


def check_file(file: Path, *, create: bool) -> None:
    """Create the folder of a SQLite file; raises DatabaseError if the file cannot be a tuning database there.

    It must be a file on a local disk, and exist unless ``create`` is true.
    """
    refusal = f"The tuning database {file} cannot be opened"
    if not create and not os.path.exists(file):
        raise DatabaseError(refusal, found="no such file", run="autotune tune STUDY, which creates it")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_other = file.exists() and not file.is_file()
    except OSError as error:
        raise DatabaseError(
            refusal,
            found=f"{error.strerror} ({error.filename})",
            expected="a folder that this user can write",
            run=_ELSEWHERE,
        ) from error
    if is_other:
        raise DatabaseError(refusal, found="something that is not a file", expected="a SQLite file, or none yet")
    kind = _file_system(file)
    if kind in _NETWORK:
        raise DatabaseError(
            refusal,
            found=f"a network file system ({kind}), on which SQLite's locks do not hold",
            expected="a local disk, or a PostgreSQL database for several machines",
        )


def _file_system(file: Path) -> str:
    """Return the type of the file system of a file, as the kernel lists it; empty if there is no such list."""
    try:
        mounts = MOUNTS.read_text(errors="replace")
    except OSError:
        return ""
    real = Path(os.path.realpath(file))
    best, kind = -1, ""
    for line in mounts.splitlines():
        _, point, listed, *_ = line.split(" ")
        place = Path(point.replace("\\040", " "))
        if real.is_relative_to(place) and len(place.parts) >= best:  # of two at one point the later one is visible
            best, kind = len(place.parts), listed
    return kind
