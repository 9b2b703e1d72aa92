"""The studies of the tuning database: StudyStore, the attribute ``studies`` of a store."""

import math
import uuid
from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from autotune.database.plan_rows import readable
from autotune.database.rows import StudyLimits, StudyRow, study_keys, study_record
from autotune.database.schema import DeviceTable, KernelTrialTable, StudyTable, TrialTable, WorkloadTable
from autotune.database.transactions import Transactions
from autotune.database.trials import study_row
from autotune.records.device import Device
from autotune.records.identity import Conditions, Identity, objective_content
from autotune.records.objective import Objective
from autotune.records.schema import KEY as SCHEMA
from autotune.records.search_curve import SearchCurve
from autotune.records.study_start import StudyStart
from autotune.records.workload import Workload

WORK = ("flops", "traffic_bytes")
"""The fields of a workload that earlier versions did not have."""

KEPT = ("start", "ended_s", "curve")
"""The timings of a study that belong to all its runs, and stay if a run that ends replaces the others."""


class StudyStore:
    """Studies, their workloads and their devices; errors as those of :class:`autotune.database.store.Store`."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def begin(
        self,
        name: str,
        workload: Workload,
        device: Device,
        objective: Objective,
        serve_as: str,
        space_digest: str,
        seed: int,
        settings: Mapping[str, object],
        conditions: Conditions | None = None,
        limits: StudyLimits | None = None,
    ) -> StudyRow:
        """Return the study of this identity (:class:`autotune.records.identity.Identity`), and add it if it is new.

        One that exists stays as it is: see :meth:`describe` and :meth:`reopen`. Only the work of its workload is added
        if an earlier version did not count it. A new study keeps its ``limits`` and the number of trials that the
        database has now (:attr:`StudyRow.start`), if it is given limits.
        """
        identity = Identity(
            name=name, structure=workload.structure, weights=workload.weights, device_class=device.device_class,
            objective=objective, serve_as=serve_as, space=space_digest, seed=seed, conditions=conditions,
        )  # fmt: skip
        keys = study_keys(identity)
        with self._transactions.writing() as session:
            row = session.scalars(select(StudyTable).where(StudyTable.identity == keys["identity"])).first()
            put_workload(session, workload)
            if row is None:
                start = None if limits is None else _start(session, identity, limits)
                put_device(session, device)
                row = StudyTable(
                    uid=uuid.uuid4().hex,
                    **keys,
                    name=name,
                    batch=workload.batch,
                    structure=workload.structure,
                    weights=workload.weights,
                    device_class=device.device_class,
                    objective=objective_content(objective),
                    serve_as=serve_as,
                    space_digest=space_digest,
                    seed=seed,
                    settings=dict(settings),
                    state="running",
                    active_s=0.0,
                    timings={} if start is None else {"start": start.as_dict()},
                    created=self._transactions.now(),
                )
                session.add(row)
                session.flush()
            return study_record(row)

    def get(self, uid: str) -> StudyRow:
        """Return the study with this uid; raises ``ValueError`` if there is none."""
        with self._transactions.reading() as session:
            return study_record(study_row(session, uid))

    def list(self, name: str | None = None, batch: int | None = None) -> Sequence[StudyRow]:
        """Return the studies of a name and a batch, or all of them, in the order they were begun."""
        query = select(StudyTable).order_by(StudyTable.created, StudyTable.uid)
        if name is not None:
            query = query.where(StudyTable.name == name)
        if batch is not None:
            query = query.where(StudyTable.batch == batch)
        with self._transactions.reading() as session:
            return [study_record(row) for row in session.scalars(query)]

    def workload(self, uid: str) -> Workload:
        """Return the workload of a study."""
        with self._transactions.reading() as session:
            study = study_row(session, uid)
            return Workload.from_dict(session.get_one(WorkloadTable, (study.structure, study.weights)).record)

    def workloads(self) -> Sequence[Workload]:
        """Return all workloads; DatabaseError if a row holds none."""
        query = select(WorkloadTable).order_by(WorkloadTable.structure, WorkloadTable.weights)
        with self._transactions.reading() as session, readable("A workload", expected="one that autotune captured"):
            return [Workload.from_dict(row.record) for row in session.scalars(query)]

    def device(self, device_class: str) -> Device:
        """Return the first device of a class that ran a study; raises ``ValueError`` if there was none."""
        with self._transactions.reading() as session:
            row = session.get(DeviceTable, device_class)
            if row is None:
                raise ValueError(f"the database has no device of class {device_class!r}")
            return Device.from_dict(row.record)

    def describe(self, uid: str, settings: Mapping[str, object]) -> None:
        """Store the settings that a study is run with now."""
        with self._transactions.writing() as session:
            study_row(session, uid).settings = dict(settings)

    def add_active_time(self, uid: str, seconds: float, ended_s: Mapping[str, float] | None = None) -> None:
        """Add to the search time that a study has spent.

        ``ended_s`` holds the whole search time of the study at the end of some of its trials, by their uids.
        """
        ended_s = ended_s or {}
        for value in (seconds, *ended_s.values()):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"search time is a number of seconds that is not negative, found {value!r}")
        with self._transactions.writing(own=True) as session:
            row = study_row(session, uid)
            row.active_s += seconds
            if ended_s:
                row.timings = {**row.timings, "ended_s": {**study_record(row).ended_s, **ended_s}}

    def note_continued(self, uid: str, limits: StudyLimits) -> None:
        """Store the limits of a run that continues the search of a study; no-op if its start is unknown."""
        with self._transactions.writing() as session:
            row = study_row(session, uid)
            start = study_record(row).start
            if start is not None:
                row.timings = {
                    **row.timings,
                    "start": start.continued(trials=limits["trials"], budget_s=limits["budget_s"]).as_dict(),
                }

    def note_curve(self, uid: str, curve: SearchCurve | None) -> None:
        """Store the curve of a study's search in place of an earlier one; ``None`` deletes that."""
        with self._transactions.writing() as session:
            row = study_row(session, uid)
            others = {name: value for name, value in row.timings.items() if name != "curve"}
            row.timings = others if curve is None else {**others, "curve": curve.as_dict()}

    def finish(self, uid: str, timings: Mapping[str, object]) -> None:
        """Set a study to finished, with the split of its time; the timings of all its runs stay (:data:`KEPT`)."""
        with self._transactions.writing() as session:
            row = study_row(session, uid)
            kept = {name: row.timings[name] for name in KEPT if name in row.timings}
            row.state, row.timings = "finished", {**timings, **kept}

    def reopen(self, uid: str) -> None:
        """Set a study to running again; its trials, time and timings stay."""
        with self._transactions.writing() as session:
            study_row(session, uid).state = "running"

    def note_undecided(self, uid: str, reason: str) -> None:
        """Store why the finals of a study could not decide; the study stays open until they do."""
        with self._transactions.writing() as session:
            row = study_row(session, uid)
            row.timings = {**row.timings, "undecided": reason}


def _start(session: Session, identity: Identity, limits: StudyLimits) -> StudyStart:
    """Count the trials that the database has before a study begins."""
    of_class = session.scalar(select(func.count()).where(KernelTrialTable.device_class == identity.device_class))
    kernel_trials = session.scalar(select(func.count()).select_from(KernelTrialTable))
    ended = (TrialTable.structure == identity.structure, TrialTable.state != "running")
    model_trials = session.scalar(select(func.count()).where(*ended))
    return StudyStart(
        kernel_trials=of_class or 0,
        other_kernel_trials=(kernel_trials or 0) - (of_class or 0),
        model_trials=model_trials or 0,
        **limits,
    )


def put_workload(session: Session, workload: Workload) -> None:
    """Add a workload, or the work of one that the database has without."""
    row = session.get(WorkloadTable, (workload.structure, workload.weights))
    if row is not None:
        _add_work(row, workload)
    else:
        session.add(
            WorkloadTable(
                structure=workload.structure,
                weights=workload.weights,
                name=workload.name,
                batch=workload.batch,
                record=workload.as_dict(),
            )
        )
        session.flush()


def _add_work(row: WorkloadTable, workload: Workload) -> None:
    """Add the numbers that the record of a row lacks; the rest of it stays as it is."""
    stored, counted = row.record, workload.as_dict()
    missing = {name for name in WORK if name in counted and stored.get(name) is None}
    if missing:
        row.record = {**stored, **{name: counted[name] for name in (*missing, SCHEMA)}}


def put_device(session: Session, device: Device) -> None:
    """Add a device, unless the database has one of its class."""
    if session.get(DeviceTable, device.device_class) is None:
        session.add(DeviceTable(device_class=device.device_class, record=device.as_dict()))
        session.flush()
