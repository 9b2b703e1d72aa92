"""Device classes side by side."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.configuration import Configuration
from autotune.plan import Plan
from autotune.report import words


def rows_by_device(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Make one row for each model, batch, objective and device class: that of the newest plan.

    Sorted by model and batch, then by latency.
    """
    newest: dict[tuple[str, int, str, str], Plan] = {}
    for plan in plans:
        key = (plan.name, plan.batch, plan.objective.name, plan.device.device_class)
        if key not in newest or (plan.created, plan.uid) > (newest[key].created, newest[key].uid):
            newest[key] = plan
    rows = [_row(plan) for plan in newest.values()]
    return sorted(rows, key=lambda row: (row["name"], row["batch"], row["objective"], row["plan"]["latency_ms"]))


def compare_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """One table a model and batch, one row a device class."""
    if not rows:
        return Text("no plan to compare; make one with: autotune tune STUDY_FILE")
    tables: list[RenderableType] = []
    for name, batch, objective in dict.fromkeys((row["name"], row["batch"], row["objective"]) for row in rows):
        table = Table(title=f"{name}, batch {batch}, {objective}", title_justify="left")
        table.add_column("device class", overflow="fold")
        table.add_column("baseline", justify="right", no_wrap=True)
        table.add_column("plan", overflow="fold")
        table.add_column("of the plan [95% interval]", justify="right", no_wrap=True)
        table.add_column("speedup", justify="right", no_wrap=True)
        table.add_column("measured under", overflow="fold")
        for row in rows:
            if (row["name"], row["batch"], row["objective"]) != (name, batch, objective):
                continue
            plan = row["plan"]
            configuration = Configuration.from_dict(plan["configuration"])
            table.add_row(
                row["device_class"],
                words.figure(row["compared"]["baseline"], row["compared"]["unit"]),
                f"{configuration.backend}: {words.knobs(configuration)}",
                words.figure_with_interval(
                    row["compared"]["value"], row["compared"]["interval"], row["compared"]["unit"]
                ),
                words.speedup(plan["speedup"]),
                ", ".join(plan["flags"]),
            )
        tables.append(table)
    return Group(*tables)


def _row(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.name,
        "batch": plan.batch,
        "objective": plan.objective.name,
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
    latency = {"value": plan.latency_ms, "interval": list(plan.interval_ms), "baseline": plan.baseline_latency_ms}
    found = plan.evidence.get("objective") or latency
    return {"unit": plan.objective.unit, **{name: found[name] for name in ("value", "interval", "baseline")}}
