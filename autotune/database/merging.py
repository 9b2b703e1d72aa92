"""Writes the records of a parcel as rows; see :func:`autotune.database.exchange.merge_file`."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from autotune.database import former_plans, plans, trials
from autotune.database.kernel_finals import put_kernel_final
from autotune.database.kernel_trials import kernel_trial_key, supersede
from autotune.database.parcel import Parcel, TravellingKernelTrial, TravellingTrial
from autotune.database.roof_store import put_roofs
from autotune.database.rows import (
    kernel_values,
    measurement_uid,
    parse_instant,
    plan_of,
    study_keys,
    trial_values,
)
from autotune.database.schema import KernelTrialTable, MeasurementTable, PlanTable, StudyTable, TrialTable
from autotune.database.store import Store
from autotune.database.study_store import put_device, put_workload
from autotune.errors import DatabaseError
from autotune.records.identity import objective_content
from autotune.records.plan import Plan
from autotune.records.trial import Trial

KINDS = (
    "studies",
    "trials",
    "measurements",
    "kernel_trials",
    "kernel_finals",
    "roofs",
    "plans",
    "former_plans",
    "artifacts",
)
Counts = dict[str, dict[str, int]]


def put(session: Session, store: Store, parcel: Parcel) -> Counts:
    """Write the records that are new; returns how many of each kind were ``added`` and ``known``, without artifacts.

    Raises DatabaseError if a uid means something else here.
    """
    counts: Counts = {kind: {"added": 0, "known": 0} for kind in KINDS}

    def count(kind: str, new: bool) -> None:
        counts[kind]["added" if new else "known"] += 1

    for workload in parcel.workloads:
        put_workload(session, workload)
    for device in parcel.devices:
        put_device(session, device)
    here: dict[str, StudyTable] = {}
    for uid in sorted(study.uid for study in parcel.studies):
        here[uid], new = _put_study(session, parcel, uid)
        count("studies", new)
    kept = {digest for digest in parcel.artifacts if store.artifacts.has(digest)}
    free = {item.trial.uid for item in parcel.trials if _is_free(session, here[item.study], item.trial.number)}
    # The trials whose numbers are free come first, so that they keep their numbers.
    for trial in sorted(parcel.trials, key=lambda item: item.trial.uid not in free):
        if not _was_left_out(trial.trial):
            count("trials", _put_trial(session, here[trial.study], trial, kept))
    for item in parcel.measurements:
        new = session.get(MeasurementTable, measurement_uid(item.trial, item.role, item.measurement)) is None
        trials.add_measurement(session, item.trial, item.role, item.measurement, item.created)
        count("measurements", new)
    for kernel in parcel.kernel_trials:
        count("kernel_trials", _put_kernel_trial(session, kernel))
    for final in parcel.kernel_finals:
        count("kernel_finals", put_kernel_final(session, final.final, final.created))
    for roofs in parcel.roofs:
        count("roofs", put_roofs(session, roofs))
    replaced: set[str] = set()
    for plan in parcel.plans:
        new = _put_plan(session, plan, replaced)
        count("plans", new)
        if not new and _put_former_plan(session, plan):
            count("former_plans", True)
    for plan in parcel.former_plans:
        count("former_plans", _put_former_plan(session, plan))
    store.artifacts.discard(trials.unneeded(session, replaced))
    return counts


def _put_study(session: Session, parcel: Parcel, uid: str) -> tuple[StudyTable, bool]:
    """Return the row of the study with this one's identity, and whether it had to be added."""
    study = next(study for study in parcel.studies if study.uid == uid)
    keys = study_keys(study.identity)
    row = session.scalars(select(StudyTable).where(StudyTable.identity == keys["identity"])).first()
    if row is not None:
        if study.active_s > row.active_s:
            row.active_s, row.timings = study.active_s, dict(study.timings)
        row.state = "finished" if "finished" in (row.state, study.state) else "running"
        row.created = min(row.created, study.created)
        return row, False
    _refuse_clash(session.get(StudyTable, uid) is not None, f"study {uid}")
    names = set(StudyTable.__table__.columns.keys()) - {*keys, "objective"}
    row = StudyTable(
        **keys,
        objective=objective_content(study.objective),
        **{name: getattr(study, name) for name in names},
    )
    session.add(row)
    session.flush()
    return row, True


def _was_left_out(trial: Trial) -> bool:
    """Return whether the budget ended before a trial had a result: older versions wrote such rows, without a figure."""
    return trial.state == "pruned" and trial.latency_ms is None


def _is_free(session: Session, study: StudyTable, number: int) -> bool:
    same_number = select(TrialTable.uid).where(TrialTable.study == study.uid, TrialTable.number == number)
    return session.scalar(same_number) is None


def _put_trial(session: Session, study: StudyTable, incoming: TravellingTrial, kept: set[str]) -> bool:
    """Add a trial under its number, or under the study's next one if another has that; returns whether it is new."""
    trial = incoming.trial
    row = session.get(TrialTable, trial.uid)
    if row is not None:
        clashes = row.study != study.uid or row.configuration_digest != trial.configuration.digest
        _refuse_clash(clashes, f"trial {trial.uid}")
        return False
    number = trial.number if _is_free(session, study, trial.number) else trials.next_number(session, study.uid)
    values = trial_values(trial)
    values["artifact"] = trial.artifact if trial.artifact in kept else None
    session.add(
        TrialTable(
            uid=trial.uid,
            study=study.uid,
            number=number,
            attempt=trial.attempt,
            handed_back=0,
            backend=trial.configuration.backend,
            configuration=trial.configuration.as_dict(),
            configuration_digest=trial.configuration.digest,
            structure=study.structure,
            weights=study.weights,
            device_class=study.device_class,
            toolchain=trial.toolchain,
            tried_here=None,
            created=incoming.created,
            finished=incoming.finished,
            **values,
        )
    )
    session.flush()
    return True


def _put_kernel_trial(session: Session, incoming: TravellingKernelTrial) -> bool:
    """Add a kernel trial beside the trials of this machine; returns whether a row was written.

    One that the database has is written again only if it completes a trial that was lost with its worker.
    """
    values = kernel_values(incoming.trial)
    row = session.get(KernelTrialTable, incoming.uid)
    if row is None:
        session.add(KernelTrialTable(uid=incoming.uid, tried_here=None, created=incoming.created, **values))
        return True
    stored = (row.problem, row.device_class, row.toolchain, row.configuration)
    _refuse_clash(stored != kernel_trial_key(values), f"kernel trial {incoming.uid}")
    return supersede(row, values, incoming.created)


def _put_plan(session: Session, plan: Plan, replaced: set[str]) -> bool:
    """Keep the newer of two plans with one key; of two as old, the one with the greater uid. True if it is this one."""
    former = _present(session, plan)
    if former is not None and (parse_instant(plan.created), plan.uid) <= (former.created, former.uid):
        return False
    replaced |= plans.put(session, plan)
    return True


def _put_former_plan(session: Session, plan: Plan) -> bool:
    """Keep a plan beside the newer one of its key, if that was measured under another toolchain; true if it is new."""
    present = _present(session, plan)
    return former_plans.keep(session, plan, None if present is None else plan_of(present))


def _present(session: Session, plan: Plan) -> PlanTable | None:
    """Return the row of this plan's key."""
    row, named = plans.same_key(session, plan), session.get(PlanTable, plan.uid)
    _refuse_clash(named is not None and (row is None or row.uid != plan.uid), f"plan {plan.uid}")
    return row


def _refuse_clash(clashes: bool, record: str) -> None:
    if clashes:
        raise DatabaseError(
            "The file cannot be merged",
            found=f"{record}, which is something else in this database",
            expected="one uid for one thing",
        )
