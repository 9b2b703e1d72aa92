"""The first schema: workloads, devices, studies with their leases, trials, measurements, plans."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_DIGEST, _INSTANT = sa.String(64), sa.String(32)


def _text(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text(), nullable=nullable)


def _digest(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, _DIGEST, nullable=nullable)


def _instant(name: str, *, nullable: bool = False) -> "sa.Column[str]":
    return sa.Column(name, _INSTANT, nullable=nullable)


def upgrade() -> None:
    """From an empty database to 0001."""
    op.create_table(
        "workload",
        _digest("structure"),
        _digest("weights"),
        _text("name"),
        sa.Column("batch", sa.Integer(), nullable=False),
        _text("record"),
        sa.PrimaryKeyConstraint("structure", "weights", name="pk_workload"),
    )
    op.create_table(
        "device", _text("device_class"), _text("record"), sa.PrimaryKeyConstraint("device_class", name="pk_device")
    )
    _create_study()
    _create_lease()
    _create_trial()
    _create_measurement()
    _create_plan()


def _create_study() -> None:
    op.create_table(
        "study",
        _digest("uid"),
        _digest("identity"),
        _text("name"),
        sa.Column("batch", sa.Integer(), nullable=False),
        _digest("structure"),
        _digest("weights"),
        _text("device_class"),
        _text("objective"),
        _text("serve_as"),
        _text("space_digest"),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        _text("settings"),
        _text("state"),
        sa.Column("active_s", sa.Double(), nullable=False),
        _text("timings"),
        _instant("created"),
        sa.PrimaryKeyConstraint("uid", name="pk_study"),
        sa.UniqueConstraint("identity", name="uq_study_identity"),
        sa.ForeignKeyConstraint(
            ["structure", "weights"], ["workload.structure", "workload.weights"], name="fk_study_workload"
        ),
        sa.ForeignKeyConstraint(["device_class"], ["device.device_class"], name="fk_study_device"),
        sa.CheckConstraint("state IN ('running', 'finished')", name=op.f("ck_study_state")),
        sa.CheckConstraint("active_s >= 0 AND active_s < 1e300", name=op.f("ck_study_active_s")),
    )
    op.create_index("ix_study_name_batch", "study", ["name", "batch"])


def _create_lease() -> None:
    op.create_table(
        "lease",
        _digest("study"),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        _digest("token", nullable=True),
        _text("host"),
        _text("place"),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("started", sa.BigInteger(), nullable=False),
        sa.Column("beats", sa.BigInteger(), nullable=False),
        _instant("taken"),
        _instant("heartbeat"),
        sa.PrimaryKeyConstraint("study", name="pk_lease"),
        sa.ForeignKeyConstraint(["study"], ["study.uid"], name="fk_lease_study"),
        sa.CheckConstraint("fence >= 0 AND beats >= 0", name=op.f("ck_lease_counts")),
    )


def _create_trial() -> None:
    op.create_table(
        "trial",
        _digest("uid"),
        _digest("study"),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("handed_back", sa.Integer(), nullable=False),
        _text("backend"),
        _text("configuration"),
        _digest("configuration_digest"),
        _digest("structure"),
        _digest("weights"),
        _text("device_class"),
        _text("toolchain"),
        _text("state"),
        sa.Column("latency_ms", sa.Double()),
        sa.Column("score", sa.Double()),
        sa.Column("signal_error", sa.Double()),
        sa.Column("build_s", sa.Double()),
        _digest("artifact", nullable=True),
        _text("failure", nullable=True),
        sa.Column("reused", sa.Boolean(), nullable=False),
        sa.Column("tried_here", sa.Boolean()),
        _instant("created"),
        _instant("finished", nullable=True),
        sa.PrimaryKeyConstraint("uid", name="pk_trial"),
        sa.UniqueConstraint("study", "number", name="uq_trial_study_number"),
        sa.UniqueConstraint(
            "study", "configuration_digest", "toolchain", "weights", "tried_here", name="uq_trial_tried_once"
        ),
        sa.ForeignKeyConstraint(["study"], ["study.uid"], name="fk_trial_study"),
        sa.CheckConstraint("number >= 0 AND attempt >= 1 AND handed_back >= 0", name=op.f("ck_trial_counts")),
        sa.CheckConstraint(
            "state IN ('running', 'complete', 'pruned', 'infeasible', 'failed')", name=op.f("ck_trial_state")
        ),
        sa.CheckConstraint(
            "latency_ms IS NULL OR (latency_ms > 0 AND latency_ms < 1e300)", name=op.f("ck_trial_latency_ms")
        ),
        sa.CheckConstraint("score IS NULL OR (score > 0 AND score < 1e300)", name=op.f("ck_trial_score")),
        sa.CheckConstraint("state <> 'complete' OR latency_ms IS NOT NULL", name=op.f("ck_trial_complete")),
        sa.CheckConstraint("build_s IS NULL OR (build_s >= 0 AND build_s < 1e300)", name=op.f("ck_trial_build_s")),
        sa.CheckConstraint(
            "(failure IS NOT NULL) = (state IN ('failed', 'infeasible'))", name=op.f("ck_trial_failure")
        ),
    )
    op.create_index(
        "ix_trial_seen_before",
        "trial",
        ["structure", "device_class", "toolchain", "configuration_digest", "weights"],
    )
    op.create_index("ix_trial_artifact", "trial", ["artifact"])


def _create_measurement() -> None:
    op.create_table(
        "measurement",
        _digest("uid"),
        _digest("trial"),
        _text("role"),
        _instant("created"),
        _text("record"),
        sa.PrimaryKeyConstraint("uid", name="pk_measurement"),
        sa.ForeignKeyConstraint(["trial"], ["trial.uid"], name="fk_measurement_trial"),
        sa.CheckConstraint("role IN ('screening', 'finals', 'alone')", name=op.f("ck_measurement_role")),
    )
    op.create_index("ix_measurement_trial", "measurement", ["trial"])


def _create_plan() -> None:
    op.create_table(
        "plan",
        _digest("uid"),
        _text("name"),
        sa.Column("batch", sa.Integer(), nullable=False),
        _digest("structure"),
        _digest("weights"),
        _text("device_class"),
        _text("objective_name"),
        _text("objective"),
        _digest("objective_digest"),
        _text("serve_as"),
        _digest("toolchain"),
        _digest("artifact", nullable=True),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        _instant("created"),
        _text("record"),
        _text("evidence"),
        sa.PrimaryKeyConstraint("uid", name="pk_plan"),
        sa.UniqueConstraint("structure", "device_class", "weights", "serve_as", "objective_digest", name="uq_plan_key"),
        sa.CheckConstraint("latency_ms > 0 AND latency_ms < 1e300", name=op.f("ck_plan_latency_ms")),
    )
    op.create_index("ix_plan_name_batch", "plan", ["name", "batch"])
    op.create_index("ix_plan_artifact", "plan", ["artifact"])


def downgrade() -> None:
    """From 0001 back to an empty database: every record is lost."""
    for table in ("plan", "measurement", "trial", "lease", "study", "device", "workload"):
        op.drop_table(table)
