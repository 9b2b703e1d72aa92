"""Kernel trials: what became of single kernels on single problems."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From 0001 to 0002."""
    op.create_table(
        "kernel_trial",
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("problem", sa.String(64), nullable=False),
        sa.Column("device_class", sa.Text(), nullable=False),
        sa.Column("toolchain", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("configuration", sa.String(64), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("median_us", sa.Double()),
        sa.Column("tried_here", sa.Boolean()),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("uid", name="pk_kernel_trial"),
        sa.UniqueConstraint(
            "problem", "device_class", "toolchain", "configuration", "tried_here", name="uq_kernel_trial_tried_once"
        ),
        sa.CheckConstraint("state IN ('complete', 'failed')", name=op.f("ck_kernel_trial_state")),
        sa.CheckConstraint(
            "median_us IS NULL OR (median_us > 0 AND median_us < 1e300)", name=op.f("ck_kernel_trial_median_us")
        ),
        sa.CheckConstraint("state <> 'complete' OR median_us IS NOT NULL", name=op.f("ck_kernel_trial_complete")),
    )
    op.create_index(
        "ix_kernel_trial_best", "kernel_trial", ["device_class", "toolchain", "state", "problem", "median_us"]
    )


def downgrade() -> None:
    """From 0002 back to 0001: every kernel trial is lost."""
    op.drop_table("kernel_trial")
