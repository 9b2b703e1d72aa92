"""The tuning database as the rest of autotune sees it: records in, records out.

Longer than most modules because it is the whole of that view in one class: its methods are a transaction each around
what :mod:`trials`, :mod:`plans` and :mod:`leases` do.
"""

import copy
import dataclasses
import logging
import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from autotune.database import leases, own_trials, plans, trials
from autotune.database.artifacts import ArtifactStore
from autotune.database.engine import (
    Location,
    database_errors,
    driver_writing,
    engine_at,
    for_reading,
    for_writing,
    has_returning,
    locate,
    only_reads,
)
from autotune.database.kernel_trials import KernelTrials
from autotune.database.manifest import is_digest
from autotune.database.rows import (
    Role,
    StudyRow,
    instant,
    study_keys,
    study_record,
    trial_record,
)
from autotune.database.schema import DeviceTable, MeasurementTable, StudyTable, TrialTable, WorkloadTable
from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.records.identity import Conditions, Identity, PlanKey, objective_content
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.trial import Measurement, Trial
from autotune.records.workload import Workload

_log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Give the clock a store uses unless it is given another."""
    return datetime.now(timezone.utc)


class Store:
    """The tuning database and its artifacts; close it, or use it as a context manager.

    Safe to use from several threads and processes: one writes at a time. Every method may raise DatabaseError, and
    ``ValueError`` where it is given what cannot be true; nothing is half-written then.
    """

    def __init__(self, engine: Engine, location: Location, clock: Callable[[], datetime] = utc_now) -> None:
        self._engine = engine
        self._reader = for_reading(engine)
        self._looking_up = for_reading(engine, once=True)
        self._writer = for_writing(engine)
        self._own_writer = for_writing(engine, own=True)
        self._location = location
        self._clock = clock
        self._lease: leases.Lease | None = None
        self.artifacts = ArtifactStore(location.artifacts)
        self.kernels = KernelTrials(self)

    @classmethod
    def open(cls, url: str | None = None, *, create: bool = True, clock: Callable[[], datetime] = utc_now) -> "Store":
        """Open the database at a path or URL, else at ``AUTOTUNE_DB``, else in the user's data folder.

        Raises DatabaseError where there is none and ``create`` is false, or where it cannot be used.
        """
        location = locate(url)
        return cls(engine_at(location, create=create), location, clock)

    @property
    def location(self) -> str:
        """Where the database is, without a password."""
        return self._location.shown

    @property
    def read_only(self) -> bool:
        """Whether this process can only read the database: nothing is added, and what writes raises DatabaseError."""
        with self.reading() as session:
            return only_reads(session.connection())

    def close(self) -> None:
        """Give back the connections, and delete copies of artifacts that were opened."""
        self._engine.dispose()
        self.artifacts.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _session(self, engine: Engine) -> Iterator[Session]:
        with database_errors(self._location), Session(engine) as session, session.begin():
            yield session

    def reading(self) -> AbstractContextManager[Session]:
        """One read transaction, for the modules of this package; what it sees does not change."""
        return self._session(self._reader)

    @contextmanager
    def writing(self, *, own: bool = False) -> Iterator[Session]:
        """One write transaction; for the modules of this package. Under a lease it begins by looking that up.

        ``own`` says that it touches nothing but the study of the lease, so that coordinators need not wait for one
        another.
        """
        with self._session(self._own_writer if own and self._lease is not None else self._writer) as session:
            if self._lease is not None:
                leases.check(session, self._lease)
            yield session

    @contextmanager
    def _own_statements(self) -> Iterator[tuple[str, own_trials.Execute]]:
        """For what :mod:`own_trials` writes: its statements look the lease up themselves."""
        with database_errors(self._location), driver_writing(self._engine) as execute:
            yield self._engine.dialect.name, execute

    def now(self) -> str:
        """Give the store's clock, as the database keeps it."""
        return instant(self._clock())

    # Leases

    def holder(self, study_uid: str) -> leases.Held | None:
        """Give who coordinates a study, if anyone does."""
        with self.reading() as session:
            return leases.holder(session, study_uid, self.now())

    def take_lease(self, study_uid: str, owner: leases.Owner, watched: leases.Held | None = None) -> leases.Lease:
        """Become the coordinator of a study; raises StudyHeldError where another one is, see :func:`leases.take`."""
        with self.writing() as session:
            return leases.take(session, study_uid, owner, self.now(), watched)

    def renew_lease(self, lease: leases.Lease) -> None:
        """Say that the coordinator lives; raises StudyTakenOverError where it was given up."""
        with self.writing() as session:
            leases.renew(session, lease, self.now())

    def release_lease(self, lease: leases.Lease) -> None:
        """Let another process coordinate the study."""
        with self.writing() as session:
            leases.release(session, lease)

    def under(self, lease: leases.Lease) -> "Store":
        """Give this store for a coordinator: each of its writes raises StudyTakenOverError once the lease is lost."""
        view = copy.copy(self)
        view._lease = lease
        return view

    # Studies

    def begin_study(
        self,
        name: str,
        workload: Workload,
        device: Device,
        objective: Objective,
        serve_as: str,
        space_digest: str,
        seed: int,
        settings: Mapping[str, Any],
        conditions: Conditions | None = None,
    ) -> StudyRow:
        """Return the study of this identity (see :class:`autotune.records.identity.Identity`); new or known.

        A known one stays what it is: see :meth:`describe_study` and :meth:`reopen_study`.
        """
        identity = Identity(
            name=name, structure=workload.structure, weights=workload.weights, device_class=device.device_class,
            objective=objective, serve_as=serve_as, space=space_digest, seed=seed, conditions=conditions,
        )  # fmt: skip
        keys = study_keys(identity)
        with self.writing() as session:
            row = session.scalars(select(StudyTable).where(StudyTable.identity == keys["identity"])).first()
            if row is None:
                put_workload(session, workload)
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
                    timings={},
                    created=self.now(),
                )
                session.add(row)
                session.flush()
            return study_record(row)

    def describe_study(self, uid: str, settings: Mapping[str, Any]) -> None:
        """Keep the settings that a study is run with now."""
        with self.writing() as session:
            trials.study_row(session, uid).settings = dict(settings)

    def study(self, uid: str) -> StudyRow:
        """Give the study with this uid; raises ``ValueError`` where there is none."""
        with self.reading() as session:
            return study_record(trials.study_row(session, uid))

    def studies(self, name: str | None = None, batch: int | None = None) -> list[StudyRow]:
        """Studies by name and batch, in the order they were begun."""
        query = select(StudyTable).order_by(StudyTable.created, StudyTable.uid)
        if name is not None:
            query = query.where(StudyTable.name == name)
        if batch is not None:
            query = query.where(StudyTable.batch == batch)
        with self.reading() as session:
            return [study_record(row) for row in session.scalars(query)]

    def workload(self, study_uid: str) -> Workload:
        """Give the workload of a study."""
        with self.reading() as session:
            study = trials.study_row(session, study_uid)
            return Workload.from_dict(session.get_one(WorkloadTable, (study.structure, study.weights)).record)

    def device(self, device_class: str) -> Device:
        """Give the first device of a class that was seen; raises ``ValueError`` where there was none."""
        with self.reading() as session:
            row = session.get(DeviceTable, device_class)
            if row is None:
                raise ValueError(f"the database has no device of class {device_class!r}")
            return Device.from_dict(row.record)

    def add_active_time(self, study_uid: str, seconds: float) -> None:
        """Add to the search time that a study has spent."""
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"search time is a number of seconds that is not negative, found {seconds!r}")
        with self.writing(own=True) as session:
            trials.study_row(session, study_uid).active_s += seconds

    def finish_study(self, uid: str, timings: Mapping[str, Any]) -> None:
        """Set a study to finished, with the split of its time."""
        with self.writing() as session:
            row = trials.study_row(session, uid)
            row.state, row.timings = "finished", dict(timings)

    def reopen_study(self, uid: str) -> None:
        """Set a study to running again; its trials, time and timings stay."""
        with self.writing() as session:
            trials.study_row(session, uid).state = "running"

    def note_undecided(self, uid: str, reason: str) -> None:
        """Keep why the finals of a study could not decide; it stays open until they do."""
        with self.writing() as session:
            row = trials.study_row(session, uid)
            row.timings = {**row.timings, "undecided": reason}

    # Trials

    def claim_trial(self, study_uid: str, configuration: Configuration, toolchain_digest: str) -> Trial:
        """Write the row of a trial, in state running, before its build.

        One that was cut off by the death of its coordinator is taken over under its number, with the next attempt; or
        it has failed, where that has happened too often. Raises ``ValueError`` where the study has finished this
        configuration.
        """
        if self._lease is not None and has_returning(self._engine):
            with self._own_statements() as (kind, execute):
                begun = own_trials.begin(
                    kind, execute, self._lease, study_uid, configuration, toolchain_digest, self.now()
                )
            if begun is not None:
                return begun
        with self.writing(own=True) as session:
            study = trials.study_row(session, study_uid)
            return trials.claim(session, study, configuration, toolchain_digest, self.now())

    def hand_back(self, claimed: Sequence[Trial]) -> None:
        """Let the running attempts of these trials not count against them: they were stopped in good order."""
        with self.writing(own=True) as session:
            trials.hand_back(session, claimed)

    def withdraw_trial(self, trial: Trial) -> None:
        """Delete the row of a claimed trial that has no result: the study may try its configuration again later."""
        with self.writing(own=True) as session:
            trials.withdraw(session, trial)

    def earlier_trial(
        self, identity: Identity, toolchain_digest: str, configuration: Configuration, kernels: str = ""
    ) -> Trial | None:
        """Return a trial of any study that may be taken over: a complete one or, if there is none, a failed one.

        It was judged and timed under the same conditions (:attr:`autotune.records.identity.Identity.trial`), on the
        same model and device class, built by the same ``toolchain_digest`` with the same ``kernels``. Kinds of failure
        that put a configuration into quarantine do not count: see :meth:`quarantined_by`.
        """
        if identity.trial is None:
            return None
        with self.reading() as session:
            return trials.earlier(session, identity, toolchain_digest, configuration, kernels)

    def quarantined_by(
        self, structure: str, device_class: str, toolchain_digest: str, configuration: Configuration
    ) -> tuple[StudyRow, Trial] | None:
        """Give the trial for whose sake a configuration is not built again under a toolchain, and its study.

        It took its process down, with these or other weights, and nothing has shown since that it works.
        """
        with self.reading() as session:
            return trials.quarantined_by(session, structure, device_class, toolchain_digest, configuration)

    def finish_trial(self, trial: Trial, measurements: Mapping[Role, Measurement] | None = None) -> None:
        """Write what a claimed trial came to, and its measurements, in one transaction.

        Doing it twice is doing it once; later measurements of a finished trial may be added. Raises ``ValueError``
        where the trial was taken over since, or is finished with another result.
        """
        if self._lease is not None and has_returning(self._engine):
            with self._own_statements() as (kind, execute):
                done = own_trials.end(kind, execute, self._lease, trial, measurements or {}, self.now())
            if done:
                return
        with self.writing(own=True) as session:
            trials.finish(session, trial, measurements or {}, self.now())

    def add_measurement(self, trial_uid: str, role: Role, measurement: Measurement) -> None:
        """Keep one more measurement of a trial, such as that of the finals; the same one is kept once."""
        with self.writing(own=True) as session:
            trials.trial_row(session, trial_uid)
            trials.add_measurement(session, trial_uid, role, measurement, self.now())

    def trial(self, uid: str) -> Trial:
        """Give the trial with this uid; raises ``ValueError`` where there is none."""
        with self.reading() as session:
            return trial_record(trials.trial_row(session, uid))

    def trials(self, study_uid: str, failed: bool = False) -> list[Trial]:
        """Give the trials of a study by number, all or the failed ones."""
        query = select(TrialTable).where(TrialTable.study == study_uid).order_by(TrialTable.number)
        if failed:
            query = query.where(TrialTable.state == "failed")
        with self.reading() as session:
            return [trial_record(row) for row in session.scalars(query)]

    def measurements(self, trial_uid: str, role: Role | None = None) -> list[Measurement]:
        """Give the measurements of a trial in the order they were written, in one role or in all."""
        query = select(MeasurementTable).where(MeasurementTable.trial == trial_uid)
        if role is not None:
            query = query.where(MeasurementTable.role == role)
        with self.reading() as session:
            rows = session.scalars(query.order_by(MeasurementTable.created, MeasurementTable.uid))
            return [Measurement.from_dict(row.record) for row in rows]

    # Artifacts

    def keep_artifact(self, trial_uid: str, digest: str, kernels: str) -> None:
        """Name the artifact of a trial that was built again, and the digest of the tuned kernels that are in it."""
        if not is_digest(digest):
            raise ValueError(f"{digest!r} names no artifact")
        with self.writing() as session:
            row = trials.trial_row(session, trial_uid)
            row.artifact, row.kernels = digest, kernels

    def drop_unnamed(self, digest: str) -> None:
        """Drop an artifact that no trial came to name, unless another trial or a plan needs it."""
        with self.writing() as session:
            self.discard(trials.unneeded(session, {digest}))

    def drop_losers(self, study_uid: str, keep: set[str]) -> None:
        """Drop the artifacts of a study's trials except those whose uid is in ``keep``; the rows stay."""
        with self.writing() as session:
            rows = TrialTable.uid.not_in(sorted(keep))
            self.discard(trials.release(session, TrialTable.study == study_uid, rows))

    def discard(self, digests: set[str]) -> None:
        """Delete artifacts; inside the transaction that found them unneeded, so that no other comes to need them."""
        for digest in sorted(digests):
            self.artifacts.remove(digest)
        if digests:
            _log.info("dropped %d artifacts", len(digests))

    # Plans

    def promote(self, plan: Plan) -> None:
        """Keep a plan in place of the one of its structure, weights, device class, objective and serving format."""
        if not plan.created:
            plan = dataclasses.replace(plan, created=self.now())
        with self.writing() as session:
            self.discard(trials.unneeded(session, plans.put(session, plan)))

    def find_plan(self, key: PlanKey, weights: str | None = None) -> Plan | None:
        """Return the fastest plan that serves: one for these weights, else one for other weights of the same structure.

        Among them one that answers in the form asked for comes first. A plan found under looser constraints never
        serves; ``any`` is served by plans of every format. Whether its artifact fits the weights and the toolchain at
        hand is for the caller to see.
        """
        with database_errors(self._location), self._looking_up.connect() as connection:
            return plans.find(connection, key, weights)

    def nearest_plans(self, key: PlanKey, name: str, former: str = "") -> list[Plan]:
        """Return plans that come near to a request that none serves, nearest first: of its structure, or of its name.

        ``former`` is the structure as fingerprint 1 gave it, if that is another one.
        """
        with database_errors(self._location), self._looking_up.connect() as connection:
            return plans.nearest(connection, key, name, former)

    def plans(self, name: str | None = None, batch: int | None = None, device: str | None = None) -> list[Plan]:
        """Plans by name, batch and device, which is any part of a SKU that fits one SKU only (else DeviceError)."""
        with self.reading() as session:
            return plans.listed(session, name, batch, device)

    def plan(self, uid: str) -> Plan:
        """Give the plan with this uid; raises ``ValueError`` where there is none."""
        with self.reading() as session:
            return plans.by_uid(session, uid)

    def replace_plan_artifact(
        self, plan_uid: str, digest: str, weights: str, toolchain: Toolchain, **changes: Any
    ) -> Plan:
        """Give a plan the artifact that was built again from its configuration and passed the gate again.

        ``changes`` are other fields of the plan, such as ``form``, ``kernels`` or new figures. With the plan's own
        weights and form it is changed in place. With others a second plan is kept beside it, so that two models of one
        structure do not take each other's artifact away.
        """
        with self.writing() as session:
            former = plans.by_uid(session, plan_uid)
            plan = dataclasses.replace(former, artifact=digest, weights=weights, toolchain=toolchain, **changes)
            if plan.weights != former.weights or former.form not in ("", plan.form):
                plan = dataclasses.replace(plan, uid=uuid.uuid4().hex)
            self.discard(trials.unneeded(session, plans.put(session, plan) - {digest}))
            return plan


def put_workload(session: Session, workload: Workload) -> None:
    """Keep a workload unless it is known."""
    if session.get(WorkloadTable, (workload.structure, workload.weights)) is None:
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


def put_device(session: Session, device: Device) -> None:
    """Keep a device unless one of its class is known."""
    if session.get(DeviceTable, device.device_class) is None:
        session.add(DeviceTable(device_class=device.device_class, record=device.as_dict()))
        session.flush()
