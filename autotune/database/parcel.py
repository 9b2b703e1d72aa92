"""The records that travel between databases, checked one by one before any is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autotune.database.kernel_finals import kernel_final_values
from autotune.database.manifest import ArtifactFile, digest_of
from autotune.database.plan_rows import REVISIONS
from autotune.database.rows import (
    Role,
    StudyRow,
    failure_dict,
    failure_record,
    former_plan_values,
    kernel_record,
    kernel_values,
    parse_instant,
    plan_values,
    roofs_values,
    trial_values,
)
from autotune.records.canonical import canonical
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.identity import Conditions, objective_content
from autotune.records.kernel_final import KernelFinal
from autotune.records.kernel_trial import KernelTrial
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.roofs import Roofs
from autotune.records.trial import Measurement, Trial
from autotune.records.workload import Workload

FORMAT = "autotune exchange 1"

Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
Uid = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0, lt=1e300)]
NotNegative = Annotated[float, Field(ge=0, lt=1e300)]
Json = dict[str, object]


class _ParcelEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StudyEntry(_ParcelEntry):
    """A study as it travels; its identity is computed again from these fields."""

    uid: Uid
    name: Text
    batch: Annotated[int, Field(ge=1, lt=2**31)]
    structure: Digest
    weights: Digest
    device_class: Text
    objective: Json
    serve_as: Text
    space_digest: Text
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    settings: Json
    state: Literal["running", "finished"]
    active_s: NotNegative
    timings: Json
    created: Text
    conditions: Json = {}


class TrialEntry(_ParcelEntry):
    """A finished trial as it travels."""

    uid: Uid
    study: Uid
    number: Count
    attempt: Annotated[int, Field(ge=1, lt=2**31)]
    configuration: dict[Text, bool | int | float | Text]
    toolchain: Text
    state: Literal["complete", "pruned", "infeasible", "failed"]
    latency_ms: Positive | None
    score: Positive | None = None
    signal_error: float | None
    build_s: NotNegative | None
    artifact: Digest | None
    kernels: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    failure: Json | None
    reused: bool
    created: Text
    finished: Text


class MeasurementEntry(_ParcelEntry):
    """A measurement as it travels."""

    trial: Uid
    role: Literal["screening", "finals", "alone"]
    created: Text
    record: Json


class KernelTrialEntry(_ParcelEntry):
    """A kernel trial as it travels."""

    uid: Uid
    created: Text
    problem: Json
    device_class: Text
    toolchain: Text
    configuration: dict[Text, bool | int | float | Text]
    state: Literal["complete", "failed"]
    samples_us: list[Positive]
    error: NotNegative | None
    made: dict[Text, int | float]
    conditions: Json
    failure: Json | None


class KernelFinalEntry(_ParcelEntry):
    """A final of kernels as it travels; its uid is computed again from the record."""

    created: Text
    record: Json


class FileEntry(_ParcelEntry):
    """One file of an artifact."""

    name: str
    size_bytes: int
    sha256: Digest


class ParcelRecords(_ParcelEntry):
    """The whole of ``records.json``."""

    format: str
    schema_revision: str
    workloads: list[Json]
    devices: list[Json]
    studies: list[StudyEntry]
    trials: list[TrialEntry]
    measurements: list[MeasurementEntry]
    kernel_trials: list[KernelTrialEntry] = []
    kernel_finals: list[KernelFinalEntry] = []
    roofs: list[Json] = []
    plans: list[Json]
    former_plans: list[Json] = []
    artifacts: dict[Digest, list[FileEntry]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TravellingTrial:
    """A finished trial, the uid of its study in the database it comes from, and when it began and ended."""

    study: str
    trial: Trial
    created: str
    finished: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TravellingMeasurement:
    """A measurement with its trial, its role and when it was written."""

    trial: str
    role: Role
    measurement: Measurement
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TravellingKernelTrial:
    """A kernel trial with its uid, and when it was written."""

    uid: str
    trial: KernelTrial
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TravellingKernelFinal:
    """A final of kernels, and when it was written."""

    final: KernelFinal
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """Records that refer to one another and to nothing outside, except a plan to an artifact that stayed behind."""

    workloads: tuple[Workload, ...]
    devices: tuple[Device, ...]
    studies: tuple[StudyRow, ...]
    trials: tuple[TravellingTrial, ...]
    measurements: tuple[TravellingMeasurement, ...]
    kernel_trials: tuple[TravellingKernelTrial, ...]
    kernel_finals: tuple[TravellingKernelFinal, ...]
    roofs: tuple[Roofs, ...]
    plans: tuple[Plan, ...]
    former_plans: tuple[Plan, ...]
    artifacts: Mapping[str, tuple[ArtifactFile, ...]]

    def __post_init__(self) -> None:
        uids = {study.uid for study in self.studies}
        trials = {item.trial.uid for item in self.trials}
        models = {(workload.structure, workload.weights) for workload in self.workloads}
        classes = {device.device_class for device in self.devices}
        if len(uids) != len(self.studies) or len(trials) != len(self.trials):
            raise ValueError("two studies or two trials have the same uid")
        if len({item.uid for item in self.kernel_trials}) != len(self.kernel_trials):
            raise ValueError("two kernel trials have the same uid")
        names = {workload.name for workload in self.workloads} | {device.name for device in self.devices}
        names |= {study.name for study in self.studies} | {plan.name for plan in (*self.plans, *self.former_plans)}
        names |= {item.trial.device_class for item in self.kernel_trials}
        names |= {item.final.device_class for item in self.kernel_finals}
        names |= {roofs.device_class for roofs in self.roofs}
        for name in sorted(names):
            if not name.isprintable():
                raise ValueError(f"the name {name!r} holds a character that does not print")
        for study in self.studies:
            if (study.structure, study.weights) not in models or study.device_class not in classes:
                raise ValueError(f"study {study.uid} comes without its workload or its device")
        for item in self.trials:
            if item.study not in uids:
                raise ValueError(f"trial {item.trial.uid} comes without its study")
        for measured in self.measurements:
            if measured.trial not in trials:
                raise ValueError(f"a measurement comes without its trial {measured.trial}")
        for digest, files in self.artifacts.items():
            if digest_of(files) != digest:
                raise ValueError(f"the files listed for artifact {digest} are those of {digest_of(files)}")


def to_json(parcel: Parcel) -> bytes:
    """Return ``records.json`` of a parcel, in canonical JSON."""
    return canonical(
        {
            "format": FORMAT,
            "schema_revision": REVISIONS[-1],
            "workloads": [workload.as_dict() for workload in parcel.workloads],
            "devices": [device.as_dict() for device in parcel.devices],
            "studies": [_study_data(study) for study in parcel.studies],
            "trials": [_trial_data(item) for item in parcel.trials],
            "measurements": [
                {"trial": m.trial, "role": m.role, "created": m.created, "record": m.measurement.as_dict()}
                for m in parcel.measurements
            ],
            "kernel_trials": [
                {"uid": item.uid, "created": item.created, **kernel_values(item.trial)["record"]}
                for item in parcel.kernel_trials
            ],
            "kernel_finals": [
                {"created": item.created, "record": item.final.as_dict()} for item in parcel.kernel_finals
            ],
            "roofs": [roofs.as_dict() for roofs in parcel.roofs],
            "plans": [plan.as_dict() for plan in parcel.plans],
            "former_plans": [plan.as_dict() for plan in parcel.former_plans],
            "artifacts": {digest: [file.as_dict() for file in files] for digest, files in parcel.artifacts.items()},
        }
    ).encode()


def _study_data(study: StudyRow) -> Json:
    data = {name: getattr(study, name) for name in StudyEntry.model_fields}
    data["objective"] = objective_content(study.objective)
    data["conditions"] = study.conditions.as_dict() if study.conditions is not None else {}
    return data


def _trial_data(item: TravellingTrial) -> Json:
    own = {"study": item.study, "created": item.created, "finished": item.finished}
    data = own | {name: getattr(item.trial, name) for name in TrialEntry.model_fields if name not in own}
    data["configuration"] = item.trial.configuration.as_dict()
    data["failure"] = failure_dict(item.trial.failure)
    return data


def from_json(content: bytes) -> Parcel:
    """Return the parcel of ``records.json``; every record is validated. Raises ``ValueError`` with the reason."""
    try:
        document = ParcelRecords.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{field or 'records.json'}: {first['msg']}") from None
    if document.format != FORMAT:
        raise ValueError(f"format {document.format[:80]!r}, expected {FORMAT!r}")
    if document.schema_revision not in REVISIONS:
        raise ValueError(f"schema {document.schema_revision[:80]!r} of a newer version, expected {REVISIONS[-1]!r}")
    try:
        return Parcel(
            workloads=tuple(Workload.from_dict(data) for data in map(_checked, document.workloads)),
            devices=tuple(Device.from_dict(data) for data in map(_checked, document.devices)),
            studies=tuple(_study(entry) for entry in document.studies),
            trials=tuple(_trial(entry) for entry in document.trials),
            measurements=tuple(_measurement(entry) for entry in document.measurements),
            kernel_trials=tuple(_kernel_trial(entry) for entry in document.kernel_trials),
            kernel_finals=tuple(_kernel_final(entry) for entry in document.kernel_finals),
            roofs=tuple(_roofs(data) for data in document.roofs),
            plans=tuple(_plan(data) for data in document.plans),
            former_plans=tuple(_former_plan(data) for data in document.former_plans),
            artifacts={
                digest: tuple(ArtifactFile(**file.model_dump()) for file in files)
                for digest, files in document.artifacts.items()
            },
        )
    except (TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"a record is malformed: {type(error).__name__}: {error}") from error


def _checked(data: Json) -> Json:
    canonical(data)  # refuses NaN and infinity anywhere inside
    return data


def _study(entry: StudyEntry) -> StudyRow:
    data = {name: getattr(entry, name) for name in StudyEntry.model_fields}
    canonical([entry.settings, entry.timings])
    data |= {"objective": Objective.from_dict(_checked(entry.objective)), "created": parse_instant(entry.created)}
    data["conditions"] = Conditions.from_dict(_checked(entry.conditions))
    study = StudyRow(**data)
    _ = study.start, study.curve  # raises for parts that are malformed
    if not all(seconds >= 0 for seconds in study.ended_s.values()):
        raise ValueError(f"study {study.uid}: a trial ended before the search began")
    return study


def _trial(entry: TrialEntry) -> TravellingTrial:
    names = set(TrialEntry.model_fields) - {"study", "created", "finished", "configuration", "failure"}
    trial = Trial(
        **{name: getattr(entry, name) for name in names},
        configuration=Configuration.from_dict(entry.configuration),
        failure=failure_record(entry.failure),
    )
    canonical([trial_values(trial), trial.configuration.as_dict()])
    return TravellingTrial(
        study=entry.study,
        trial=trial,
        created=parse_instant(entry.created),
        finished=parse_instant(entry.finished),
    )


def _measurement(entry: MeasurementEntry) -> TravellingMeasurement:
    measurement = Measurement.from_dict(_checked(entry.record))
    return TravellingMeasurement(
        trial=entry.trial, role=entry.role, measurement=measurement, created=parse_instant(entry.created)
    )


def _kernel_trial(entry: KernelTrialEntry) -> TravellingKernelTrial:
    trial = kernel_record(entry.model_dump(exclude={"uid", "created"}))
    kernel_values(trial)
    return TravellingKernelTrial(uid=entry.uid, trial=trial, created=parse_instant(entry.created))


def _kernel_final(entry: KernelFinalEntry) -> TravellingKernelFinal:
    final = KernelFinal.from_dict(_checked(entry.record))
    texts = (final.device_class, *(finalist.toolchain for finalist in final.finalists))
    if not all(isinstance(text, str) and "\x00" not in text for text in texts):
        raise ValueError("the device class and the toolchains of a final of kernels are texts")
    kernel_final_values(final)
    return TravellingKernelFinal(final=final, created=parse_instant(entry.created))


def _roofs(data: Json) -> Roofs:
    roofs = Roofs.from_dict(_checked(data))
    if not isinstance(roofs.device_class, str):
        raise ValueError(f"the device class of roofs is no text, found {roofs.device_class!r}")
    roofs_values(roofs)
    return roofs


def _plan(data: Json) -> Plan:
    plan = Plan.from_dict(_checked(data))
    for name in ("structure", "weights"):
        if len(getattr(plan, name)) != 64:
            raise ValueError(f"plan {plan.uid}: {name} is no SHA-256 in hexadecimal")
    for name in ("uid", "name", "serve_as"):
        value = getattr(plan, name)
        if not isinstance(value, str) or "\x00" in value or not value:
            raise ValueError(f"plan {plan.uid!r}: {name} is no text, found {value!r}")
    if type(plan.batch) is not int or not 1 <= plan.batch < 2**31:
        raise ValueError(f"plan {plan.uid}: batch must be at least 1, found {plan.batch!r}")
    if not all(isinstance(text, str) for entry in plan.measured_under.versions for text in entry):
        raise ValueError(f"plan {plan.uid}: the versions of its evidence are no texts")
    plan_values(plan)
    return plan


def _former_plan(data: Json) -> Plan:
    plan = _plan(data)
    former_plan_values(plan)
    return plan
