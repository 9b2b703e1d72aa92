"""The plans that others have replaced under another toolchain: one table more; no other row changes."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

KEY = ("structure", "form", "device_class", "weights", "serve_as", "objective_digest", "measured")


def upgrade() -> None:
    """From 0004 to 0005."""
    op.create_table(
        "former_plan",
        sa.Column("structure", sa.String(64), nullable=False),
        sa.Column("form", sa.Text(), nullable=False),
        sa.Column("device_class", sa.Text(), nullable=False),
        sa.Column("weights", sa.String(64), nullable=False),
        sa.Column("serve_as", sa.Text(), nullable=False),
        sa.Column("objective_digest", sa.String(64), nullable=False),
        sa.Column("measured", sa.String(64), nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint(*KEY, name="pk_former_plan"),
    )


def downgrade() -> None:
    """From 0005 back to 0004: every former plan is lost."""
    op.drop_table("former_plan")
