"""Transactions on the tuning database: Transactions, which the stores of studies, trials, plans and kernels share."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timezone

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from autotune.database import leases
from autotune.database.engine import (
    driver_writing,
    for_reading,
    for_writing,
    has_returning,
    only_reads,
)
from autotune.database.location import Location, database_errors
from autotune.database.own_trials import Execute
from autotune.database.rows import instant


def utc_now() -> datetime:
    """Return the time now: the clock of a store that is given no other."""
    return datetime.now(timezone.utc)


class Transactions:
    """An engine with its location, its clock, and the lease that each write transaction checks first.

    For the modules of this package and their tests. Each method may raise DatabaseError; nothing is half-written then.
    """

    def __init__(
        self,
        engine: Engine,
        location: Location,
        clock: Callable[[], datetime] = utc_now,
        lease: leases.Lease | None = None,
    ) -> None:
        self.engine = engine
        self.location = location
        self.lease = lease
        self._clock = clock
        self._reader = for_reading(engine)
        self._single_query = for_reading(engine, once=True)
        self._writer = for_writing(engine)
        self._own_writer = for_writing(engine, own=True)

    def under(self, lease: leases.Lease | None) -> "Transactions":
        """Return the same transactions whose writes raise StudyTakenOverError once this lease is lost."""
        return Transactions(self.engine, self.location, self._clock, lease)

    def now(self) -> str:
        """Return the time of the clock as the database stores it."""
        return instant(self._clock())

    @property
    def read_only(self) -> bool:
        """Whether this process can only read the database."""
        with self.reading() as session:
            return only_reads(session.connection())

    @contextmanager
    def _session(self, engine: Engine) -> Iterator[Session]:
        with database_errors(self.location), Session(engine) as session, session.begin():
            yield session

    def reading(self) -> AbstractContextManager[Session]:
        """Open one read transaction, which sees one state of the database throughout."""
        return self._session(self._reader)

    @contextmanager
    def single_query(self) -> Iterator[Connection]:
        """Open a connection for one query, which needs no transaction of its own."""
        with database_errors(self.location), self._single_query.connect() as connection:
            yield connection

    @contextmanager
    def writing(self, *, own: bool = False) -> Iterator[Session]:
        """Open one write transaction; under a lease it begins with a check of the lease.

        ``own`` declares that it touches nothing but the study of the lease, so that coordinators need not wait for one
        another.
        """
        with self._session(self._own_writer if own and self.lease is not None else self._writer) as session:
            if self.lease is not None:
                leases.check(session, self.lease)
            yield session

    @property
    def has_own_statements(self) -> bool:
        """Whether the statements of :mod:`own_trials` can be used: under a lease, if they return the rows written."""
        return self.lease is not None and has_returning(self.engine)

    @contextmanager
    def own_statements(self) -> Iterator[tuple[str, Execute]]:
        """Open a transaction for the statements of :mod:`own_trials`, which check the lease themselves.

        Yields the name of the database's dialect and the driver's ``execute``.
        """
        with database_errors(self.location), driver_writing(self.engine) as execute:
            yield self.engine.dialect.name, execute
