"""Finals of kernels: the best few of a problem timed against each other; one table more, no other row changes."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From 0005 to 0006."""
    op.create_table(
        "kernel_final",
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("problem", sa.String(64), nullable=False),
        sa.Column("device_class", sa.Text(), nullable=False),
        sa.Column("best", sa.String(64), nullable=False),
        sa.Column("best_us", sa.Double(), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("uid", name="pk_kernel_final"),
        sa.CheckConstraint("best_us > 0 AND best_us < 1e300", name=op.f("ck_kernel_final_best_us")),
    )
    op.create_index("ix_kernel_final_problem", "kernel_final", ["device_class", "problem"])


def downgrade() -> None:
    """From 0006 back to 0005: every final of kernels is lost."""
    op.drop_table("kernel_final")
