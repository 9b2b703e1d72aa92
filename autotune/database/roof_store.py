"""The measured roofs of the tuning database: RoofStore, the attribute ``roofs`` of a store."""

from collections.abc import Sequence

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from autotune.database.plan_rows import device_classes, readable
from autotune.database.rows import parse_instant, roofs_values
from autotune.database.schema import RoofsTable
from autotune.database.transactions import Transactions
from autotune.records.canonical import canonical
from autotune.records.roofs import Roofs

_CLASS = RoofsTable.device_class


class RoofStore:
    """One row of roofs a device class, the newest: two rows would need a rule for which of them is the limit.

    They belong to no study, so no lease is checked. A database of revision 0003 that can only be read has none. Errors
    as those of :class:`autotune.database.store.Store`.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def put(self, roofs: Roofs) -> bool:
        """Store roofs, unless the database has newer ones of their device class; returns whether they were stored."""
        with self._transactions.writing() as session:
            return put_roofs(session, roofs)

    def list(self, device: str | None = None) -> Sequence[Roofs]:
        """Return the roofs of all device classes, or of those that a part of a SKU fits (DeviceError for several)."""
        with self._transactions.reading() as session:
            stored = roofs_rows(session)
        if device is None:
            return stored
        fitting = device_classes([roofs.device_class for roofs in stored], device)
        return [roofs for roofs in stored if roofs.device_class in fitting]


def roofs_rows(session: Session) -> Sequence[Roofs]:
    """Return all roofs by device class; none if the database has no table of them."""
    if not inspect(session.connection()).has_table(RoofsTable.__tablename__):
        return []
    with readable("A row of roofs", expected="roofs that autotune measured"):
        return [Roofs.from_dict(row.record) for row in session.scalars(select(RoofsTable).order_by(_CLASS))]


def put_roofs(session: Session, roofs: Roofs) -> bool:
    """Write the newer of two roofs of one device class; of two as old, the one with the greater record."""
    values = roofs_values(roofs)
    row = session.get(RoofsTable, roofs.device_class)
    if row is None:
        session.add(RoofsTable(**values))
        session.flush()
        return True
    former = (parse_instant(row.created), canonical(row.record))
    if (values["created"], canonical(values["record"])) <= former:
        return False
    row.created, row.record = values["created"], values["record"]
    session.flush()
    return True
