"""The comparison of device classes: one row per device class."""

from collections.abc import Sequence
from typing import TypedDict

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.records.canonical import canonical
from autotune.records.configuration import Configuration, Scalar
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.report import distinction, words
from autotune.report.fitting_table import FittingTable


class ComparedPlan(TypedDict):
    """The figures of the plan of a row."""

    backend: str
    configuration: dict[str, Scalar]
    latency_ms: float
    interval_ms: list[float]
    speedup: float
    signal_error: float | None
    status: str
    flags: list[str]


class ComparedFigures(TypedDict):
    """The values that the objective compares, in its unit: the plan's with its 95% interval, and the baseline's."""

    unit: str
    value: float
    interval: list[float]
    baseline: float


class ComparedRow(TypedDict):
    """A row of ``autotune compare --json``.

    It describes the newest of its plans; ``weights_known`` is the number of different weights that its plans are for.
    """

    name: str
    batch: int
    structure: str
    weights: str
    weights_known: int
    objective: str
    constraints: dict[str, object]
    serve_as: str
    device: str
    device_class: str
    baseline_latency_ms: float
    plan: ComparedPlan
    compared: ComparedFigures
    created: str


def rows_by_device(plans: Sequence[Plan]) -> list[ComparedRow]:
    """Return a row for each model, structure, batch, objective with its constraints, serving format and device class.

    The rows are sorted by model, batch and objective, then by latency.
    """
    groups: dict[tuple[str, int, str, Objective, str, str], list[Plan]] = {}
    for plan in plans:
        device_class = plan.device.device_class
        key = (plan.name, plan.batch, plan.structure, plan.objective, plan.serve_as, device_class)
        groups.setdefault(key, []).append(plan)
    rows = [_row(group) for group in groups.values()]
    return sorted(rows, key=lambda row: (row["name"], row["batch"], row["objective"], row["plan"]["latency_ms"]))


def compare_table(rows: Sequence[ComparedRow]) -> RenderableType:
    """Show one table per model, batch and objective; other parts are columns if they differ between its rows."""
    if not rows:
        return Text("no plan to compare; create one with: autotune tune STUDY_FILE")
    groups: dict[tuple[str, int, str], list[ComparedRow]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["batch"], row["objective"]), []).append(row)
    return Group(
        *(_table(f"{name}, batch {batch}, {objective}", group) for (name, batch, objective), group in groups.items())
    )


def _table(title: str, rows: Sequence[ComparedRow]) -> FittingTable:
    parts = _differing(rows)
    table = FittingTable(title=title, title_justify="left")
    table.add_column("device class", overflow="fold")
    for name in parts:
        table.add_column(name, overflow="fold")
    table.add_column("baseline", justify="right", no_wrap=True)
    table.add_column("plan", overflow="fold")
    table.add_column("plan's [95% interval]", justify="right", no_wrap=True)
    table.add_column("speedup", justify="right", no_wrap=True)
    table.add_column("measured under", overflow="fold")
    for row in rows:
        plan, compared = row["plan"], row["compared"]
        configuration = Configuration.from_dict(plan["configuration"])
        table.add_row(
            row["device_class"],
            *(_part(row, name) for name in parts),
            words.figure(compared["baseline"], compared["unit"]),
            f"{configuration.backend}: {words.knobs(configuration)}",
            words.figure_with_interval(compared["value"], compared["interval"], compared["unit"]),
            words.speedup(plan["speedup"]),
            ", ".join(plan["flags"]),
        )
    return table


def _differing(rows: Sequence[ComparedRow]) -> list[str]:
    """Return the parts that distinguish the rows of a table; weights are among them if a row has several."""
    values = {
        "structure": {row["structure"] for row in rows},
        "constraints": {canonical(row["constraints"]) for row in rows},
        "served as": {row["serve_as"] for row in rows},
    }
    differing = [name for name, distinct in values.items() if len(distinct) > 1]
    if any(row["weights_known"] > 1 for row in rows):
        differing.append("weights")
    return [name for name in distinction.PARTS if name in differing]


def _part(row: ComparedRow, name: str) -> str:
    if name == "constraints":
        return distinction.constraints(Objective.from_dict({"name": row["objective"], **row["constraints"]}))
    if name == "served as":
        return row["serve_as"]
    if name == "structure":
        return distinction.short(row["structure"])
    weights = distinction.short(row["weights"])
    return f"{weights} (newest of {row['weights_known']})" if row["weights_known"] > 1 else weights


def _row(plans: Sequence[Plan]) -> ComparedRow:
    plan = max(plans, key=lambda plan: (plan.created, plan.uid))
    return {
        "name": plan.name,
        "batch": plan.batch,
        "structure": plan.structure,
        "weights": plan.weights,
        "weights_known": len({plan.weights for plan in plans}),
        "objective": plan.objective.name,
        "constraints": {name: value for name, value in plan.objective.as_dict().items() if name != "name"},
        "serve_as": plan.serve_as,
        "device": plan.device.sku,
        "device_class": plan.device.device_class,
        "baseline_latency_ms": plan.baseline_latency_ms,
        "plan": {
            "backend": plan.configuration.backend,
            "configuration": plan.configuration.as_dict(),
            "latency_ms": plan.latency_ms,
            "interval_ms": list(plan.interval_ms),
            "speedup": plan.speedup,
            "signal_error": plan.signal_error,
            "status": plan.status,
            "flags": list(plan.flags),
        },
        "compared": _compared(plan),
        "created": plan.created,
    }


def _compared(plan: Plan) -> ComparedFigures:
    """Return the values that the objective compares; the median latencies if the evidence has no others."""
    figures, unit = plan.evidence.objective, plan.objective.unit
    if figures is not None:
        interval = list(figures.interval)
        return {"unit": unit, "value": figures.value, "interval": interval, "baseline": figures.baseline}
    interval = list(plan.interval_ms)
    return {"unit": unit, "value": plan.latency_ms, "interval": interval, "baseline": plan.baseline_latency_ms}
