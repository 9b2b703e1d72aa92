"""Device classes side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.records.canonical import canonical
from autotune.records.configuration import Configuration
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.report import distinction, words
from autotune.report.fitting_table import FittingTable


def rows_by_device(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Make one row for each model, structure, batch, objective with its constraints, serving format and device class.

    It is that of the newest plan; ``weights_known`` counts the different weights that such plans were found for. Sorted
    by model and batch, then by latency.
    """
    groups: dict[tuple[str, int, str, Objective, str, str], list[Plan]] = {}
    for plan in plans:
        device_class = plan.device.device_class
        key = (plan.name, plan.batch, plan.structure, plan.objective, plan.serve_as, device_class)
        groups.setdefault(key, []).append(plan)
    rows = [_row(group) for group in groups.values()]
    return sorted(rows, key=lambda row: (row["name"], row["batch"], row["objective"], row["plan"]["latency_ms"]))


def compare_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """One table a model, batch and objective; what else distinguishes rows stands in it if it differs between them."""
    if not rows:
        return Text("no plan to compare; make one with: autotune tune STUDY_FILE")
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["batch"], row["objective"]), []).append(row)
    return Group(*(_table(f"{name}, batch {batch}, {aim}", group) for (name, batch, aim), group in groups.items()))


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> FittingTable:
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


def _differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the columns that distinguish the rows of one table; weights also if a row stands for several."""
    keys = {"structure": "structure", "constraints": "constraints", "served as": "serve_as"}
    found = [name for name, key in keys.items() if len({canonical(row[key]) for row in rows}) > 1]
    if any(row["weights_known"] > 1 for row in rows):
        found.append("weights")
    return [name for name in distinction.PARTS if name in found]


def _part(row: Mapping[str, Any], name: str) -> str:
    if name == "constraints":
        return distinction.constraints(Objective.from_dict({"name": row["objective"], **row["constraints"]}))
    if name == "served as":
        return str(row["serve_as"])
    text = distinction.short(row[name])
    several = name == "weights" and row["weights_known"] > 1
    return f"{text} (newest of {row['weights_known']})" if several else text


def _row(plans: Sequence[Plan]) -> dict[str, Any]:
    plan = max(plans, key=lambda each: (each.created, each.uid))
    return {
        "name": plan.name,
        "batch": plan.batch,
        "structure": plan.structure,
        "weights": plan.weights,
        "weights_known": len({each.weights for each in plans}),
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


def _compared(plan: Plan) -> dict[str, Any]:
    """What the objective compares, in its unit; the median latency where the evidence names nothing else."""
    figures, unit = plan.evidence.objective, plan.objective.unit
    if figures is not None:
        interval = list(figures.interval)
        return {"unit": unit, "value": figures.value, "interval": interval, "baseline": figures.baseline}
    interval = list(plan.interval_ms)
    return {"unit": unit, "value": plan.latency_ms, "interval": interval, "baseline": plan.baseline_latency_ms}
