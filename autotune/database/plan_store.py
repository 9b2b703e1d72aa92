"""The plans of the tuning database: PlanStore, the attribute ``plans`` of a store."""

import dataclasses
import uuid
from collections.abc import Sequence
from typing import Any

from autotune.database import former_plans, plans
from autotune.database.artifacts import ArtifactStore
from autotune.database.transactions import Transactions
from autotune.database.trials import unneeded
from autotune.records.device import Toolchain
from autotune.records.identity import PlanKey
from autotune.records.plan import Plan


class PlanStore:
    """Promoted plans; errors as those of :class:`autotune.database.store.Store`."""

    def __init__(self, transactions: Transactions, artifacts: ArtifactStore) -> None:
        self._transactions = transactions
        self._artifacts = artifacts

    def promote(self, plan: Plan) -> Plan:
        """Store a plan in place of the one of its structure, weights, device class, objective and serving format.

        Returns it as it is stored: with the time of its creation.
        """
        if not plan.created:
            plan = dataclasses.replace(plan, created=self._transactions.now())
        with self._transactions.writing() as session:
            self._artifacts.discard(unneeded(session, plans.put(session, plan)))
        return plan

    def find(self, key: PlanKey, weights: str | None = None) -> Plan | None:
        """Return the fastest plan that serves: one for these weights, else one for other weights of the same structure.

        Among them one that answers in the requested form comes first. A plan found under looser constraints never
        serves; ``any`` is served by plans of every format. The caller checks whether its artifact fits the weights and
        the toolchain at hand. A row that cannot be read is passed over; DatabaseError if no other one serves.
        """
        with self._transactions.single_query() as connection:
            return plans.find(connection, key, weights)

    def nearest(self, key: PlanKey, name: str, former: str = "") -> Sequence[Plan]:
        """Return plans that are close to a request that none serves, nearest first: of its structure, or of its name.

        ``former`` is the structure by fingerprint 1, if that is another one.
        """
        with self._transactions.single_query() as connection:
            return plans.nearest(connection, key, name, former)

    def related(self, name: str, device_class: str, objective: str, limit: int) -> Sequence[Plan]:
        """Return plans of an objective, at most ``limit``: those of a device class first, among them those of a name.

        Those of the same class and name come before those of other models on that class; then other classes follow in
        the same order. Newer plans come before older ones.
        """
        with self._transactions.single_query() as connection:
            return plans.related(connection, name, device_class, objective, limit)

    def list(self, name: str | None = None, batch: int | None = None, device: str | None = None) -> Sequence[Plan]:
        """Return plans by name, batch and device: any part of a SKU that fits one SKU only (else DeviceError)."""
        with self._transactions.reading() as session:
            return plans.listed(session, name, batch, device)

    def get(self, uid: str) -> Plan:
        """Return the plan with this uid; raises ``ValueError`` if there is none."""
        with self._transactions.reading() as session:
            return plans.by_uid(session, uid)

    def former(self) -> Sequence[Plan]:
        """Return the plans that others have replaced under another toolchain, newest first, without their artifacts.

        They are for comparisons: no look-up returns one. A database of an earlier revision that can only be read has
        none.
        """
        with self._transactions.reading() as session:
            return former_plans.former_plans(session)

    def replace_artifact(self, uid: str, digest: str, weights: str, toolchain: Toolchain, **changes: Any) -> Plan:
        """Store the artifact that was built again from a plan's configuration and passed the gate again.

        ``changes`` are other fields of the plan, such as ``form``, ``kernels`` or new figures. With the plan's own
        weights and form it is changed in place. With others a second plan is stored beside it, so that two models of
        one structure do not take each other's artifact away. New figures under another toolchain are those of a new
        plan, and the former one is kept as for :meth:`promote`.
        """
        with self._transactions.writing() as session:
            former = plans.by_uid(session, uid)
            plan = dataclasses.replace(former, artifact=digest, weights=weights, toolchain=toolchain, **changes)
            if plan.weights != former.weights or former.form not in ("", plan.form):
                plan = dataclasses.replace(plan, uid=uuid.uuid4().hex)
            elif "evidence" in changes and plan.measured_under != former.measured_under:
                plan = dataclasses.replace(plan, uid=uuid.uuid4().hex, created=self._transactions.now())
            self._artifacts.discard(unneeded(session, plans.put(session, plan) - {digest}))
            return plan
