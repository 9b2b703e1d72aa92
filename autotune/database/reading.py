"""Plans of a SQLite database read by the standard library alone, so that a command need not import SQLAlchemy."""

import contextlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from autotune import environment
from autotune.database.artifacts import ArtifactStore
from autotune.database.plan_rows import READABLE, VERSION_TABLE, device_classes, plan_record
from autotune.database.sqlite_file import ReadOnlyFile, is_read_only
from autotune.records.plan import Plan

PREFIX = "sqlite:///"


class PlanReader:
    """The location, the plans and the artifacts of a database, as :class:`autotune.database.store.Store` has them."""

    def __init__(self, file: Path) -> None:
        self.location = str(file)
        self.artifacts = ArtifactStore(file.parent / f"{file.stem}-artifacts")
        self._source = ReadOnlyFile(file) if is_read_only(file) else None
        target = str(file) if self._source is None else self._source.uri
        try:
            self._connection = sqlite3.connect(target, timeout=30.0, uri=self._source is not None)
            self._connection.execute("PRAGMA query_only = ON")
        except BaseException:
            self._delete_copies()
            raise
        self.plans = StoredPlans(self._connection)

    @property
    def is_current(self) -> bool:
        """Whether the database has the plans of this version's schema."""
        (version,) = self._connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
        return version in READABLE

    def close(self) -> None:
        """Close the database, and delete the copies that were needed to read it."""
        self._connection.close()
        self._delete_copies()

    def _delete_copies(self) -> None:
        self.artifacts.close()
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> "PlanReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StoredPlans:
    """The plans of an open SQLite file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def list(self, name: str | None = None, batch: int | None = None, device: str | None = None) -> Sequence[Plan]:
        """Return plans by name, batch and device: any part of a SKU that fits one SKU only (else DeviceError)."""
        columns: dict[str, str | int | None] = {"name": name, "batch": batch}
        where = [f"{column} = ?" for column, value in columns.items() if value is not None]
        values = [value for value in columns.values() if value is not None]
        if device is not None:
            stored = [row[0] for row in self._connection.execute("SELECT DISTINCT device_class FROM plan")]
            classes = device_classes(stored, device)
            where.append(f"device_class IN ({', '.join('?' * len(classes))})")
            values += classes
        query = f"SELECT uid, record, evidence FROM plan{' WHERE ' if where else ''}{' AND '.join(where)}"
        rows = self._connection.execute(f"{query} ORDER BY name, batch, device_class, latency_ms", values)
        return [plan_record(*row) for row in rows]


def plan_reader(url: str | None) -> PlanReader | None:
    """Return a reader of the database at a path or URL, else at ``AUTOTUNE_DB``, else in the user's data folder.

    ``None`` if it is not a SQLite file of this version's schema: the store then reads it, or raises with the reason.
    """
    place = url or environment.database_url() or str(environment.data_folder() / "autotune.db")
    path = place.removeprefix(PREFIX)
    file = Path(os.path.abspath(Path(path).expanduser()))
    if "://" in path or path.startswith((":", "file:")) or "?" in path or not os.path.isfile(file):
        return None
    with contextlib.suppress(sqlite3.Error):
        reader = PlanReader(file)
        with contextlib.suppress(sqlite3.Error):
            if reader.is_current:
                return reader
        reader.close()
    return None
