"""Sample records of every kind that a tuning database stores, for tests of a store."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.records.evidence import PlanEvidence
from autotune.records.identity import Conditions, PlanKey
from autotune.records.kernel_final import KernelFinal, KernelFinalist
from autotune.records.kernel_problem import GemmProblem
from autotune.records.kernel_trial import KernelTrial
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.records.roofs import Roof, Roofs
from autotune.records.trial import Failure, FailureKind, Measurement, Stage, Trial
from autotune.records.workload import TensorSpec, Workload

if TYPE_CHECKING:
    from autotune.database.rows import StudyLimits, StudyRow
    from autotune.database.store import Store

TOOLCHAIN = Toolchain.of({"torch": "2.13.0"})
NEWER_TOOLCHAIN = Toolchain.of({"torch": "2.14.0"})
DEVICE = Device(kind="cuda", name="NVIDIA H200", uuid="GPU-1", capability=(9, 0), power_limit_w=700)
OTHER_DEVICE = Device(kind="cuda", name="NVIDIA H100", uuid="GPU-2", capability=(9, 0), power_limit_w=700)
OBJECTIVE = Objective()
STRICT = Objective(signal_error=1e-3)
LOOSE = Objective(signal_error=1e-1)
SCREENING = Measurement(samples_ms=((1.0, 1.1, 1.2),), protocol={"name": "trial"}, conditions={"threads": 2})
FINALS = Measurement(samples_ms=((2.0, 2.1), (2.2, 2.3)), device_samples_ms=((1.9,),))
CONDITIONS = Conditions(form="f" * 64, inputs="i" * 64, toolchain="t" * 64, measuring="m" * 64)


def digest(text: str) -> str:
    """Return the SHA-256 of a text, in place of the digest of anything."""
    return hashlib.sha256(text.encode()).hexdigest()


def sample_workload(name: str = "resnet50", batch: int = 1, weights: str = "w") -> Workload:
    """Return a workload whose structure follows from its name and batch."""
    spec = TensorSpec(name="x", shape=(batch, 3), dtype="float32")
    return Workload(
        name=name,
        batch=batch,
        structure=digest(f"{name}/{batch}"),
        weights=digest(weights),
        inputs=(spec,),
        outputs=(spec,),
    )


def configuration(level: int = 0, backend: str = "inductor") -> Configuration:
    """Return a configuration with one parameter that varies."""
    return Configuration.of(backend, {"level": level, "freezing": True})


PLAN = Plan(
    uid="p1",
    name="resnet50",
    batch=1,
    structure=sample_workload().structure,
    weights=sample_workload().weights,
    device=DEVICE,
    toolchain=TOOLCHAIN,
    objective=OBJECTIVE,
    serve_as="any",
    configuration=configuration(),
    status="promoted",
    artifact=None,
    latency_ms=1.0,
    interval_ms=(0.9, 1.1),
    baseline_latency_ms=2.0,
    speedup=2.0,
    signal_error=1e-3,
    evidence=PlanEvidence.from_dict({"finals": [{"samples_ms": [1.0, 1.1]}]}),
    created="2026-01-01T00:00:00+00:00",
)
KEY = PlanKey(structure=PLAN.structure, form="", device_class=DEVICE.device_class, objective=OBJECTIVE, serve_as="any")
"""The key that the plan is found by."""

PROBLEM = GemmProblem(m=128, n=768, k=3072, bias=True)


def sample_roof(value: float = 100.0, flags: tuple[str, ...] = ()) -> Roof:
    """Return a roof that was measured by three samples."""
    measurement = Measurement(samples_ms=((1.0, 1.1, 1.2),), conditions={"flags": list(flags)})
    return Roof(value=value, interval=(0.9 * value, 1.1 * value), size=2048, samples=3, measurement=measurement)


def sample_roofs(
    device: Device = DEVICE, created: str = "2026-01-01T00:00:00.000000+00:00", *, copy_gb_s: float = 4000.0,
    matrix_tflops: Mapping[str, float] | None = None, launch_us: float = 5.0,
) -> Roofs:  # fmt: skip
    """Return the roofs of a device, which has no fp16 unless ``matrix_tflops`` has it."""
    rates = {"fp32": 50.0, "bf16": 700.0} if matrix_tflops is None else matrix_tflops
    return Roofs(
        device_class=device.device_class, copy_gb_s=sample_roof(copy_gb_s),
        matrix_tflops={name: sample_roof(rate) for name, rate in rates.items()}, launch_us=sample_roof(launch_us),
        toolchain=TOOLCHAIN, created=created, absent={} if "fp16" in rates else {"fp16": "no such product"},
    )  # fmt: skip


def begin(
    store: "Store",
    name: str = "resnet50",
    *,
    workload: Workload | None = None,
    device: Device = DEVICE,
    objective: Objective = OBJECTIVE,
    serve_as: str = "any",
    space_digest: str = digest("space"),
    seed: int = 0,
    settings: Mapping[str, object] | None = None,
    conditions: Conditions | None = CONDITIONS,
    limits: "StudyLimits | None" = None,
) -> "StudyRow":
    """Begin a study in a store."""
    workload = workload or sample_workload(name)
    settings = {"trials": 60} if settings is None else settings
    return store.studies.begin(
        name, workload, device, objective, serve_as, space_digest, seed, settings, conditions, limits
    )


def complete(trial: Trial, latency_ms: float = 1.1, artifact: str | None = None) -> Trial:
    """Return a claimed trial as complete."""
    return replace(trial, state="complete", latency_ms=latency_ms, signal_error=1e-3, build_s=2.0, artifact=artifact)


def failed(
    trial: Trial,
    *,
    stage: Stage = "build",
    kind: FailureKind = "crash",
    detail: str = "signal 11",
    log_tail: str = "\x00 tail",
    figure: float | None = None,
) -> Trial:
    """Return a claimed trial as failed; by default its log holds a byte that some databases refuse in a text."""
    failure = Failure(stage=stage, kind=kind, detail=detail, log_tail=log_tail, figure=figure)
    return replace(trial, state="failed", failure=failure)


def tried(
    store: "Store", study: "StudyRow", level: int = 0, *, latency_ms: float = 1.1, artifact: str | None = None
) -> Trial:
    """Claim and finish a trial of a study, with its screening."""
    claimed = store.trials.claim(study.uid, configuration(level), TOOLCHAIN.digest)
    trial = complete(claimed, latency_ms, artifact)
    store.trials.finish(trial, {"screening": SCREENING})
    return trial


def kernel_trial(
    stages: int = 0, median_us: float = 10.0, *, problem: GemmProblem = PROBLEM, failure: Failure | None = None
) -> KernelTrial:
    """Return a kernel that completed; with a ``failure`` one that failed."""
    return KernelTrial(
        problem=problem,
        device_class=DEVICE.device_class,
        toolchain=TOOLCHAIN.digest,
        configuration=Configuration.of("cutlass", {"tile_m": 64, "stages": stages}),
        state="complete" if failure is None else "failed",
        samples_us=(median_us, 1.1 * median_us, 0.9 * median_us) if failure is None else (),
        error=1e-4 if failure is None else None,
        made={"registers": 168, "compile_s": 42.5},
        conditions={"l2": "cold", "clock_mhz": [1980, 1965]},
        failure=failure,
    )


def kernel_final(
    medians_us: Sequence[float] = (6.0, 5.0), *, problem: GemmProblem = PROBLEM, toolchain: str = TOOLCHAIN.digest
) -> KernelFinal:
    """Return a final of two rounds between the kernels of :func:`kernel_trial` with 0, 1, … stages."""
    finalists = (
        KernelFinalist(
            configuration=kernel_trial(stages).configuration, toolchain=toolchain,
            rounds_us=((0.9 * us, us, 1.2 * us), (us, us, us)),
        )
        for stages, us in enumerate(medians_us)
    )  # fmt: skip
    return KernelFinal(
        problem=problem, device_class=DEVICE.device_class, finalists=tuple(finalists), conditions={"l2": "cold"}
    )


def stored(store: "Store", folder: Path, content: str) -> str:
    """Store an artifact of one file and return its digest."""
    built = folder / "built" / content
    built.mkdir(parents=True, exist_ok=True)
    (built / "model.so").write_bytes(content.encode())
    return store.artifacts.add(built)
