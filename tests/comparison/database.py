"""A small database of plans to compare: two GPUs, a CPU, two models, and plans that stand apart for each reason."""

from collections.abc import Mapping
from dataclasses import replace

from autotune.database.store import Store
from autotune.records.device import Device
from autotune.records.evidence import FinalistRecord, ObjectiveFigures, PlanEvidence
from autotune.records.identity import Conditions
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.study.identity import measuring
from autotune.testing import sample_records

H200 = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0), power_limit_w=700)
L4 = Device(kind="cuda", name="NVIDIA L4", uuid="GPU-2", capability=(8, 9), power_limit_w=72)
CPU = Device(kind="cpu", name="AMD EPYC", uuid="cpu", cores=2, isa=("avx2",))
TRACE = {"trace": {"available": True, "sm_efficiency": 0.75, "gpu_utilisation": 0.8}}


def conditions(device: Device, **changes: object) -> Conditions:
    """Conditions of the present protocol on a device."""
    return replace(sample_records.CONDITIONS, measuring=measuring(device), **changes)


def add(
    store: Store,
    device: Device,
    latency_ms: float,
    *,
    name: str = "resnet50",
    batch: int = 1,
    objective: Objective | None = None,
    figures: ObjectiveFigures | None = None,
    width: float = 0.02,
    flags: tuple[str, ...] = (),
    known: bool = True,
    protocol: Conditions | None = None,
    versions: Mapping[str, str] | None = None,
    **changes: object,
) -> Plan:
    """Store a plan with its study; ``known=False`` leaves the study out, ``protocol`` are its conditions.

    ``versions`` are those of the libraries at the time of its finals.
    """
    objective = objective or Objective()
    model = sample_records.sample_workload(name, batch)
    study = None
    if known:
        study = sample_records.begin(
            store, name, workload=model, device=device, objective=objective,
            conditions=protocol if protocol is not None else conditions(device), space_digest=f"{batch} {changes}",
        ).uid  # fmt: skip
    trial = sample_records.digest(f"{name} {batch} {device.name} {objective.name} {changes}")[:32]
    interval = ((1 - width) * latency_ms, (1 + width) * latency_ms)
    winner = FinalistRecord(
        uid=trial, configuration=sample_records.configuration(), latency_ms=latency_ms, interval_ms=interval,
        flags=flags, utilisation=TRACE if device.kind == "cuda" else None,
    )  # fmt: skip
    values = {
        "structure": model.structure, "weights": model.weights, "device": device, "objective": objective,
        "latency_ms": latency_ms, "interval_ms": interval, "baseline_latency_ms": 3 * latency_ms, "speedup": 3.0,
        "evidence": PlanEvidence(study=study, trial=trial, finalists=(winner,), objective=figures, toolchain=versions),
    }  # fmt: skip
    plan = replace(sample_records.PLAN, uid=trial, name=name, batch=batch, **{**values, **changes})
    store.plans.promote(plan)
    return store.plans.get(plan.uid)


def measured(store: Store, device: Device, latency_ms: float, torch: str, day: int, **changes: object) -> Plan:
    """Store a plan that was measured under a version of torch on a day."""
    versions = {"torch": torch, "triton": "3.5.0"}
    return add(store, device, latency_ms, versions=versions, created=f"2026-01-{day:02}T00:00:00+00:00", **changes)


def energy(value: float) -> dict[str, object]:
    """The objective energy and the figures of a plan of it, in Joule a call."""
    interval = (0.9 * value, 1.1 * value)
    figures = ObjectiveFigures(name="energy", unit="J", value=value, interval=interval, baseline=3 * value)
    return {"objective": Objective(name="energy"), "figures": figures}


def count_work(store: Store, name: str = "resnet50", batch: int = 1, *, flops: int, traffic_bytes: int) -> None:
    """Store the work of a workload, as a study does that is begun by this version."""
    model = replace(sample_records.sample_workload(name, batch), flops=flops, traffic_bytes=traffic_bytes)
    sample_records.begin(store, name, workload=model)
