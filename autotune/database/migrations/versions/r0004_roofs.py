"""The measured roofs of device classes: one table more; no other row changes."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From 0003 to 0004."""
    op.create_table(
        "roofs",
        sa.Column("device_class", sa.Text(), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("record", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("device_class", name="pk_roofs"),
    )


def downgrade() -> None:
    """From 0004 back to 0003: every roof is lost."""
    op.drop_table("roofs")
