"""Records that the tests of the tuning database share."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from autotune.database.rows import StudyRow, kernel_record
from autotune.database.schema import KernelTrialTable
from autotune.database.store import Store
from autotune.database.transactions import Transactions
from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.records.identity import Conditions, PlanKey
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.trial import Failure, FailureKind, Measurement, Trial
from autotune.records.workload import TensorSpec, Workload

TOOLCHAIN = Toolchain.of({"torch": "2.13.0"})
DEVICE = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0), power_limit_w=700)
OBJECTIVE = Objective()
SAMPLES = Measurement(samples_ms=((1.0, 1.1, 1.2),), protocol={"name": "trial"}, conditions={"threads": 2})

PROBLEM = GemmProblem(m=128, n=768, k=3072, bias=True)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def workload(name: str = "resnet50", batch: int = 1, weights: str = "w") -> Workload:
    spec = TensorSpec(name="x", shape=(batch, 3), dtype="float32")
    return Workload(
        name=name,
        batch=batch,
        structure=digest(f"{name}/{batch}"),
        weights=digest(weights),
        inputs=(spec,),
        outputs=(spec,),
    )


CONDITIONS = Conditions(form="f" * 64, inputs="i" * 64, toolchain="t" * 64, measuring="m" * 64)


def key(**changes: Any) -> PlanKey:
    """What the plan of these records is found by."""
    values: dict[str, Any] = {
        "structure": workload().structure,
        "form": "",
        "device_class": DEVICE.device_class,
        "objective": OBJECTIVE,
        "serve_as": "any",
    }
    return PlanKey(**(values | changes))


def configuration(level: int = 0, backend: str = "inductor") -> Configuration:
    return Configuration.of(backend, {"level": level, "freezing": True})


def begin(store: Store, name: str = "resnet50", **changes: Any) -> StudyRow:
    values: dict[str, Any] = {
        "workload": workload(name),
        "device": DEVICE,
        "objective": OBJECTIVE,
        "serve_as": "any",
        "space_digest": digest("space"),
        "seed": 0,
        "settings": {"trials": 60},
        "conditions": CONDITIONS,
    }
    return store.studies.begin(name, **(values | changes))


def by_clock(store: Store, clock: Callable[[], datetime]) -> Store:
    """The same store by another clock."""
    transactions = store.transactions
    return Store(Transactions(transactions.engine, transactions.location, clock), store.artifacts)


def complete(trial: Trial, latency_ms: float = 1.1, artifact: str | None = None) -> Trial:
    return replace(trial, state="complete", latency_ms=latency_ms, signal_error=1e-3, build_s=2.0, artifact=artifact)


def failed(trial: Trial, **changes: Any) -> Trial:
    failure = Failure(**({"stage": "build", "kind": "crash", "detail": "signal 11", "log_tail": "\x00 tail"} | changes))
    return replace(trial, state="failed", failure=failure)


def tried(store: Store, study: StudyRow, level: int = 0, **changes: Any) -> Trial:
    trial = complete(store.trials.claim(study.uid, configuration(level), TOOLCHAIN.digest), **changes)
    store.trials.finish(trial, {"screening": SAMPLES})
    return trial


def kernel(stage: int = 0, median_us: float = 10.0, **changes: Any) -> KernelTrial:
    """A kernel that completed; with a ``failure`` one that failed."""
    values: dict[str, Any] = {
        "problem": PROBLEM,
        "device_class": DEVICE.device_class,
        "toolchain": TOOLCHAIN.digest,
        "configuration": Configuration.of("cutlass", {"tile_m": 64, "stages": stage}),
        "state": "complete",
        "samples_us": (median_us, 1.1 * median_us, 0.9 * median_us),
        "error": 1e-4,
        "made": {"registers": 168, "compile_s": 42.5},
        "conditions": {"l2": "cold", "clock_mhz": [1980, 1965]},
    }
    if changes.get("failure") is not None:
        values |= {"state": "failed", "samples_us": (), "error": None}
    return KernelTrial(**(values | changes))


def lost(kind: FailureKind = "crash") -> Failure:
    return Failure(stage="measure", kind=kind, detail="an illegal address", log_tail="\x00 tail")


def kernel_content(store: Store) -> dict[str, tuple[str, str]]:
    """Kernel trials by their uid, with when they were written."""
    with store.transactions.reading() as session:
        rows = session.scalars(select(KernelTrialTable))
        return {row.uid: (row.created, json.dumps(kernel_record(row.record).as_dict())) for row in rows}


def plan(uid: str = "p1", model: Workload | None = None, **changes: Any) -> Plan:
    model = model or workload()
    values: dict[str, Any] = {
        "uid": uid,
        "name": model.name,
        "batch": model.batch,
        "structure": model.structure,
        "weights": model.weights,
        "device": DEVICE,
        "toolchain": TOOLCHAIN,
        "objective": OBJECTIVE,
        "serve_as": "any",
        "configuration": configuration(),
        "status": "promoted",
        "artifact": None,
        "latency_ms": 1.0,
        "interval_ms": (0.9, 1.1),
        "baseline_latency_ms": 2.0,
        "speedup": 2.0,
        "signal_error": 1e-3,
        "evidence": {"finals": [{"samples_ms": [1.0, 1.1]}]},
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Plan(**(values | changes))


def folder_with(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return path
