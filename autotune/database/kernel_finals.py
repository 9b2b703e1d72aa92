"""The finals of kernels in the tuning database: KernelFinals, the attribute ``kernel_finals`` of a store."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypedDict

from sqlalchemy import ColumnElement, inspect, select
from sqlalchemy.orm import Session

from autotune.database.plan_rows import readable
from autotune.database.schema import KernelFinalTable
from autotune.database.transactions import Transactions
from autotune.records.kernel_final import KernelFinal
from autotune.records.kernel_problem import GemmProblem

BATCH = 500
"""Problems of one query, few enough for SQLite's limit on parameters."""


TOO_LONG_US = 1e300
"""See :data:`autotune.database.schema.POSITIVE`."""


class KernelFinalValues(TypedDict):
    """The columns of a final of kernels that follow from its record."""

    uid: str
    problem: str
    device_class: str
    best: str
    best_us: float
    record: dict[str, object]


def kernel_final_values(final: KernelFinal) -> KernelFinalValues:
    """Return the columns of a final of kernels; raises ``ValueError`` for samples that no database accepts."""
    best, longest_us = final.ranked[0], max(sample for one in final.finalists for us in one.rounds_us for sample in us)
    if longest_us >= TOO_LONG_US:
        raise ValueError(f"a sample of a final has less than {TOO_LONG_US:g} µs, found {longest_us!r}")
    return {
        "uid": final.digest,
        "problem": final.problem.digest,
        "device_class": final.device_class,
        "best": best.configuration.digest,
        "best_us": best.median_us,
        "record": final.as_dict(),
    }


class KernelFinals:
    """Finals by problem and device class; a final that was stored never changes.

    They belong to no study, so no lease is checked. A database of an earlier revision that can only be read has none.
    Errors as those of :class:`autotune.database.store.Store`.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def add(self, final: KernelFinal) -> bool:
        """Store a final; returns false if the database has it."""
        with self._transactions.writing() as session:
            return put_kernel_final(session, final, self._transactions.now())

    def of(self, problems: Iterable[GemmProblem], device_class: str) -> Mapping[str, tuple[KernelFinal, ...]]:
        """Return the finals of some problems on a device class, the newest first, by the digest of their problem.

        A problem without a final has no entry.
        """
        digests = sorted({problem.digest for problem in problems})
        finals: dict[str, list[KernelFinal]] = {}
        with self._transactions.reading() as session:
            for start in range(0, len(digests), BATCH):
                some = KernelFinalTable.problem.in_(digests[start : start + BATCH])
                for row, final in kernel_final_rows(session, some, KernelFinalTable.device_class == device_class):
                    finals.setdefault(row.problem, []).append(final)
        return {problem: tuple(some) for problem, some in finals.items()}


def kernel_final_rows(session: Session, *where: ColumnElement[bool]) -> Iterator[tuple[KernelFinalTable, KernelFinal]]:
    """Yield rows with their finals, the newest first; none if the database has no table of them."""
    if not inspect(session.connection()).has_table(KernelFinalTable.__tablename__):
        return
    query = select(KernelFinalTable).where(*where)
    for row in session.scalars(query.order_by(KernelFinalTable.created.desc(), KernelFinalTable.uid)):
        with readable("A final of kernels", expected="a final that autotune timed"):
            final = KernelFinal.from_dict(row.record)
        yield row, final


def put_kernel_final(session: Session, final: KernelFinal, created: str) -> bool:
    """Write a final, unless the database has it; returns whether it was written."""
    values = kernel_final_values(final)
    if session.get(KernelFinalTable, values["uid"]) is not None:
        return False
    session.add(KernelFinalTable(created=created, **values))
    session.flush()
    return True
