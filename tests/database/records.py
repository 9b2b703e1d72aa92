"""Records that the tests of the tuning database share; most of them are autotune.testing's."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from autotune.database.rows import kernel_record
from autotune.database.schema import KernelTrialTable
from autotune.database.store import Store
from autotune.database.transactions import Transactions
from autotune.records.evidence import PlanEvidence
from autotune.records.identity import PlanKey
from autotune.records.kernel_trial import KernelTrial
from autotune.records.plan import Plan
from autotune.records.trial import Failure, FailureKind
from autotune.records.workload import Workload
from autotune.testing.sample_records import (
    CONDITIONS,
    DEVICE,
    KEY,
    OBJECTIVE,
    PLAN,
    PROBLEM,
    TOOLCHAIN,
    begin,
    complete,
    configuration,
    digest,
    failed,
    kernel_trial,
    tried,
)
from autotune.testing.sample_records import SCREENING as SAMPLES
from autotune.testing.sample_records import sample_workload as workload

__all__ = [
    "CONDITIONS",
    "DEVICE",
    "OBJECTIVE",
    "PROBLEM",
    "SAMPLES",
    "TOOLCHAIN",
    "begin",
    "complete",
    "configuration",
    "digest",
    "failed",
    "tried",
    "workload",
]


def key(**changes: Any) -> PlanKey:
    """What the plan of these records is found by."""
    return replace(KEY, **changes)


def by_clock(store: Store, clock: Callable[[], datetime]) -> Store:
    """The same store by another clock."""
    transactions = store.transactions
    return Store(Transactions(transactions.engine, transactions.location, clock), store.artifacts)


def kernel(stage: int = 0, median_us: float = 10.0, failure: Failure | None = None, **changes: Any) -> KernelTrial:
    """A kernel that completed; with a ``failure`` one that failed."""
    return replace(kernel_trial(stage, median_us, failure=failure), **changes)


def lost(kind: FailureKind = "crash") -> Failure:
    return Failure(stage="measure", kind=kind, detail="an illegal address", log_tail="\x00 tail")


def kernel_content(store: Store) -> dict[str, tuple[str, str]]:
    """Kernel trials by their uid, with when they were written."""
    with store.transactions.reading() as session:
        rows = session.scalars(select(KernelTrialTable))
        return {row.uid: (row.created, json.dumps(kernel_record(row.record).as_dict())) for row in rows}


def plan(uid: str = "p1", model: Workload | None = None, **changes: Any) -> Plan:
    model = model or workload()
    named = replace(PLAN, uid=uid, name=model.name, batch=model.batch, structure=model.structure, weights=model.weights)
    return replace(named, **changes)


def measured(uid: str, torch: str, day: int, **changes: Any) -> Plan:
    """A plan that was measured under a version of torch on a day."""
    evidence = PlanEvidence(toolchain={"torch": torch, "python": "3.11"})
    return plan(uid, evidence=evidence, created=f"2026-01-{day:02}T00:00:00+00:00", **changes)


def folder_with(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return path
