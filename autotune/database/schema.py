"""The tables of the tuning database.

Every row that travels between databases is named by a ``uid`` that is the same everywhere. Only the modules of this
package use the tables; :class:`autotune.database.store.Store` takes and returns records.
"""

import json
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from autotune.records.canonical import canonical
from autotune.records.configuration import Scalar

POSITIVE = "{0} > 0 AND {0} < 1e300"  # also refuses infinity, and on PostgreSQL NaN; SQLite turns NaN into NULL


JsonObject = dict[str, object]


class CanonicalJson(TypeDecorator[JsonObject]):
    """JSON stored as canonical text, so that equal values are equal text in every database."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: JsonObject | None, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else canonical(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> JsonObject | None:
        """From the database."""
        return None if value is None else json.loads(value)


Digest = String(64)
Uid = String(64)
Instant = String(32)  # ISO 8601 in UTC with microseconds: sorts as text


class Base(DeclarativeBase):
    """The base of all tables; names of constraints are fixed so that a migration can name them."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double}  # SQLAlchemy 2.0 would take Float
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        }
    )


class WorkloadTable(Base):
    """A model and the shapes it is called with."""

    __tablename__ = "workload"

    structure: Mapped[str] = mapped_column(Digest, primary_key=True)
    weights: Mapped[str] = mapped_column(Digest, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    batch: Mapped[int]
    record: Mapped[JsonObject] = mapped_column(CanonicalJson)


class DeviceTable(Base):
    """One device of each class, the first that ran a study."""

    __tablename__ = "device"

    device_class: Mapped[str] = mapped_column(Text, primary_key=True)
    record: Mapped[JsonObject] = mapped_column(CanonicalJson)


class StudyTable(Base):
    """A search; ``identity`` is the digest of its identity, ``active_s`` the time that it has searched.

    ``conditions`` is the record of :class:`autotune.records.identity.Conditions`, empty if fingerprint 1 kept none;
    ``reuse`` the digest of those under which its trials were judged and timed.
    """

    __tablename__ = "study"
    __table_args__ = (
        ForeignKeyConstraint(["structure", "weights"], ["workload.structure", "workload.weights"]),
        CheckConstraint("state IN ('running', 'finished')", name="state"),
        CheckConstraint("active_s >= 0 AND active_s < 1e300", name="active_s"),
        Index(None, "name", "batch"),
    )

    uid: Mapped[str] = mapped_column(Uid, primary_key=True)
    identity: Mapped[str] = mapped_column(Digest, unique=True)
    name: Mapped[str] = mapped_column(Text)
    batch: Mapped[int]
    structure: Mapped[str] = mapped_column(Digest)
    weights: Mapped[str] = mapped_column(Digest)
    device_class: Mapped[str] = mapped_column(ForeignKey("device.device_class"))
    objective: Mapped[JsonObject] = mapped_column(CanonicalJson)
    serve_as: Mapped[str] = mapped_column(Text)
    space_digest: Mapped[str] = mapped_column(Text)
    seed: Mapped[int] = mapped_column(BigInteger)
    settings: Mapped[JsonObject] = mapped_column(CanonicalJson)
    state: Mapped[str] = mapped_column(Text)
    active_s: Mapped[float]
    timings: Mapped[JsonObject] = mapped_column(CanonicalJson)
    created: Mapped[str] = mapped_column(Instant)
    conditions: Mapped[JsonObject] = mapped_column(CanonicalJson, server_default="{}")
    reuse: Mapped[str | None] = mapped_column(Digest)


class LeaseTable(Base):
    """The coordinator of a study: ``token`` is null if there is none, ``fence`` only ever grows (see ``leases``)."""

    __tablename__ = "lease"
    __table_args__ = (CheckConstraint("fence >= 0 AND beats >= 0", name="counts"),)

    study: Mapped[str] = mapped_column(ForeignKey("study.uid"), primary_key=True)
    fence: Mapped[int] = mapped_column(BigInteger)
    token: Mapped[str | None] = mapped_column(Uid)
    host: Mapped[str] = mapped_column(Text)
    place: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(BigInteger)
    started: Mapped[int] = mapped_column(BigInteger)
    beats: Mapped[int] = mapped_column(BigInteger)
    taken: Mapped[str] = mapped_column(Instant)
    heartbeat: Mapped[str] = mapped_column(Instant)


class TrialTable(Base):
    """One configuration built, checked and timed; ``tried_here`` is true, or null if it was merged.

    ``kernels`` is the digest of the tuned kernels that its build was handed. Of its attempts, ``handed_back`` are those
    that were stopped in good order or do not count any more.
    A configuration is tried once in this database. The trial of another machine in the same study is stored beside it:
    nulls are distinct to a unique constraint.
    """

    __tablename__ = "trial"
    __table_args__ = (
        UniqueConstraint("study", "number"),
        # A partial index would do the same, but costs 130 ms: to name PostgreSQL in one imports all its drivers.
        UniqueConstraint(
            "study", "configuration_digest", "toolchain", "weights", "tried_here", name="uq_trial_tried_once"
        ),
        Index("ix_trial_seen_before", "structure", "device_class", "toolchain", "configuration_digest", "weights"),
        Index(None, "artifact"),
        CheckConstraint("number >= 0 AND attempt >= 1 AND handed_back >= 0", name="counts"),
        CheckConstraint("state IN ('running', 'complete', 'pruned', 'infeasible', 'failed')", name="state"),
        CheckConstraint(f"latency_ms IS NULL OR ({POSITIVE.format('latency_ms')})", name="latency_ms"),
        CheckConstraint(f"score IS NULL OR ({POSITIVE.format('score')})", name="score"),
        CheckConstraint("state <> 'complete' OR latency_ms IS NOT NULL", name="complete"),
        CheckConstraint("build_s IS NULL OR (build_s >= 0 AND build_s < 1e300)", name="build_s"),
        CheckConstraint("(failure IS NOT NULL) = (state IN ('failed', 'infeasible'))", name="failure"),
    )

    uid: Mapped[str] = mapped_column(Uid, primary_key=True)
    study: Mapped[str] = mapped_column(ForeignKey("study.uid"))
    number: Mapped[int]
    attempt: Mapped[int]
    handed_back: Mapped[int]
    backend: Mapped[str] = mapped_column(Text)
    configuration: Mapped[dict[str, Scalar]] = mapped_column(CanonicalJson)
    configuration_digest: Mapped[str] = mapped_column(Digest)
    structure: Mapped[str] = mapped_column(Digest)
    weights: Mapped[str] = mapped_column(Digest)
    device_class: Mapped[str] = mapped_column(Text)
    toolchain: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    latency_ms: Mapped[float | None]
    score: Mapped[float | None]
    signal_error: Mapped[float | None]
    build_s: Mapped[float | None]
    artifact: Mapped[str | None] = mapped_column(Digest)
    failure: Mapped[JsonObject | None] = mapped_column(CanonicalJson)
    reused: Mapped[bool]
    tried_here: Mapped[bool | None]
    created: Mapped[str] = mapped_column(Instant)
    finished: Mapped[str | None] = mapped_column(Instant)
    kernels: Mapped[str] = mapped_column(Text, server_default="")


class MeasurementTable(Base):
    """Raw samples of one trial in one role; ``uid`` is the digest of all three."""

    __tablename__ = "measurement"
    __table_args__ = (CheckConstraint("role IN ('screening', 'finals', 'alone')", name="role"),)

    uid: Mapped[str] = mapped_column(Uid, primary_key=True)
    trial: Mapped[str] = mapped_column(ForeignKey("trial.uid"), index=True)
    role: Mapped[str] = mapped_column(Text)
    created: Mapped[str] = mapped_column(Instant)
    record: Mapped[JsonObject] = mapped_column(CanonicalJson)


class KernelTrialTable(Base):
    """One kernel compiled, checked and timed on one problem; ``record`` is all of it, other columns follow from it.

    ``problem`` and ``configuration`` are digests, ``kind`` is the configuration's backend. A configuration is tried
    once in this database, for any study or for none; trials of other machines are stored beside it, as for studies.
    """

    __tablename__ = "kernel_trial"
    __table_args__ = (
        UniqueConstraint(
            "problem", "device_class", "toolchain", "configuration", "tried_here", name="uq_kernel_trial_tried_once"
        ),
        Index("ix_kernel_trial_best", "device_class", "toolchain", "state", "problem", "median_us"),
        CheckConstraint("state IN ('complete', 'failed')", name="state"),
        CheckConstraint(f"median_us IS NULL OR ({POSITIVE.format('median_us')})", name="median_us"),
        CheckConstraint("state <> 'complete' OR median_us IS NOT NULL", name="complete"),
    )

    uid: Mapped[str] = mapped_column(Uid, primary_key=True)
    problem: Mapped[str] = mapped_column(Digest)
    device_class: Mapped[str] = mapped_column(Text)
    toolchain: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    configuration: Mapped[str] = mapped_column(Digest)
    state: Mapped[str] = mapped_column(Text)
    median_us: Mapped[float | None]
    tried_here: Mapped[bool | None]
    created: Mapped[str] = mapped_column(Instant)
    record: Mapped[JsonObject] = mapped_column(CanonicalJson)


class KernelFinalTable(Base):
    """The best kernels of a problem timed against each other; ``record`` is all of it, other columns follow from it.

    ``uid`` is the digest of the record, ``best`` that of the fastest finalist's configuration.
    """

    __tablename__ = "kernel_final"
    __table_args__ = (
        Index("ix_kernel_final_problem", "device_class", "problem"),
        CheckConstraint(POSITIVE.format("best_us"), name="best_us"),
    )

    uid: Mapped[str] = mapped_column(Uid, primary_key=True)
    problem: Mapped[str] = mapped_column(Digest)
    device_class: Mapped[str] = mapped_column(Text)
    best: Mapped[str] = mapped_column(Digest)
    best_us: Mapped[float]
    created: Mapped[str] = mapped_column(Instant)
    record: Mapped[JsonObject] = mapped_column(CanonicalJson)


class RoofsTable(Base):
    """The newest measured roofs of a device class; ``record`` is all of them, other columns follow from it."""

    __tablename__ = "roofs"

    device_class: Mapped[str] = mapped_column(Text, primary_key=True)
    created: Mapped[str] = mapped_column(Instant)
    record: Mapped[JsonObject] = mapped_column(CanonicalJson)


class PlanTable(Base):
    """A promoted winner; ``record`` lacks the evidence, which is large and seldom read, so that a look-up is fast."""

    __tablename__ = "plan"
    __table_args__ = (
        UniqueConstraint(
            "structure", "form", "device_class", "weights", "serve_as", "objective_digest", name="uq_plan_key"
        ),
        CheckConstraint(POSITIVE.format("latency_ms"), name="latency_ms"),
        Index(None, "name", "batch"),
        Index(None, "artifact"),
    )

    uid: Mapped[str] = mapped_column(Uid, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    batch: Mapped[int]
    structure: Mapped[str] = mapped_column(Digest)
    weights: Mapped[str] = mapped_column(Digest)
    device_class: Mapped[str] = mapped_column(Text)
    objective_name: Mapped[str] = mapped_column(Text)
    objective: Mapped[JsonObject] = mapped_column(CanonicalJson)
    objective_digest: Mapped[str] = mapped_column(Digest)
    serve_as: Mapped[str] = mapped_column(Text)
    toolchain: Mapped[str] = mapped_column(Digest)
    artifact: Mapped[str | None] = mapped_column(Digest)
    latency_ms: Mapped[float]
    created: Mapped[str] = mapped_column(Instant)
    record: Mapped[JsonObject] = mapped_column(CanonicalJson)
    evidence: Mapped[str] = mapped_column(Text)
    form: Mapped[str] = mapped_column(Text, server_default="")


class FormerPlanTable(Base):
    """The newest plan of a key that was measured under another toolchain than the present plan, without its artifact.

    ``measured`` is the digest of the versions at the time of its finals; ``record`` and ``evidence`` are as in a plan.
    No look-up reads this table.
    """

    __tablename__ = "former_plan"

    structure: Mapped[str] = mapped_column(Digest, primary_key=True)
    form: Mapped[str] = mapped_column(Text, primary_key=True)
    device_class: Mapped[str] = mapped_column(Text, primary_key=True)
    weights: Mapped[str] = mapped_column(Digest, primary_key=True)
    serve_as: Mapped[str] = mapped_column(Text, primary_key=True)
    objective_digest: Mapped[str] = mapped_column(Digest, primary_key=True)
    measured: Mapped[str] = mapped_column(Digest, primary_key=True)
    uid: Mapped[str] = mapped_column(Uid)
    name: Mapped[str] = mapped_column(Text)
    batch: Mapped[int]
    created: Mapped[str] = mapped_column(Instant)
    record: Mapped[JsonObject] = mapped_column(CanonicalJson)
    evidence: Mapped[str] = mapped_column(Text)
