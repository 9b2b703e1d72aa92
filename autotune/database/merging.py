"""The records of a parcel become rows; see :func:`autotune.database.exchange.merge_file`."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from autotune.database import plans, trials
from autotune.database.kernel_trials import supersede
from autotune.database.parcel import Parcel, TravellingKernelTrial, TravellingTrial
from autotune.database.rows import (
    kernel_values,
    measurement_uid,
    parse_instant,
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

KINDS = ("studies", "trials", "measurements", "kernel_trials", "plans", "artifacts")
Counts = dict[str, dict[str, int]]


def put(session: Session, store: Store, parcel: Parcel) -> Counts:
    """Write what is not known yet; gives how many of each kind were ``added`` and ``known``, artifacts left out.

    Raises DatabaseError where a uid means something else here.
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
    free = {each.trial.uid for each in parcel.trials if _is_free(session, here[each.study], each.trial.number)}
    for each in sorted(parcel.trials, key=lambda each: each.trial.uid not in free):  # those keep their numbers
        if not _was_left_out(each.trial):
            count("trials", _put_trial(session, here[each.study], each, kept))
    for item in parcel.measurements:
        new = session.get(MeasurementTable, measurement_uid(item.trial, item.role, item.measurement)) is None
        trials.add_measurement(session, item.trial, item.role, item.measurement, item.created)
        count("measurements", new)
    for kernel in parcel.kernel_trials:
        count("kernel_trials", _put_kernel_trial(session, kernel))
    replaced: set[str] = set()
    for plan in parcel.plans:
        count("plans", _put_plan(session, plan, replaced))
    store.artifacts.discard(trials.unneeded(session, replaced))
    return counts


def _put_study(session: Session, parcel: Parcel, uid: str) -> tuple[StudyTable, bool]:
    """Give the row of the study with this one's identity, made where there is none, and whether it is new."""
    study = next(each for each in parcel.studies if each.uid == uid)
    keys = study_keys(study.identity)
    row = session.scalars(select(StudyTable).where(StudyTable.identity == keys["identity"])).first()
    if row is not None:
        if study.active_s > row.active_s:
            row.active_s, row.timings = study.active_s, dict(study.timings)
        row.state = "finished" if "finished" in (row.state, study.state) else "running"
        row.created = min(row.created, study.created)
        return row, False
    _refuse_known(session.get(StudyTable, uid) is not None, f"study {uid}")
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
    """Whether the budget ended before a trial had a result: older versions wrote such rows, which say nothing."""
    return trial.state == "pruned" and trial.latency_ms is None


def _is_free(session: Session, study: StudyTable, number: int) -> bool:
    taken = select(TrialTable.uid).where(TrialTable.study == study.uid, TrialTable.number == number)
    return session.scalar(taken) is None


def _put_trial(session: Session, study: StudyTable, each: TravellingTrial, kept: set[str]) -> bool:
    """Add a trial under its number, or under the study's next one where that is taken; whether it is new."""
    trial = each.trial
    known = session.get(TrialTable, trial.uid)
    if known is not None:
        other = known.study != study.uid or known.configuration_digest != trial.configuration.digest
        _refuse_known(other, f"trial {trial.uid}")
        return False
    number = trial.number if _is_free(session, study, trial.number) else trials.next_number(session, study.uid)
    values = trial_values(trial) | {"artifact": trial.artifact if trial.artifact in kept else None}
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
            created=each.created,
            finished=each.finished,
            **values,
        )
    )
    session.flush()
    return True


def _put_kernel_trial(session: Session, each: TravellingKernelTrial) -> bool:
    """Add a kernel trial beside what was tried here; whether it is new, or completes what was lost with its worker."""
    values = kernel_values(each.trial)
    known = session.get(KernelTrialTable, each.uid)
    if known is None:
        session.add(KernelTrialTable(uid=each.uid, tried_here=None, created=each.created, **values))
        return True
    key = ("problem", "device_class", "toolchain", "configuration")
    _refuse_known(any(getattr(known, name) != values[name] for name in key), f"kernel trial {each.uid}")
    return supersede(known, values, each.created)


def _put_plan(session: Session, plan: Plan, replaced: set[str]) -> bool:
    """Keep the newer of two plans with one key (as old: the one with the greater uid); whether it is this one."""
    former = plans.same_key(session, plan)
    named = session.get(PlanTable, plan.uid)
    _refuse_known(named is not None and (former is None or former.uid != plan.uid), f"plan {plan.uid}")
    if former is not None and (parse_instant(plan.created), plan.uid) <= (former.created, former.uid):
        return False
    replaced |= plans.put(session, plan)
    return True


def _refuse_known(clashes: bool, what: str) -> None:
    if clashes:
        raise DatabaseError(
            "The file cannot be merged",
            found=f"{what}, which is something else in this database",
            expected="one uid for one thing",
        )
