"""The data of the plots: bars of latency, latency against cost with its Pareto front, and the roofline."""

import json
from collections.abc import Mapping, Sequence

from autotune.comparison.cell import Cell
from autotune.comparison.comparison import ComparedWorkload, DeviceComparison
from autotune.report.page.labels import label, labels
from autotune.report.page.roofline import RooflinePlot


def plots_of(comparison: DeviceComparison, workload: ComparedWorkload, roofline: RooflinePlot) -> dict[str, object]:
    """Return the plots of a workload by their names, as plain data.

    ``scatter`` is there if two cells have a cost, and ``roofline`` if the roofline has a point.
    Only compared cells are drawn: the figures of those apart do not stand beside the others.
    """
    cells = workload.compared
    if not cells:
        return {}
    plots: dict[str, object] = {"bars": _bars(workload)}
    priced = [cell for cell in cells if cell.figure("cost").value is not None]
    if comparison.prices is not None and len(priced) > 1:
        plots["scatter"] = {"currency": comparison.prices.currency, "points": _points(priced, labels(cells))}
    if roofline.points:
        plots["roofline"] = [point.as_dict() for point in roofline.points]
    return plots


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the positions of the points that no other point is at least as low as in both values and lower in one."""
    return [
        position
        for position, point in enumerate(points)
        if not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
    ]


def as_script(data: object) -> str:
    """Return JSON for a script element: no character of it can end the element or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _bars(workload: ComparedWorkload) -> list[dict[str, object]]:
    names, first = labels(workload.compared), workload.winners.get("latency")
    best = () if first is None else first.device_classes
    note = "tie" if first is not None and first.is_tie else "fastest"
    return [
        {
            "name": label(cell, names),
            **_value_and_ends(cell, "latency"),
            "note": note if cell.device_class in best else "",
        }
        for cell in workload.compared
    ]


def _points(cells: Sequence[Cell], names: Mapping[str, str]) -> list[dict[str, object]]:
    values = [(cell.figure("latency").value or 0.0, cell.figure("cost").value or 0.0) for cell in cells]
    front = set(pareto_front(values))
    return [
        {
            "name": label(cell, names),
            "latency": _value_and_ends(cell, "latency"),
            "cost": _value_and_ends(cell, "cost"),
            "front": position in front,
        }
        for position, cell in enumerate(cells)
    ]


def _value_and_ends(cell: Cell, quantity: str) -> dict[str, float | None]:
    figure = cell.figure(quantity)
    low, high = figure.ends
    return {"value": figure.value, "low": low, "high": high}
