"""Plans of a SQLite database read by the standard library alone, so that a command need not import SQLAlchemy."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Any

from autotune import environment
from autotune.database.artifacts import ArtifactStore
from autotune.database.plan_rows import REVISIONS, VERSION_TABLE, device_classes, plan_record
from autotune.database.sqlite_file import ReadOnlyFile, is_read_only
from autotune.records.plan import Plan

PREFIX = "sqlite:///"


class PlanReader:
    """Reads plans as :class:`autotune.database.store.Store` does, and nothing else."""

    def __init__(self, file: Path) -> None:
        self.location = str(file)
        self.artifacts = ArtifactStore(file.parent / f"{file.stem}-artifacts")
        self._source = ReadOnlyFile(file) if is_read_only(file) else None
        target = str(file) if self._source is None else self._source.uri
        try:
            self._connection = sqlite3.connect(target, timeout=30.0, uri=self._source is not None)
            self._connection.execute("PRAGMA query_only = ON")
        except BaseException:
            self._forget()
            raise

    def plans(self, name: str | None = None, batch: int | None = None, device: str | None = None) -> list[Plan]:
        """Plans by name, batch and device, which is any part of a SKU that fits one SKU only (else DeviceError)."""
        wanted: dict[str, list[Any]] = {"name": [name], "batch": [batch]}
        where = [f"{column} = ?" for column, values in wanted.items() if values != [None]]
        values = [value for (value,) in wanted.values() if value is not None]
        if device is not None:
            known = [row[0] for row in self._connection.execute("SELECT DISTINCT device_class FROM plan")]
            classes = device_classes(known, device)
            where.append(f"device_class IN ({', '.join('?' * len(classes))})")
            values += classes
        query = f"SELECT uid, record, evidence FROM plan{' WHERE ' if where else ''}{' AND '.join(where)}"
        rows = self._connection.execute(f"{query} ORDER BY name, batch, device_class, latency_ms", values)
        return [plan_record(*row) for row in rows]

    @property
    def is_current(self) -> bool:
        """Whether the database has the schema that this version reads."""
        (version,) = self._connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
        return bool(version == REVISIONS[-1])

    def close(self) -> None:
        """Close the database, and delete what was made to read it."""
        self._connection.close()
        self._forget()

    def _forget(self) -> None:
        self.artifacts.close()
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> "PlanReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def plan_reader(url: str | None) -> PlanReader | None:
    """A reader of the database asked for, else ``AUTOTUNE_DB``, else the user's own.

    ``None`` where it is not a SQLite file of this version's schema: the store then reads it, or says what is wrong.
    """
    asked = url or environment.database_url() or str(environment.data_folder() / "autotune.db")
    path = asked.removeprefix(PREFIX)
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
