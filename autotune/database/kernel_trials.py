"""The kernel trials of the tuning database: KernelTrials, the attribute ``kernels`` of a store."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from sqlalchemy import ColumnElement, and_, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from autotune import registry
from autotune.database.kernel_finals import kernel_final_rows
from autotune.database.plan_rows import device_classes
from autotune.database.rows import KernelTrialValues, kernel_record, kernel_values
from autotune.database.schema import KernelFinalTable, KernelTrialTable
from autotune.database.transactions import Transactions
from autotune.database.trials import QUARANTINE
from autotune.records.configuration import Configuration
from autotune.records.kernel_final import KernelFinal
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial

BATCH = 500
"""Rows read at once by their uids, few enough for SQLite's limit on parameters."""

_PLACE = (KernelTrialTable.problem, KernelTrialTable.device_class, KernelTrialTable.toolchain)
_PROBLEM = (KernelTrialTable.problem, KernelTrialTable.device_class)
_IS_COMPLETE = KernelTrialTable.state == "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProblemRow:
    """A problem on one device class, with its trials under all toolchains.

    ``best`` is the fastest complete trial, ``library_us`` the fastest median of a library's own call. ``final`` is the
    newest one in which ``best`` took part.
    """

    problem: GemmProblem
    device_class: str
    trials: int
    failed: int
    best: KernelTrial | None
    library_us: float | None
    final: KernelFinal | None = None


class KernelTrials:
    """Kernel trials by problem (shape, types, layout, epilogue), device class and the digest of a toolchain.

    The kinds of kernels have different toolchains (:class:`autotune.kernel.KernelToolchains`), so queries take several.

    They belong to no study: any process may add some at any time, without a lease. Errors as those of
    :class:`autotune.database.store.Store`.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def add(self, trials: Sequence[KernelTrial]) -> int:
        """Write the trials of some kernels in one transaction; returns the number of rows that were written.

        An earlier trial of this machine stays as it is, except that a kernel that took its worker down, or hung, and
        then completes is complete.
        """
        values = [kernel_values(trial) for trial in trials]
        with self._transactions.writing() as session:
            return _add(session, values, self._transactions.now())

    def of(self, problem: GemmProblem, device_class: str, *toolchains: str) -> tuple[KernelTrial, ...]:
        """Return all trials of a problem under some toolchains, complete ones first, the fastest first.

        A configuration that several machines have tried is returned once for each of them.
        """
        query = (
            select(KernelTrialTable)
            .where(
                KernelTrialTable.problem == problem.digest,
                KernelTrialTable.device_class == device_class,
                KernelTrialTable.toolchain.in_(toolchains),
            )
            .order_by(KernelTrialTable.state, KernelTrialTable.median_us, KernelTrialTable.uid)
        )
        with self._transactions.reading() as session:
            return tuple(kernel_record(row.record) for row in session.scalars(query))

    def best(
        self, device_class: str, toolchain: str, problems: Iterable[GemmProblem] | None = None
    ) -> Mapping[str, KernelTrial]:
        """Return the complete trial with the lowest median by the digest of its problem, for all or some problems."""
        where = [KernelTrialTable.device_class == device_class, KernelTrialTable.toolchain == toolchain]
        if problems is not None:
            where.append(KernelTrialTable.problem.in_(sorted({problem.digest for problem in problems})))
        with self._transactions.reading() as session:
            return {row.problem: kernel_record(row.record) for row in _fastest(session, *where)}

    def hints(self, problem: GemmProblem, device_class: str, *toolchains: str) -> tuple[Configuration, ...]:
        """Return the best configurations of a problem under other toolchains and on other device classes.

        Calls of libraries are left out. Nearest first: device classes are near if their names begin alike, for a name
        begins with the vendor and the series (``nvidia-h100/…`` is nearer to ``nvidia-h200/…`` than ``nvidia-l40s/…``);
        of one device class the newest first.
        """
        with self._transactions.reading() as session:
            rows = _fastest(session, KernelTrialTable.problem == problem.digest, ~_is_library())
            rows = [row for row in rows if row.device_class != device_class or row.toolchain not in toolchains]
            rows.sort(key=lambda row: row.created, reverse=True)
            rows.sort(key=lambda row: _common_prefix(row.device_class, device_class), reverse=True)
            return tuple(dict.fromkeys(kernel_record(row.record).configuration for row in rows))

    def problems(self, device: str | None = None) -> list[KernelProblemRow]:
        """Return the problems that have trials, by device class and shape.

        ``device`` is a device class, or any part of a SKU that fits one SKU only (else DeviceError).
        """
        with self._transactions.reading() as session:
            where = []
            if device is not None:
                stored = session.scalars(select(KernelTrialTable.device_class).distinct()).all()
                where = [KernelTrialTable.device_class.in_(device_classes(list(stored), device))]
            fastest = _fastest(session, *where, of=_PROBLEM)
            best = {(row.problem, row.device_class): kernel_record(row.record) for row in fastest}
            finals = _finals(session, {device_class for _, device_class in best})
            query = select(
                *_PROBLEM,
                func.count().label("trials"),
                func.sum(case((_IS_COMPLETE, 0), else_=1)).label("failed"),
                func.min(case((and_(_IS_COMPLETE, _is_library()), KernelTrialTable.median_us))).label("library_us"),
                func.min(KernelTrialTable.uid).label("some"),
            )
            problems = []
            for row in session.execute(query.where(*where).group_by(*_PROBLEM)):
                trial = best.get((row.problem, row.device_class))
                some = trial or kernel_record(session.get_one(KernelTrialTable, row.some).record)
                problems.append(
                    KernelProblemRow(
                        problem=some.problem,
                        device_class=row.device_class,
                        trials=row.trials,
                        failed=row.failed,
                        best=trial,
                        library_us=row.library_us,
                        final=_final_with(trial, finals.get((row.problem, row.device_class), ())),
                    )
                )
        return sorted(problems, key=_order)


def supersede(row: KernelTrialTable, values: KernelTrialValues, created: str) -> bool:
    """Write a complete trial over a row that says only that a worker was lost; returns whether it did."""
    failure = kernel_record(row.record).failure
    if failure is None or failure.kind not in QUARANTINE or values["state"] != "complete":
        return False
    for name, value in values.items():
        setattr(row, name, value)
    row.created = created
    return True


def _is_library() -> ColumnElement[bool]:
    """Return the condition that a kernel is a library's own call: no kernel of ours is compiled for it."""
    return KernelTrialTable.kind.in_(registry.library_kinds())


def kernel_trial_key(values: KernelTrialValues) -> tuple[str, str, str, str]:
    """Return the problem, device class, toolchain and configuration, which make a kernel trial this one."""
    return values["problem"], values["device_class"], values["toolchain"], values["configuration"]


def _add(session: Session, trials: Sequence[KernelTrialValues], now: str) -> int:
    """Write the trials that are new here or supersede a row; returns how many."""
    configurations: dict[tuple[str, str, str], set[str]] = {}
    for values in trials:
        *place, configuration = kernel_trial_key(values)
        configurations.setdefault((place[0], place[1], place[2]), set()).add(configuration)
    rows: dict[tuple[str, str, str, str], KernelTrialTable] = {}
    for (problem, device_class, toolchain), digests in configurations.items():
        same = (KernelTrialTable.configuration.in_(sorted(digests)), KernelTrialTable.tried_here.is_(True))
        for row in session.scalars(select(KernelTrialTable).where(*_at(problem, device_class, toolchain), *same)):
            rows[problem, device_class, toolchain, row.configuration] = row
    written = 0
    for values in trials:
        key = kernel_trial_key(values)
        if key in rows:
            written += supersede(rows[key], values, now)
            continue
        rows[key] = KernelTrialTable(uid=uuid.uuid4().hex, tried_here=True, created=now, **values)
        session.add(rows[key])
        written += 1
    return written


def _at(problem: str, device_class: str, toolchain: str) -> tuple[ColumnElement[bool], ...]:
    return tuple(column == value for column, value in zip(_PLACE, (problem, device_class, toolchain), strict=True))


def _fastest(
    session: Session, *where: ColumnElement[bool], of: Sequence[InstrumentedAttribute[str]] = _PLACE
) -> list[KernelTrialTable]:
    """Return the complete row with the lowest median of every problem, device class and toolchain, of some rows."""
    # In two steps, each with one query plan to choose: for a join with the lowest medians PostgreSQL took 115 s among
    # 15,000 rows while it had no statistics of a table that was new.
    rank = func.row_number().over(partition_by=of, order_by=(KernelTrialTable.median_us, KernelTrialTable.uid))
    ranked = select(KernelTrialTable.uid, rank.label("rank")).where(_IS_COMPLETE, *where).subquery()
    uids = session.scalars(select(ranked.c.uid).where(ranked.c.rank == 1).order_by(ranked.c.uid)).all()
    rows: list[KernelTrialTable] = []
    for start in range(0, len(uids), BATCH):
        some = KernelTrialTable.uid.in_(uids[start : start + BATCH])
        rows += session.scalars(select(KernelTrialTable).where(some))
    return rows


def _finals(session: Session, device_classes: set[str]) -> Mapping[tuple[str, str], list[KernelFinal]]:
    """Return the finals on some device classes by problem and device class, the newest first."""
    finals: dict[tuple[str, str], list[KernelFinal]] = {}
    for row, final in kernel_final_rows(session, KernelFinalTable.device_class.in_(sorted(device_classes))):
        finals.setdefault((row.problem, row.device_class), []).append(final)
    return finals


def _final_with(trial: KernelTrial | None, finals: Iterable[KernelFinal]) -> KernelFinal | None:
    """Return the first final in which the kernel of a trial took part, under the toolchain of the trial."""
    if trial is None:
        return None
    for final in finals:
        finalist = final.of(trial.configuration)
        if finalist is not None and finalist.toolchain == trial.toolchain:
            return final
    return None


def _common_prefix(left: str, right: str) -> int:
    """Return the number of characters with which both names begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _order(row: KernelProblemRow) -> tuple[str, int, int, int, str]:
    problem = row.problem
    return row.device_class, problem.m, problem.n, problem.k, problem.canonical
