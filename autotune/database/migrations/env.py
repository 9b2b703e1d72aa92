"""Alembic's entry: runs revisions on the connection that :mod:`autotune.database.migrate` hands in."""

from alembic import context

from autotune.database.plan_rows import VERSION_TABLE
from autotune.database.schema import Base


def _owned(name: str | None, kind: str, _parents: object) -> bool:
    """Leave tables of other programs in the same database alone."""
    return kind != "table" or name in Base.metadata.tables


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    include_name=_owned,
)
with context.begin_transaction():
    context.run_migrations()
