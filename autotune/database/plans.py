"""Queries on plans; each runs in the transaction it gets."""

from sqlalchemy import Connection, bindparam, delete, select
from sqlalchemy.orm import Session

from autotune.database.plan_rows import device_classes, plan_record
from autotune.database.rows import plan_of, plan_values
from autotune.database.schema import PlanTable
from autotune.objective import Objective
from autotune.plan import Plan

# Built once: most of what a look-up costs is making and compiling its statement.
_CANDIDATES = (
    select(PlanTable.weights, PlanTable.objective, PlanTable.serve_as, PlanTable.record, PlanTable.evidence)
    .where(PlanTable.structure == bindparam("structure"), PlanTable.device_class == bindparam("device_class"))
    .order_by(PlanTable.latency_ms, PlanTable.uid)
)


def find(
    connection: Connection, structure: str, device_class: str, objective: Objective, serve_as: str, weights: str | None
) -> Plan | None:
    """See :meth:`autotune.database.store.Store.find_plan`."""
    rows = connection.execute(_CANDIDATES, {"structure": structure, "device_class": device_class})
    serving = [
        row
        for row in rows
        if serve_as in ("any", row.serve_as) and Objective.from_dict(row.objective).serves(objective)
    ]
    if not serving:
        return None
    best = min(serving, key=lambda row: weights is not None and row.weights != weights)  # the first, so the fastest
    return plan_record(best.record, best.evidence)


def listed(session: Session, name: str | None, batch: int | None, device: str | None) -> list[Plan]:
    """See :meth:`autotune.database.store.Store.plans`."""
    query = select(PlanTable).order_by(PlanTable.name, PlanTable.batch, PlanTable.device_class, PlanTable.latency_ms)
    if name is not None:
        query = query.where(PlanTable.name == name)
    if batch is not None:
        query = query.where(PlanTable.batch == batch)
    if device is not None:
        classes = session.scalars(select(PlanTable.device_class).distinct()).all()
        query = query.where(PlanTable.device_class.in_(device_classes(list(classes), device)))
    return [plan_of(row) for row in session.scalars(query)]


def put(session: Session, plan: Plan) -> set[str]:
    """Write a plan in place of the one with its key; gives the artifacts that were replaced."""
    values = plan_values(plan)
    former = [row for row in (same_key(session, plan), session.get(PlanTable, plan.uid)) if row is not None]
    session.execute(delete(PlanTable).where(PlanTable.uid.in_([row.uid for row in former])))
    session.add(PlanTable(**values))
    session.flush()
    return {row.artifact for row in former if row.artifact is not None}


def same_key(session: Session, plan: Plan) -> PlanTable | None:
    """Give the row that a plan would replace."""
    values = plan_values(plan)
    keys = ("structure", "weights", "device_class", "serve_as", "objective_digest")
    return session.scalars(select(PlanTable).where(*(getattr(PlanTable, key) == values[key] for key in keys))).first()
