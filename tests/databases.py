"""A database of each kind for a test: Databases."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from autotune.database import trials
from autotune.database.schema import TrialTable
from autotune.database.store import Store
from autotune.errors import RequestError
from autotune.programs.reliability import postgresql

Kind = Literal["sqlite", "postgresql"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql")
TEMPLATE = "newest"


@dataclass(kw_only=True)
class Databases:
    """Databases of one kind by the path that a SQLite file would have; each of its own, and dropped with the test."""

    server: postgresql.Server | None
    names: dict[Path, str] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        return "sqlite" if self.server is None else "postgresql"

    def url(self, path: Path, *, empty: bool = False) -> str:
        """The database of a path; on PostgreSQL it is made when it is first asked for, with the newest schema."""
        if self.server is None:
            return str(path)
        if path not in self.names:
            self.names[path] = f"t{os.urandom(8).hex()}"
            self.server.create(self.names[path], "template0" if empty else TEMPLATE)
        return self.server.url(self.names[path])

    def drop(self) -> None:
        for name in self.names.values():
            assert self.server is not None
            self.server.drop(name)
        self.names.clear()


def with_template(server: postgresql.Server) -> postgresql.Server:
    Store.open(server.create(TEMPLATE)).close()
    return server


def need_postgresql() -> None:
    """Skip where PostgreSQL or its driver is not installed, unless it must be, as in CI."""
    try:
        postgresql.programs()
        import psycopg  # noqa: F401
    except (RequestError, ModuleNotFoundError) as error:
        if os.environ.get("AUTOTUNE_TESTS_NEED_POSTGRESQL"):
            pytest.fail(f"AUTOTUNE_TESTS_NEED_POSTGRESQL is set, and: {error}", pytrace=False)
        pytest.skip(str(error))


def drop_artifact(store: Store, trial_uid: str) -> None:
    """Take a trial's artifact away, as if its study had dropped it."""
    with store.transactions.writing() as session:
        store.artifacts.discard(trials.release(session, TrialTable.uid == trial_uid))
