"""The bench of a stored plan: it is timed again by the rules of the finals, and compared with them."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.errors import ArtifactError, DeviceError, RequestError
from autotune.kernels.executor import STEPS
from autotune.measure.conditions import all_readings, observed_number
from autotune.records.device import Device
from autotune.records.plan import Plan
from autotune.records.trial import Measurement
from autotune.scratch import ScratchFolder

if TYPE_CHECKING:
    from autotune.database.store import Store
    from autotune.execute.finals import FinalsResult
    from autotune.execute.notices import Tell
    from autotune.measure.comparison import Drift


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOutcome:
    """A plan timed again: the fresh measurement, its disturbances (``flags``), and the drift from the stored one."""

    plan: Plan
    drift: "Drift"
    fresh: Measurement
    flags: tuple[str, ...]
    percentiles: Mapping[str, float | None]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "name": self.plan.name,
            "batch": self.plan.batch,
            "structure": self.plan.structure,
            "weights": self.plan.weights,
            "device": self.plan.device.sku,
            "configuration": self.plan.configuration.as_dict(),
            **self.drift.as_dict(),
            "flags": list(self.flags),
            "percentiles": dict(self.percentiles),
            "measurement": self.fresh.as_dict(),
        }


def bench_plan(plan: Plan, store: "Store", device: Device, tell: "Tell | None" = None) -> BenchOutcome:
    """Time a plan's artifact in fresh processes on the inputs of its study, and compare with its finals.

    ``tell`` shows a line to the user: the process that is waited for, and other processes on the device; by default
    the log does. Raises DeviceError on a device of another class, ArtifactError if the artifact or the measurement to
    compare with is not here, RequestError if the plan does not say how its inputs are made.
    """
    from autotune.execute.finals import ALONE
    from autotune.measure.comparison import TOLERANCE, drift
    from autotune.measure.percentiles import summary

    if device.device_class != plan.device.device_class:
        raise DeviceError(
            f"{plan.name} at batch {plan.batch} cannot be timed on {device.name}",
            found=device.device_class,
            expected=f"a device of the class that the plan is for: {plan.device.device_class}",
            run="autotune tune, for a plan on this device",
        )
    timed = store.trials.measurements(plan.evidence.trial, "alone")
    stored = [alone for alone in timed if alone.conditions.get("kernels", plan.kernels) == plan.kernels]
    if plan.artifact is None or not store.artifacts.has(plan.artifact) or not stored:
        raise ArtifactError(
            f"{plan.name} at batch {plan.batch} cannot be timed again",
            found="its artifact is not in this store" if stored else "its measurement alone is not in this database",
            expected="a plan that was tuned here, or merged with its artifact and trials",
            run="autotune tune with its study file, which builds it again",
        )
    result = _timed_again(plan, store.artifacts.open(plan.artifact), device, tell)
    fresh, flags = result.measurements[ALONE], result.flags[ALONE]
    machine = machine_change(stored[-1], fresh)
    doubts = [*flags, f"a machine whose own speed changed by {machine:+.1%}"] if abs(machine) > TOLERANCE / 2 else flags
    return BenchOutcome(
        plan=plan,
        drift=drift(stored[-1], fresh, flags=doubts),
        fresh=fresh,
        flags=flags,
        percentiles=asdict(summary(fresh.flat_ms)),
    )


def machine_change(stored: Measurement, fresh: Measurement) -> float:
    """Return the relative change in time of the canary, a small fixed piece of work; 0 if it was not measured.

    If the processor of a host runs at another speed, every plan on it seems to drift, and none of them does.
    """
    then, now = (_canary_ms(side) for side in (stored, fresh))
    return now / then - 1 if then and now else 0.0


def _canary_ms(side: Measurement) -> float | None:
    times = [
        observed_number(readings, "canary", name)
        for readings in all_readings(side.conditions)
        for name in ("before_ms", "after_ms")
    ]
    measured = [time_ms for time_ms in times if time_ms > 0]
    return statistics.median(measured) if measured else None


def _timed_again(plan: Plan, artifact: Path, device: Device, tell: "Tell | None") -> "FinalsResult":
    from autotune.execute.executor import Executor
    from autotune.execute.finals import time_alone
    from autotune.execute.server import WorkerServer
    from autotune.execute.timing import TimeSplit

    with (
        ScratchFolder("bench") as folder,
        WorkerServer(folder, steps=STEPS, work=f"autotune bench of {plan.name}", tell=tell) as server,
    ):
        executor = Executor(server, folder, device, TimeSplit())
        _write_model(plan, artifact, executor.model)
        return time_alone(executor, artifact, _seed(plan))


def _write_model(plan: Plan, artifact: Path, folder: Path) -> None:
    """Write the model's signature, and the same inputs as in the finals; a worker needs no more."""
    from autotune.execute import input_sets
    from autotune.execute.input_sets import write_sets
    from autotune.model.inputs import InputSpec, generate
    from autotune.model.source import RECORD
    from autotune.records.workload import Workload
    from autotune.runtime.artifact import read_record

    if not plan.evidence.inputs:
        raise RequestError(
            f"{plan.name} at batch {plan.batch} cannot be timed again",
            found="a plan for tensors that were given in Python; they are not stored",
            expected="a plan of a study file, which says how inputs are made",
            run="autotune.measure(autotune.load(model, inputs), inputs)",
        )
    record = read_record(artifact)
    workload = Workload(
        name=plan.name, batch=plan.batch, structure=plan.structure, weights=plan.weights, inputs=record.inputs,
        outputs=record.outputs,
    )  # fmt: skip
    specs = [InputSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in plan.evidence.inputs]
    folder.mkdir(parents=True)
    model = {"workload": workload.as_dict(), "output_schema": record.output_schema, "signature": record.signature}
    (folder / RECORD).write_text(json.dumps({**model, "factory": None, "seed": 0}))
    sets = generate(specs, plan.batch, _seed(plan), input_sets.TIMING_SETS, "timing")
    write_sets(folder / input_sets.TIMING, sets)


def _seed(plan: Plan) -> int:
    if plan.evidence.seed is None:
        raise ValueError(f"the evidence of plan {plan.uid} has no seed")
    return plan.evidence.seed
