"""Finds all damage of a tuning database and its artifacts, and the files that can go; see ``autotune db``."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import ForeignKeyConstraint, Text, and_, inspect, literal, select, text, tuple_
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased

from autotune.database.artifacts import ArtifactStore
from autotune.database.engine import schema_version
from autotune.database.files import hashed, open_plain
from autotune.database.kernel_finals import kernel_final_values
from autotune.database.manifest import is_digest
from autotune.database.plan_rows import READABLE, REVISIONS
from autotune.database.rows import (
    former_plan_values,
    kernel_record,
    kernel_values,
    measurement_uid,
    parse_instant,
    plan_of,
    plan_values,
    roofs_values,
    study_keys,
    study_record,
    trial_record,
    trial_values,
)
from autotune.database.schema import (
    Base,
    DeviceTable,
    FormerPlanTable,
    KernelFinalTable,
    KernelTrialTable,
    MeasurementTable,
    PlanTable,
    RoofsTable,
    StudyTable,
    TrialTable,
    WorkloadTable,
)
from autotune.database.store import Store
from autotune.database.sweep import GRACE_S, Unneeded, blobs_of, strays, sweep, unneeded
from autotune.errors import ArtifactError, DatabaseError
from autotune.records.canonical import canonical
from autotune.records.device import Device
from autotune.records.kernel_final import KernelFinal
from autotune.records.roofs import Roofs
from autotune.records.trial import Measurement
from autotune.records.workload import Workload

Kind = Literal["damaged", "missing", "orphaned", "leftover", "stray"]
BATCH = 500
"""Rows read at once: enough that a million take seconds, few enough for SQLite's limit on parameters."""

_SINCE: Mapping[type[Base], str] = {RoofsTable: "0004", FormerPlanTable: "0005", KernelFinalTable: "0006"}
"""The tables that the first readable revision lacks, with the revision that added each."""

_GC = "autotune db gc"
_COPY = "a copy of the database from before"
_TUNE = "autotune tune STUDY, which builds it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One defect: ``damaged``, ``missing``, ``orphaned``, ``leftover`` or ``stray`` (not autotune's).

    ``what`` is the kind of object, such as ``blob`` or ``plan row``, ``name`` identifies it, ``found`` is the reason,
    and ``remedy`` the command that repairs it.
    """

    kind: Kind
    what: str
    name: str
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return asdict(self)


def check(store: Store, now: float) -> list[Finding]:
    """Read every row and every byte, and return every defect; ``now`` is a Unix time.

    May run beside studies: an artifact that was added within a day is not reported as orphaned, nor one that a study
    deletes in the meantime as missing.
    """
    findings = [*_database(store), *_rows(store), *_dangling(store)]
    artifacts, named = store.artifacts, _named(store)
    if artifacts.root.exists():
        with artifacts.reading(alone=True):
            needless, foreign = unneeded(artifacts, named.keys(), now - GRACE_S), list(strays(artifacts))
        findings += _needless(artifacts, needless)
        findings += [
            Finding(kind="stray", what="file", name=str(path.relative_to(artifacts.root)), found="not autotune's")
            for path in foreign
        ]
        findings += _damaged(artifacts)
    absent = {digest for digest in named if not artifacts.has(digest)}
    findings += [
        Finding(kind="missing", what="artifact", name=digest, found=f"named by {rows[0]}", remedy=_TUNE)
        for digest, rows in _named(store).items()
        if digest in absent
    ]
    return findings


def collect_garbage(store: Store, now: float, *, dry_run: bool = False) -> Unneeded:
    """Delete the files that nothing needs and no process is writing; returns them, with ``dry_run`` without deleting.

    An artifact that a plan or a trial names stays, and so does one that was added within a day, for a study that is
    about to name it. No row is changed.
    """
    if not store.artifacts.root.exists():
        return Unneeded()
    if dry_run:
        named = _named(store).keys()
        with store.artifacts.reading(alone=True):
            return unneeded(store.artifacts, named, now - GRACE_S)
    with store.transactions.writing() as session:  # so no row comes to name an artifact before the deletion
        return sweep(store.artifacts, _named_in(session).keys(), now - GRACE_S)


# Artifacts


def _named(store: Store) -> dict[str, list[str]]:
    with store.transactions.reading() as session:
        return _named_in(session)


def _named_in(session: Session) -> dict[str, list[str]]:
    """Return the rows that name each artifact; a plan's record counts too, for a look-up reads it."""
    named: dict[str, list[str]] = {}
    for plan, column, record in session.execute(
        select(PlanTable.uid, PlanTable.artifact, PlanTable.__table__.c.record.cast(Text)).order_by(PlanTable.uid)
    ):
        for digest in {column, _artifact_in(record)}:
            if is_digest(digest):
                named.setdefault(digest, []).append(f"plan {plan}")
    rows = select(TrialTable.uid, TrialTable.artifact).where(TrialTable.artifact.is_not(None)).order_by(TrialTable.uid)
    for trial, digest in session.execute(rows):
        if is_digest(digest):
            named.setdefault(str(digest), []).append(f"trial {trial}")
    return named


def _artifact_in(record: str) -> object:
    try:
        return json.loads(record).get("artifact")
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def _needless(store: ArtifactStore, needless: Unneeded) -> Iterator[Finding]:
    for digest in needless.artifacts:
        yield Finding(kind="orphaned", what="artifact", name=digest, found="no plan or trial names it", remedy=_GC)
    for path in needless.blobs:
        yield Finding(kind="orphaned", what="blob", name=path.name, found="no artifact lists it", remedy=_GC)
    for path in needless.leftovers:
        name = str(path.relative_to(store.root))
        yield Finding(kind="leftover", what="file", name=name, found="no process is writing it", remedy=_GC)


def _damaged(store: ArtifactStore) -> Iterator[Finding]:
    blobs: dict[str, list[str]] = {}
    for digest in store.digests():
        try:
            for file in store.files(digest):
                blobs.setdefault(file.sha256, []).append(digest)
        except ArtifactError as error:
            if store.has(digest):
                yield Finding(kind="damaged", what="manifest", name=digest, found=error.found, remedy=_TUNE)
    for path in blobs_of(store):
        if is_digest(path.name):
            users = blobs.pop(path.name, [])
            reason = _why_unsound(path)
            if reason and (not users or any(map(store.has, users))):
                needed = f"{reason}; needed by artifact {users[0]}" if users else reason
                yield Finding(kind="damaged", what="blob", name=path.name, found=needed, remedy=_TUNE if users else _GC)
    for sha256, users in blobs.items():
        if any(map(store.has, users)) and not store.blob(sha256).exists():
            needed = f"needed by artifact {users[0]}"
            yield Finding(kind="missing", what="blob", name=sha256, found=needed, remedy=_TUNE)


def _why_unsound(path: Path) -> str:
    try:
        with open_plain(path) as stream:
            _, actual = hashed(stream)
    except FileNotFoundError:
        return ""  # deleted since
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return "" if actual == path.name else f"its content has the SHA-256 {actual}"


# Rows


def _database(store: Store) -> Iterator[Finding]:
    with store.transactions.reading() as session:
        if session.get_bind().dialect.name != "sqlite":
            return
        try:
            lines = [str(line) for (line,) in session.execute(text("PRAGMA integrity_check"))]
        except DBAPIError as error:
            lines = [str(error.orig)]
    for line in lines:
        if line != "ok":
            yield Finding(kind="damaged", what="database", name=store.location, found=line, remedy=_COPY)


def _rows(store: Store) -> Iterator[Finding]:
    for table in _tables(store):
        with store.transactions.reading() as session:
            try:
                yield from _unreadable(session, table)
            except DBAPIError as error:
                reason = str(error.orig).split("\n")[0]
                yield Finding(kind="damaged", what="table", name=table.__tablename__, found=reason, remedy=_COPY)


def _tables(store: Store) -> list[type[Base]]:
    """Return the tables that the database has: a read-only one may lack those that a later revision added."""
    with store.transactions.reading() as session:
        version = schema_version(session.connection()) or REVISIONS[-1]
    return [table for table in Base.__subclasses__() if version >= _SINCE.get(table, READABLE[0])]


def _unreadable(session: Session, table: type[Base]) -> Iterator[Finding]:
    keys = inspect(table).primary_key
    names = [tuple(row) for row in session.execute(select(*keys).order_by(*keys))]
    for start in range(0, len(names), BATCH):
        some = names[start : start + BATCH]
        try:
            rows = list(session.scalars(select(table).where(tuple_(*keys).in_(some))))
            problems = [_problem(session, row) for row in rows]
        except (ValueError, TypeError, RecursionError):  # a column of one row is no JSON: they are read one by one
            session.expunge_all()
            rows, problems = [], []
            for name in some:
                yield from _one_unreadable(session, table, name)
        for row, problem in zip(rows, problems, strict=True):
            if problem:
                yield _row_finding(table, tuple(getattr(row, key.name) for key in keys), problem)
        session.expunge_all()


def _one_unreadable(session: Session, table: type[Base], name: tuple[object, ...]) -> Iterator[Finding]:
    try:
        row = session.get(table, name)
        problem = "" if row is None else _problem(session, row)
    except (ValueError, TypeError, RecursionError) as error:
        problem = f"a column that is no JSON: {error}"
    if problem:
        yield _row_finding(table, name, problem)


def _row_finding(table: type[Base], name: tuple[object, ...], problem: str) -> Finding:
    return Finding(
        kind="damaged",
        what=f"{table.__tablename__} row",
        name="/".join(map(str, name)),
        found=problem,
        remedy=_COPY,
    )


def _problem(session: Session, row: Base) -> str:
    """Return why a row holds no record, or one that differs from its columns; empty if it is sound."""
    reader = _READERS.get(type(row))
    try:
        differing = reader(session, row) if reader is not None else {}
    except DatabaseError as error:
        return f"no record can be read from it: {error.found}"
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        return f"no record can be read from it: {type(error).__name__}: {error}".split("\n")[0]
    for name, value in differing.items():
        if canonical(getattr(row, name)) != canonical(value):
            return f"{name} is {getattr(row, name)!r}, and its record says {value!r}"[:300]
    return ""


def _workload(_: Session, row: WorkloadTable) -> Mapping[str, object]:
    record = Workload.from_dict(row.record)
    return {name: getattr(record, name) for name in ("structure", "weights", "name", "batch")}


def _device(_: Session, row: DeviceTable) -> Mapping[str, object]:
    return {"device_class": Device.from_dict(row.record).device_class}


def _study(_: Session, row: StudyTable) -> Mapping[str, object]:
    parse_instant(row.created)
    study = study_record(row)
    return study_keys(study.identity)


def _trial(_: Session, row: TrialTable) -> Mapping[str, object]:
    parse_instant(row.created)
    record = trial_record(row)
    values = trial_values(record)
    canonical(values["failure"])
    configuration = record.configuration
    return {**values, "configuration_digest": configuration.digest, "backend": configuration.backend}


def _measurement(_: Session, row: MeasurementTable) -> Mapping[str, object]:
    parse_instant(row.created)
    return {"uid": measurement_uid(row.trial, row.role, Measurement.from_dict(row.record))}


def _kernel_trial(_: Session, row: KernelTrialTable) -> Mapping[str, object]:
    parse_instant(row.created)
    values = kernel_values(kernel_record(row.record))
    return {name: value for name, value in values.items() if name != "record"}


def _kernel_final(_: Session, row: KernelFinalTable) -> Mapping[str, object]:
    parse_instant(row.created)
    values = kernel_final_values(KernelFinal.from_dict(row.record))
    return {name: value for name, value in values.items() if name != "record"}


def _roofs(_: Session, row: RoofsTable) -> Mapping[str, object]:
    parse_instant(row.created)
    return roofs_values(Roofs.from_dict(row.record))


def _plan(_: Session, row: PlanTable) -> Mapping[str, object]:
    return plan_values(plan_of(row))


def _former_plan(_: Session, row: FormerPlanTable) -> Mapping[str, object]:
    return former_plan_values(plan_of(row))


_READERS: Mapping[type[Base], Callable[[Session, Any], Mapping[str, object]]] = {
    WorkloadTable: _workload,
    DeviceTable: _device,
    StudyTable: _study,
    TrialTable: _trial,
    MeasurementTable: _measurement,
    KernelTrialTable: _kernel_trial,
    KernelFinalTable: _kernel_final,
    RoofsTable: _roofs,
    PlanTable: _plan,
    FormerPlanTable: _former_plan,
}


def _dangling(store: Store) -> Iterator[Finding]:
    """Yield the rows that refer to a missing row, which a database without foreign keys allows."""
    with store.transactions.reading() as session:
        for table in Base.__subclasses__():
            for constraint in sorted(inspect(table).local_table.foreign_key_constraints, key=lambda c: str(c.name)):  # type: ignore[attr-defined]
                yield from _lost(session, table, constraint)


def _lost(session: Session, table: type[Base], constraint: ForeignKeyConstraint) -> Iterator[Finding]:
    keys = inspect(table).primary_key
    target = next(other for other in Base.__subclasses__() if other.__table__ is constraint.referred_table)
    referred = aliased(target)
    pairs = [(table.__table__.c[e.parent.name], getattr(referred, e.column.name)) for e in constraint.elements]
    there = select(literal(1)).where(and_(*(theirs == mine for mine, theirs in pairs))).correlate(table.__table__)
    query = select(*keys, *(mine for mine, _ in pairs)).where(~there.exists())
    for row in session.execute(query):
        missing = "/".join(map(str, row[len(keys) :]))
        yield Finding(
            kind="orphaned",
            what=f"{table.__tablename__} row",
            name="/".join(map(str, row[: len(keys)])),
            found=f"its {target.__tablename__} {missing} is missing",
            remedy=_COPY,
        )
