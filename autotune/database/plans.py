"""Queries on plans; each runs in the transaction of its argument."""

import json
from dataclasses import replace

from sqlalchemy import Connection, Row, Text, bindparam, delete, select, type_coerce
from sqlalchemy.orm import Session

from autotune.database import former_plans
from autotune.database.plan_rows import device_classes, plan_record, readable
from autotune.database.rows import plan_key_values, plan_values
from autotune.database.schema import PlanTable
from autotune.errors import DatabaseError
from autotune.records.identity import PlanKey
from autotune.records.objective import Objective
from autotune.records.plan import Plan

# Built once: a look-up spends most of its time on making and compiling its statement.
# By the table, not by its class: the first statement on a class makes SQLAlchemy set up all of them. JSON is read as
# text, so that an error about a damaged row names its uid.
_PLAN = PlanTable.__table__.c
_RECORD = (_PLAN.uid, type_coerce(_PLAN.record, Text).label("record"), _PLAN.evidence)
_CANDIDATES = (
    select(*_RECORD, _PLAN.weights, type_coerce(_PLAN.objective, Text).label("objective"), _PLAN.serve_as, _PLAN.form)
    .where(_PLAN.structure == bindparam("structure"), _PLAN.device_class == bindparam("device_class"))
    .order_by(_PLAN.latency_ms, _PLAN.uid)
)
_NEAREST = 20
"""The number of plans of a structure, and of plans of a name, that are compared to explain why none of them serves."""


def find(connection: Connection, key: PlanKey, weights: str | None) -> Plan | None:
    """See :meth:`autotune.database.plan_store.PlanStore.find`."""
    rows = connection.execute(_CANDIDATES, {"structure": key.structure, "device_class": key.device_class})
    serving, unreadable = [], []
    for row in rows:
        try:
            if _key(row, key).serves(key):
                serving.append(row)
        except DatabaseError as error:
            unreadable.append(error)
    # The sort is stable: of equal keys the fastest stays first.
    for row in sorted(serving, key=lambda row: (weights is not None and row.weights != weights, row.form != key.form)):
        try:
            return plan_record(row.uid, row.record, row.evidence)
        except DatabaseError as error:
            unreadable.append(error)
    if unreadable:
        raise unreadable[0]
    return None


def _key(row: Row[tuple[str, ...]], requested: PlanKey) -> PlanKey:
    with readable(f"Plan {row.uid}"):
        objective = Objective.from_dict(json.loads(row.objective))
    return replace(requested, form=row.form, objective=objective, serve_as=row.serve_as)


def nearest(connection: Connection, key: PlanKey, name: str, former: str) -> list[Plan]:
    """See :meth:`autotune.database.plan_store.PlanStore.nearest`."""
    near: dict[str, Plan] = {}
    for condition in (_PLAN.structure.in_([key.structure, *filter(None, [former])]), _PLAN.name == name):
        query = select(*_RECORD).where(condition).order_by(_PLAN.created.desc(), _PLAN.uid).limit(_NEAREST)
        for row in connection.execute(query):
            near.setdefault(row.uid, plan_record(row.uid, row.record, row.evidence))
    return sorted(near.values(), key=lambda plan: sum(1 for _ in plan.key.differences(key)))


def related(connection: Connection, name: str, device_class: str, objective: str, limit: int) -> list[Plan]:
    """See :meth:`autotune.database.plan_store.PlanStore.related`."""
    nearest = (_PLAN.device_class != device_class, _PLAN.name != name, _PLAN.created.desc(), _PLAN.uid)
    query = select(*_RECORD).where(_PLAN.objective_name == objective).order_by(*nearest).limit(limit)
    return [plan_record(row.uid, row.record, row.evidence) for row in connection.execute(query)]


def listed(session: Session, name: str | None, batch: int | None, device: str | None) -> list[Plan]:
    """See :meth:`autotune.database.plan_store.PlanStore.list`."""
    query = select(*_RECORD).order_by(_PLAN.name, _PLAN.batch, _PLAN.device_class, _PLAN.latency_ms)
    if name is not None:
        query = query.where(_PLAN.name == name)
    if batch is not None:
        query = query.where(_PLAN.batch == batch)
    if device is not None:
        classes = session.scalars(select(_PLAN.device_class).distinct()).all()
        query = query.where(_PLAN.device_class.in_(device_classes(list(classes), device)))
    return [plan_record(row.uid, row.record, row.evidence) for row in session.execute(query)]


def by_uid(session: Session, uid: str) -> Plan:
    """Return the plan with this uid; raises ``ValueError`` if there is none."""
    row = session.execute(select(*_RECORD).where(_PLAN.uid == uid)).first()
    if row is None:
        raise ValueError(f"the database has no plan {uid!r}")
    return plan_record(row.uid, row.record, row.evidence)


def put(session: Session, plan: Plan) -> set[str]:
    """Write a plan in place of the one with its key; returns the artifacts that were replaced.

    The figures of that one are kept if they were measured under another toolchain, see
    :mod:`autotune.database.former_plans`.
    """
    values = plan_values(plan)
    replaced = same_key(session, plan)
    rows = [row for row in (replaced, session.get(PlanTable, plan.uid)) if row is not None]
    former_plans.succeed(session, plan, replaced)
    session.execute(delete(PlanTable).where(PlanTable.uid.in_([row.uid for row in rows])))
    session.add(PlanTable(**values))
    session.flush()
    return {row.artifact for row in rows if row.artifact is not None}


def same_key(session: Session, plan: Plan) -> PlanTable | None:
    """Return the row that a plan would replace."""
    return session.scalars(select(PlanTable).filter_by(**plan_key_values(plan))).first()
