"""One identity: the conditions of studies, the kernels of trials, the form of plans.

Records of fingerprint 1 keep their keys: a study without conditions never equals another one, and a plan without a
form is found by its other fields. Trials that ended only because the budget did are no results and go.
"""

import json
from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ADDED: dict[str, object] = {"form": "", "kernels": "", "fingerprint": 1}
_KEY = ["structure", "form", "device_class", "weights", "serve_as", "objective_digest"]
_FORMER_KEY = ["structure", "device_class", "weights", "serve_as", "objective_digest"]


def upgrade() -> None:
    """From 0002 to 0003."""
    op.add_column("study", sa.Column("conditions", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("study", sa.Column("reuse", sa.String(64), nullable=True))
    op.add_column("trial", sa.Column("kernels", sa.Text(), nullable=False, server_default=""))
    left_out = "state = 'pruned' AND latency_ms IS NULL"
    op.execute(f"DELETE FROM measurement WHERE trial IN (SELECT uid FROM trial WHERE {left_out})")
    op.execute(f"DELETE FROM trial WHERE {left_out}")
    _plan_with(_KEY, sa.Column("form", sa.Text(), nullable=False, server_default=""))
    _rewrite_records(lambda record: {**record, **_ADDED})


def downgrade() -> None:
    """From 0003 back to 0002: the conditions, kernels and forms are lost, and so are plans that differ only in form.

    A study that has conditions keeps its identity, which an older version cannot work out again.
    """
    op.execute(
        "DELETE FROM plan WHERE EXISTS (SELECT 1 FROM plan AS other WHERE other.uid < plan.uid AND "
        + " AND ".join(f"other.{name} = plan.{name}" for name in _FORMER_KEY)
        + ")"
    )
    _rewrite_records(lambda record: {name: value for name, value in record.items() if name not in _ADDED})
    _plan_with(_FORMER_KEY, None)
    op.drop_column("trial", "kernels")
    op.drop_column("study", "reuse")
    op.drop_column("study", "conditions")


def _plan_with(key: list[str], added: "sa.Column[str] | None") -> None:
    """Change the unique key of the table of plans, and add the column ``form`` or drop it."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("uq_plan_key", "plan")
        if added is not None:
            op.add_column("plan", added)
        else:
            op.drop_column("plan", "form")
        op.create_unique_constraint("uq_plan_key", "plan", key)
        return
    columns = _columns() if added is None else [*_columns(), added]
    op.create_table(  # SQLite cannot change a constraint of a table
        "plan_made_anew",
        *columns,
        sa.PrimaryKeyConstraint("uid", name="pk_plan"),
        sa.UniqueConstraint(*key, name="uq_plan_key"),
        sa.CheckConstraint("latency_ms > 0 AND latency_ms < 1e300", name=op.f("ck_plan_latency_ms")),
    )
    names = ", ".join(column.name for column in _columns())
    op.execute(f"INSERT INTO plan_made_anew ({names}) SELECT {names} FROM plan")
    op.drop_table("plan")
    op.rename_table("plan_made_anew", "plan")
    op.create_index("ix_plan_name_batch", "plan", ["name", "batch"])
    op.create_index("ix_plan_artifact", "plan", ["artifact"])


def _columns() -> "list[sa.Column[object]]":
    """List the columns of a plan as revision 0002 has them."""
    digest, instant = sa.String(64), sa.String(32)
    kinds: dict[str, sa.String | sa.Integer | sa.Double[float]] = {
        "uid": digest, "name": sa.Text(), "batch": sa.Integer(), "structure": digest, "weights": digest,
        "device_class": sa.Text(), "objective_name": sa.Text(), "objective": sa.Text(), "objective_digest": digest,
        "serve_as": sa.Text(), "toolchain": digest, "artifact": digest, "latency_ms": sa.Double(), "created": instant,
        "record": sa.Text(), "evidence": sa.Text(),
    }  # fmt: skip
    return [sa.Column(name, kind, nullable=name == "artifact") for name, kind in kinds.items()]


def _rewrite_records(change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    """Change the JSON record of every plan; canonical JSON, as :mod:`autotune.records.canonical` writes it."""
    connection = op.get_bind()
    for (uid,) in connection.execute(sa.text("SELECT uid FROM plan")).all():
        text = connection.execute(sa.text("SELECT record FROM plan WHERE uid = :uid"), {"uid": uid}).scalar()
        try:
            record = change(json.loads(str(text)))
        except (TypeError, ValueError, AttributeError):
            continue  # a damaged row stays as it is, for `autotune db check` to name
        values = {"record": json.dumps(record, sort_keys=True, separators=(",", ":")), "uid": uid}
        connection.execute(sa.text("UPDATE plan SET record = :record WHERE uid = :uid"), values)
