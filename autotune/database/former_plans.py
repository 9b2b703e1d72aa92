"""Queries on former plans; each runs in the transaction of its argument.

A former plan was replaced by one that was measured under another toolchain, so that both can be compared. Of each plan
key and measured toolchain the newest is kept: the table of plans has the newest of all toolchains, and this one that of
every other toolchain. So the result does not depend on the order in which plans arrive.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

from autotune.database.rows import former_plan_values, parse_instant, plan_key_values, plan_of
from autotune.database.schema import FormerPlanTable, PlanTable
from autotune.errors import DatabaseError
from autotune.records.plan import Plan


def succeed(session: Session, plan: Plan, replaced: PlanTable | None) -> None:
    """Keep the plan that a new one replaces, and drop those that the new one makes superfluous.

    A plan that is replaced by itself has only got another artifact: that is no new measurement. Plans that are dated
    after the new one are dropped, as if its date were right: otherwise merging would depend on the order.
    """
    measured = plan.measured_under.digest
    for row in session.scalars(select(FormerPlanTable).filter_by(**plan_key_values(plan))).all():
        if row.measured == measured or (row.created, row.uid) > _age(plan):
            session.delete(row)
    session.flush()
    if replaced is not None:
        # The figures of a damaged plan cannot be kept, but that must not refuse the new plan.
        with contextlib.suppress(DatabaseError, ValueError):
            keep(session, plan_of(replaced), plan)


def keep(session: Session, plan: Plan, present: Plan | None) -> bool:
    """Keep a plan beside the present one of its key; returns whether a row was written.

    It is not kept if it is the present one, was measured under the same toolchain, is dated after it, or if a newer one
    of its toolchain is kept already.
    """
    if present is not None and (plan.uid == present.uid or _age(plan) > _age(present)):
        return False
    values = former_plan_values(replace(plan, artifact=None))
    if present is not None and values["measured"] == present.measured_under.digest:
        return False
    row = session.scalars(
        select(FormerPlanTable).filter_by(**plan_key_values(plan), measured=values["measured"])
    ).first()
    if row is not None:
        if (row.created, row.uid) >= _age(plan):
            return False
        session.delete(row)
        session.flush()
    session.add(FormerPlanTable(**values))
    session.flush()
    return True


def former_plans(session: Session, names: Sequence[str] | None = None) -> list[Plan]:
    """Return the former plans, or those of some names, newest first; none if the database has no table of them."""
    if not inspect(session.connection()).has_table(FormerPlanTable.__tablename__):
        return []
    table = FormerPlanTable
    query = select(table).order_by(table.created.desc(), table.uid, table.measured)
    if names is not None:
        query = query.where(table.name.in_(names))
    return [plan_of(row) for row in session.scalars(query)]


def _age(plan: Plan) -> tuple[str, str]:
    """Return the key by which the newer of two plans is found."""
    return parse_instant(plan.created), plan.uid
