"""Queries on studies and trials; each runs in the transaction of the session it gets."""

import uuid
from collections.abc import Mapping, Sequence

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from autotune.database.rows import (
    Role,
    StudyRow,
    failure_dict,
    failure_record,
    measurement_uid,
    study_record,
    trial_record,
    trial_values,
)
from autotune.database.schema import MeasurementTable, PlanTable, StudyTable, TrialTable
from autotune.records.configuration import Configuration
from autotune.records.identity import Identity
from autotune.records.trial import Failure, FailureKind, Measurement, Trial

QUARANTINE: frozenset[FailureKind] = frozenset({"crash", "timeout", "out_of_memory", "log_flood", "protocol"})
"""Kinds of failure that took a worker down: such a configuration is not built again under the same toolchain."""

_REBUILT = ("artifact", "kernels")
"""The columns of a finished trial that change if it is built again."""

MOST_ATTEMPTS = 3
"""A trial whose coordinator died this often while it ran has failed. One death may be chance and two bad luck; from the
second attempt on it runs alone, so that no other candidate is blamed for the third."""


def study_row(session: Session, uid: str) -> StudyTable:
    """Return the row of a study; raises ``ValueError`` if there is none."""
    row = session.get(StudyTable, uid)
    if row is None:
        raise ValueError(f"the database has no study {uid!r}")
    return row


def trial_row(session: Session, uid: str) -> TrialTable:
    """Return the row of a trial; raises ``ValueError`` if there is none."""
    row = session.get(TrialTable, uid)
    if row is None:
        raise ValueError(f"the database has no trial {uid!r}")
    return row


def next_number(session: Session, study_uid: str) -> int:
    """Return the number of a study's next trial; only right inside a write transaction."""
    last = session.scalar(select(func.max(TrialTable.number)).where(TrialTable.study == study_uid))
    return 0 if last is None else last + 1


def find(session: Session, study: StudyTable, configuration: Configuration, toolchain: str) -> TrialTable | None:
    """Return the trial of a configuration in a study under a toolchain; its own first, then complete ones."""
    return session.scalars(
        select(TrialTable)
        .where(
            TrialTable.study == study.uid,
            TrialTable.configuration_digest == configuration.digest,
            TrialTable.toolchain == toolchain,
            TrialTable.weights == study.weights,
        )
        .order_by(TrialTable.tried_here.is_(None), TrialTable.state != "complete", TrialTable.number)
    ).first()


def claim(session: Session, study: StudyTable, configuration: Configuration, toolchain: str, now: str) -> Trial:
    """See :meth:`autotune.database.trial_store.TrialStore.claim`."""
    row = find(session, study, configuration, toolchain)
    if row is not None and row.state != "running":
        raise ValueError(f"study {study.name} has tried {configuration} already, as trial {row.number}")
    cut_off = row or _running(session, study, configuration)
    if cut_off is not None:
        _take_over(cut_off, toolchain, now)
        return trial_record(cut_off)
    row = TrialTable(
        uid=uuid.uuid4().hex,
        study=study.uid,
        number=next_number(session, study.uid),
        attempt=1,
        handed_back=0,
        backend=configuration.backend,
        configuration=configuration.as_dict(),
        configuration_digest=configuration.digest,
        structure=study.structure,
        weights=study.weights,
        device_class=study.device_class,
        toolchain=toolchain,
        state="running",
        reused=False,
        tried_here=True,
        created=now,
    )
    session.add(row)
    session.flush()
    return trial_record(row)


def _running(session: Session, study: StudyTable, configuration: Configuration) -> TrialTable | None:
    """Return the running trial of a configuration in a study, under any toolchain."""
    return session.scalars(
        select(TrialTable).where(
            TrialTable.study == study.uid,
            TrialTable.configuration_digest == configuration.digest,
            TrialTable.state == "running",
        )
    ).first()


def _take_over(row: TrialTable, toolchain: str, now: str) -> None:
    """Begin the next attempt of a trial that was cut off, or fail it; another toolchain forgives its deaths."""
    if row.toolchain != toolchain:
        row.toolchain, row.handed_back = toolchain, row.attempt
    deaths = row.attempt - row.handed_back
    if deaths < MOST_ATTEMPTS:
        row.attempt += 1
        return
    detail = f"given up: in {deaths} attempts the coordinator, or its host, died while this was built or measured"
    row.state, row.finished = "failed", now
    row.failure = failure_dict(Failure(stage="build", kind="crash", detail=detail))


def hand_back(session: Session, claimed: Sequence[Trial]) -> None:
    """See :meth:`autotune.database.trial_store.TrialStore.hand_back`."""
    for trial in claimed:
        same = (TrialTable.uid == trial.uid, TrialTable.attempt == trial.attempt, TrialTable.state == "running")
        session.execute(update(TrialTable).where(*same).values(handed_back=TrialTable.handed_back + 1))


def withdraw(session: Session, trial: Trial) -> None:
    """See :meth:`autotune.database.trial_store.TrialStore.withdraw`."""
    same = (TrialTable.uid == trial.uid, TrialTable.attempt == trial.attempt, TrialTable.state == "running")
    session.execute(delete(TrialTable).where(*same))


def quarantined_by(
    session: Session, structure: str, device_class: str, toolchain: str, configuration: Configuration
) -> tuple[StudyRow, Trial] | None:
    """See :meth:`autotune.database.trial_store.TrialStore.quarantined_by`."""
    rows = session.scalars(
        select(TrialTable)
        .where(
            TrialTable.structure == structure,
            TrialTable.device_class == device_class,
            TrialTable.toolchain == toolchain,
            TrialTable.configuration_digest == configuration.digest,
            TrialTable.state.in_(("complete", "pruned", "failed")),
            TrialTable.reused.is_(False),
        )
        .order_by(TrialTable.finished.desc(), TrialTable.uid)
    )
    for row in rows:
        failure = failure_record(row.failure)
        if failure is not None and failure.kind in QUARANTINE:
            return study_record(study_row(session, row.study)), trial_record(row)
        if row.latency_ms is not None:
            return None  # it has run since
    return None


def earlier(
    session: Session, identity: Identity, toolchain: str, configuration: Configuration, kernels: str
) -> Trial | None:
    """See :meth:`autotune.database.trial_store.TrialStore.earlier`."""
    rows = session.scalars(
        select(TrialTable)
        .join(StudyTable, TrialTable.study == StudyTable.uid)
        .where(
            TrialTable.structure == identity.structure,
            TrialTable.weights == identity.weights,
            TrialTable.device_class == identity.device_class,
            TrialTable.toolchain == toolchain,
            TrialTable.configuration_digest == configuration.digest,
            TrialTable.kernels == kernels,
            TrialTable.state.in_(("complete", "failed")),
            StudyTable.reuse == identity.trial,
        )
        .order_by(TrialTable.state != "complete", TrialTable.reused, TrialTable.finished.desc(), TrialTable.uid)
    )
    for row in rows:
        failure = failure_record(row.failure)
        if failure is None or failure.kind not in QUARANTINE:
            return trial_record(row)
    return None


def finish(session: Session, trial: Trial, measurements: Mapping[Role, Measurement], now: str) -> None:
    """See :meth:`autotune.database.trial_store.TrialStore.finish`."""
    if trial.state == "running":
        raise ValueError(f"trial {trial.number} is still running")
    row, values = trial_row(session, trial.uid), trial_values(trial)
    if (row.number, row.configuration_digest) != (trial.number, trial.configuration.digest):
        raise ValueError(
            f"trial {trial.uid} is {row.configuration} under number {row.number}, not the trial of this call"
        )
    if row.attempt != trial.attempt:
        raise ValueError(
            f"trial {trial.number} was taken over: attempt {trial.attempt} is over, attempt {row.attempt} runs"
        )
    if row.state == "running":
        for name, value in values.items():
            setattr(row, name, value)
        row.finished = now
        session.flush()
    elif any(getattr(row, name) != value for name, value in values.items() if name not in _REBUILT):
        raise ValueError(f"trial {trial.number} is finished as {row.state} and keeps its result")
    for role, measurement in measurements.items():
        add_measurement(session, trial.uid, role, measurement, now)


def add_measurement(session: Session, trial_uid: str, role: Role, measurement: Measurement, now: str) -> bool:
    """Store a measurement of a trial; returns whether it is new."""
    uid = measurement_uid(trial_uid, role, measurement)
    if session.get(MeasurementTable, uid) is not None:
        return False
    session.add(MeasurementTable(uid=uid, trial=trial_uid, role=role, created=now, record=measurement.as_dict()))
    session.flush()
    return True


def unneeded(session: Session, digests: set[str]) -> set[str]:
    """Return those artifacts that neither a trial nor a plan names."""
    session.flush()
    for column in (TrialTable.artifact, PlanTable.artifact):
        digests = digests - set(session.scalars(select(column).where(column.in_(sorted(digests))).distinct()))
    return digests


def release(session: Session, *conditions: ColumnElement[bool]) -> set[str]:
    """Set the artifact of the trials under these conditions to null; returns the artifacts that are unneeded then."""
    held = set(session.scalars(select(TrialTable.artifact).where(TrialTable.artifact.is_not(None), *conditions)))
    session.execute(update(TrialTable).where(*conditions).values(artifact=None))
    return unneeded(session, {digest for digest in held if digest is not None})
