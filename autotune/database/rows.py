"""Between the rows of the tuning database and the records of autotune."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal, NotRequired, TypedDict

from autotune.database.manifest import is_digest
from autotune.database.plan_rows import plan_record
from autotune.database.schema import FormerPlanTable, PlanTable, StudyTable, TrialTable
from autotune.records.canonical import canonical, digest
from autotune.records.configuration import Configuration
from autotune.records.identity import Conditions, Identity, objective_content
from autotune.records.kernel_trial import KernelTrial
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.roofs import Roofs
from autotune.records.search_curve import SearchCurve
from autotune.records.study_start import HintRecord, StudyStart
from autotune.records.trial import Failure, Measurement, Trial, TrialState

Role = Literal["screening", "finals", "alone"]
StudyState = Literal["running", "finished"]


def instant(moment: datetime) -> str:
    """Return a moment as the database stores it: ISO 8601 in UTC with microseconds, which sorts as text."""
    return moment.astimezone(timezone.utc).isoformat(timespec="microseconds")


def parse_instant(stamp: str) -> str:
    """Return an ISO 8601 text with a time zone as :func:`instant` writes it; raises ``ValueError`` for others."""
    moment = datetime.fromisoformat(stamp[:-1] + "+00:00" if stamp.endswith("Z") else stamp)
    if moment.tzinfo is None:
        raise ValueError(f"{stamp!r} has no time zone")
    return instant(moment)


class StudyLimits(TypedDict):
    """The limits of a run of a study: distinct builds, and seconds of active search.

    Of its first run also the number of compiled kernels for its device, the digests of the packs with some, and the
    hints from other studies.
    """

    trials: int
    budget_s: float
    compiled_kernels: NotRequired[int]
    packs: NotRequired[tuple[str, ...]]
    hints: NotRequired[tuple[HintRecord, ...] | None]


class StudyKeys(TypedDict):
    """The columns of a study's row that follow from its identity."""

    identity: str
    conditions: dict[str, object]
    reuse: str | None


class TrialValues(TypedDict):
    """The columns of a trial's result."""

    state: TrialState
    latency_ms: float | None
    score: float | None
    signal_error: float | None
    build_s: float | None
    artifact: str | None
    kernels: str
    failure: dict[str, object] | None
    reused: bool


class KernelTrialValues(TypedDict):
    """The columns of a kernel trial that follow from its record."""

    problem: str
    device_class: str
    toolchain: str
    kind: str
    configuration: str
    state: str
    median_us: float | None
    record: dict[str, object]


class RoofsValues(TypedDict):
    """The columns of measured roofs."""

    device_class: str
    created: str
    record: dict[str, object]


class PlanKeyValues(TypedDict):
    """The columns that a plan has alone in its table."""

    structure: str
    form: str
    device_class: str
    weights: str
    serve_as: str
    objective_digest: str


class PlanValues(PlanKeyValues):
    """The columns of a plan."""

    uid: str
    name: str
    batch: int
    objective_name: str
    objective: dict[str, object]
    toolchain: str
    artifact: str | None
    latency_ms: float
    created: str
    record: dict[str, object]
    evidence: str


class FormerPlanValues(PlanKeyValues):
    """The columns of a former plan."""

    measured: str
    uid: str
    name: str
    batch: int
    created: str
    record: dict[str, object]
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRow:
    """A study in the database.

    ``active_s`` is the search time already spent over all its runs, ``timings`` the split of the time when it was
    finished last, with the parts that have a property here. ``created`` is ISO 8601 in UTC. ``conditions`` are ``None``
    if it was recorded by fingerprint 1.
    """

    uid: str
    name: str
    batch: int
    structure: str
    weights: str
    device_class: str
    objective: Objective
    serve_as: str
    space_digest: str
    seed: int
    settings: Mapping[str, Any]
    state: StudyState
    active_s: float
    timings: Mapping[str, Any]
    created: str
    conditions: Conditions | None = None

    @property
    def identity(self) -> Identity:
        """Everything that decides its results."""
        return Identity(
            name=self.name, structure=self.structure, weights=self.weights, device_class=self.device_class,
            objective=self.objective, serve_as=self.serve_as, space=self.space_digest, seed=self.seed,
            conditions=self.conditions,
        )  # fmt: skip

    @property
    def start(self) -> StudyStart | None:
        """The trials that the database had when it was begun; ``None`` if an earlier version began it."""
        data = self.timings.get("start")
        return None if data is None else StudyStart.from_dict(data)

    @property
    def ended_s(self) -> Mapping[str, float]:
        """The seconds of active search after which its trials ended, by their uids; reused trials have none."""
        return {str(uid): float(seconds) for uid, seconds in self.timings.get("ended_s", {}).items()}

    @property
    def curve(self) -> SearchCurve | None:
        """The curve of its search so far; ``None`` before its first search ends, or if an earlier version began it."""
        data = self.timings.get("curve")
        return None if data is None else SearchCurve.from_dict(data)

    @property
    def can_be_reproduced(self) -> bool:
        """Whether its settings name the factory of the model and its inputs; tensors given in Python are not stored."""
        return bool(self.settings.get("factory"))


def study_record(row: StudyTable) -> StudyRow:
    """Return the record of a study's row."""
    return StudyRow(
        uid=row.uid,
        name=row.name,
        batch=row.batch,
        structure=row.structure,
        weights=row.weights,
        device_class=row.device_class,
        objective=Objective.from_dict(row.objective),
        serve_as=row.serve_as,
        space_digest=row.space_digest,
        seed=row.seed,
        settings=row.settings,
        state="finished" if row.state == "finished" else "running",
        active_s=row.active_s,
        timings=row.timings,
        created=row.created,
        conditions=Conditions.from_dict(row.conditions),
    )


def study_keys(identity: Identity) -> StudyKeys:
    """Return the columns of a study's row that follow from its identity alone."""
    conditions = identity.conditions.as_dict() if identity.conditions is not None else {}
    return {"identity": identity.study, "conditions": conditions, "reuse": identity.trial}


def trial_values(trial: Trial) -> TrialValues:
    """Return the columns of a trial's result; raises ``ValueError`` for figures that cannot be true.

    The signal error of a candidate that was refused may be infinite or not a number; its failure records that, and the
    column stays empty.
    """
    for name in ("latency_ms", "score", "build_s"):
        value = getattr(trial, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"trial {trial.number}: {name} is a number that is not negative, found {value!r}")
    if trial.latency_ms == 0:
        raise ValueError(f"trial {trial.number}: a latency is a positive number of milliseconds, found 0")
    finite = trial.signal_error is not None and math.isfinite(trial.signal_error)
    if trial.state == "complete" and trial.signal_error is not None and not finite:
        raise ValueError(f"complete trial {trial.number} has a signal error of {trial.signal_error!r}")
    if trial.artifact is not None and not is_digest(trial.artifact):
        raise ValueError(f"trial {trial.number}: {trial.artifact!r} names no artifact")
    return {
        "state": trial.state,
        "latency_ms": trial.latency_ms,
        "score": trial.score,
        "signal_error": trial.signal_error if finite else None,
        "build_s": trial.build_s,
        "artifact": trial.artifact,
        "kernels": trial.kernels,
        "failure": failure_dict(trial.failure),
        "reused": trial.reused,
    }


def failure_dict(failure: Failure | None) -> dict[str, object] | None:
    """Return a failure as canonical JSON holds it: a figure that is infinite or not a number becomes text."""
    if failure is None:
        return None
    data = failure.as_dict()
    if failure.figure is not None and not math.isfinite(failure.figure):
        data["figure"] = repr(float(failure.figure))
    return data


def failure_record(data: Mapping[str, Any] | None) -> Failure | None:
    """Return the failure of a dictionary that :func:`failure_dict` returned."""
    if data is None:
        return None
    figure = data.get("figure")
    return Failure(**{**data, "figure": None if figure is None else float(figure)})


def trial_record(row: TrialTable) -> Trial:
    """Return the record of a trial's row."""
    return Trial(
        uid=row.uid,
        number=row.number,
        configuration=Configuration.from_dict(row.configuration),
        state=row.state,  # type: ignore[arg-type]  # the record checks it
        attempt=row.attempt,
        latency_ms=row.latency_ms,
        score=row.score,
        signal_error=row.signal_error,
        build_s=row.build_s,
        artifact=row.artifact,
        toolchain=row.toolchain,
        kernels=row.kernels,
        failure=failure_record(row.failure),
        reused=row.reused,
    )


def measurement_uid(trial_uid: str, role: str, measurement: Measurement) -> str:
    """Return the digest of a measurement: the same in every database, so that it is stored once."""
    return measurement_content(trial_uid, role, measurement)[0]


def measurement_content(trial_uid: str, role: str, measurement: Measurement) -> tuple[str, str]:
    """Return the digest of a measurement, and its canonical JSON, from which the digest is made."""
    record = canonical(measurement.as_dict())
    whole = f"[{canonical(trial_uid)},{canonical(role)},{record}]"
    return hashlib.sha256(whole.encode()).hexdigest(), record


def kernel_values(trial: KernelTrial) -> KernelTrialValues:
    """Return the columns of a kernel trial; raises ``ValueError`` for figures that cannot be true.

    As for trials, an error that is infinite or not a number is recorded by the failure alone.
    """
    finite = trial.error is not None and math.isfinite(trial.error)
    if trial.error is not None and (trial.error < 0 or (trial.state == "complete" and not finite)):
        raise ValueError(f"{trial.state} kernel trial of {trial.configuration} has an error of {trial.error!r}")
    record = trial.as_dict() | {"error": trial.error if finite else None, "failure": failure_dict(trial.failure)}
    canonical(record)  # refuses NaN and infinity anywhere inside
    return {
        "problem": trial.problem.digest,
        "device_class": trial.device_class,
        "toolchain": trial.toolchain,
        "kind": trial.configuration.backend,
        "configuration": trial.configuration.digest,
        "state": trial.state,
        "median_us": trial.median_us,
        "record": record,
    }


def kernel_record(data: Mapping[str, Any]) -> KernelTrial:
    """Return the kernel trial of a row's record."""
    failure = failure_record(data["failure"])
    return KernelTrial.from_dict({**data, "failure": None if failure is None else failure.as_dict()})


def roofs_values(roofs: Roofs) -> RoofsValues:
    """Return the columns of measured roofs; raises ``ValueError`` for a date that is malformed."""
    record = roofs.as_dict()
    canonical(record)  # refuses NaN and infinity anywhere inside
    return {"device_class": roofs.device_class, "created": parse_instant(roofs.created), "record": record}


def plan_key_values(plan: Plan) -> PlanKeyValues:
    """Return the columns that a plan has alone in its table."""
    return {
        "structure": plan.structure,
        "form": plan.form,
        "device_class": plan.device.device_class,
        "weights": plan.weights,
        "serve_as": plan.serve_as,
        "objective_digest": digest(objective_content(plan.objective)),
    }


def plan_values(plan: Plan) -> PlanValues:
    """Return the columns of a plan; raises ``ValueError`` for an artifact, a uid or a date that is malformed."""
    if plan.artifact is not None and not is_digest(plan.artifact):
        raise ValueError(f"plan {plan.name}: {plan.artifact!r} names no artifact")
    if not 0 < len(plan.uid) <= 64:
        raise ValueError(f"plan {plan.name}: a uid has 1 to 64 characters, found {plan.uid!r}")
    record = plan.as_dict()
    evidence = record.pop("evidence")
    return {
        **plan_key_values(plan),
        "uid": plan.uid,
        "name": plan.name,
        "batch": plan.batch,
        "objective_name": plan.objective.name,
        "objective": objective_content(plan.objective),
        "toolchain": plan.toolchain.digest,
        "artifact": plan.artifact,
        "latency_ms": plan.latency_ms,
        "created": parse_instant(plan.created),
        "record": record,
        "evidence": canonical(evidence),
    }


def former_plan_values(plan: Plan) -> FormerPlanValues:
    """Return the columns of a former plan; raises ``ValueError`` for one that names an artifact, or is malformed."""
    if plan.artifact is not None:
        raise ValueError(f"former plan {plan.name}: its artifact {plan.artifact} is kept for nobody")
    values = plan_values(plan)
    return {
        **plan_key_values(plan),
        "measured": plan.measured_under.digest,
        "uid": values["uid"],
        "name": values["name"],
        "batch": values["batch"],
        "created": values["created"],
        "record": values["record"],
        "evidence": values["evidence"],
    }


def plan_of(row: PlanTable | FormerPlanTable) -> Plan:
    """Return the record of a plan's row."""
    return plan_record(row.uid, row.record, row.evidence)
