"""The most items a second within a bound of latency: the largest batch and concurrency that hold it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autotune.comparison.cell import Cell
from autotune.comparison.comparison import ComparedWorkload, DeviceComparison
from autotune.comparison.cost import cost_figure
from autotune.comparison.figures import Figure
from autotune.database.store import Store
from autotune.errors import RequestError
from autotune.measure.percentiles import summary
from autotune.records.plan import Plan

PERCENTILES = {"p50": "p50", "p90": "p90", "p99": "p99", "p99.9": "p999"}
_BOUND = re.compile(r"\s*(p[0-9.]+)\s*(?:<=|≤|<)\s*([0-9]*\.?[0-9]+)\s*(ms|s|us|µs)\s*")
_MILLISECONDS = {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A bound of a percentile of the latency of one request, such as ``p99<=10ms``."""

    percentile: str
    limit_ms: float

    def __str__(self) -> str:
        return f"{self.percentile} <= {self.limit_ms:g} ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A way to serve a model on a device class: a plan at its batch with ``concurrency`` requests in flight.

    ``latency`` is the percentile that the bound is about, without a value if too few samples back it.
    """

    plan: Plan
    concurrency: int
    latency: Figure
    throughput: Figure
    cost: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class WithinBound:
    """The operation of a device class that serves most within a bound; without one, the reason."""

    name: str
    device_class: str
    operation: Operation | None
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        place: dict[str, object] = {"name": self.name, "device_class": self.device_class, "reason": self.reason}
        if self.operation is None:
            return {**place, "batch": None, "concurrency": None, "plan": None, "figures": {}}
        operation = self.operation
        figures = {"latency": operation.latency, "throughput": operation.throughput, "cost": operation.cost}
        return {
            **place,
            "batch": operation.plan.batch,
            "concurrency": operation.concurrency,
            "plan": operation.plan.uid,
            "figures": {name: figure.as_dict() for name, figure in figures.items()},
        }


def parse_bound(text: str) -> Bound:
    """Read a bound such as ``p99<=10ms``; RequestError for another text."""
    match = _BOUND.fullmatch(text)
    if match is None or match[1] not in PERCENTILES or not float(match[2]) > 0:
        raise RequestError(
            f"the bound {text!r} cannot be used",
            expected=f"one of {', '.join(PERCENTILES)}, at most a time above 0, such as 'p99<=10ms'",
        )
    return Bound(percentile=match[1], limit_ms=float(match[2]) * _MILLISECONDS[match[3]])


def within_bound(comparison: DeviceComparison, bound: Bound, store: Store) -> list[WithinBound]:
    """Return for each model and device class the operation that serves most items a second within the bound.

    Latency plans answer one request at a time; throughput plans as many as their studies found best. Cells that stand
    apart take no part.
    """
    operations: dict[tuple[str, str], list[Operation]] = {}
    for workload, cell in comparison.cells():
        if cell.state == "predicted":
            continue
        operations.setdefault((workload.name, cell.device_class), []).extend(
            _operations(comparison, workload, cell, bound, store)
        )
    return [_best(name, device_class, entries, bound) for (name, device_class), entries in sorted(operations.items())]


def _operations(
    comparison: DeviceComparison, workload: ComparedWorkload, cell: Cell, bound: Bound, store: Store
) -> Iterator[Operation]:
    plan = cell.plan
    if plan is None or cell.state != "compared":
        return
    if workload.objective == "throughput":
        figures, concurrency = _in_flight(plan, store)
    else:
        winner, concurrency = plan.evidence.winner, 1
        figures = dict((winner.percentiles if winner is not None else None) or {"p50": plan.latency_ms})
    value = figures.get(PERCENTILES[bound.percentile])
    note = f"{bound.percentile} of {figures.get('n', 'its')} samples"
    if not isinstance(value, int | float):
        value, note = None, f"too few samples back its {bound.percentile}: the objective latency_p99 takes enough"
    yield Operation(
        plan=plan, concurrency=concurrency, latency=Figure(value=value, note=note),
        throughput=cell.figure("throughput"), cost=cost_figure(cell.figures, cell.device_class, comparison.prices),
    )  # fmt: skip


def _in_flight(plan: Plan, store: Store) -> tuple[Mapping[str, object], int]:
    """Return the percentiles of the requests at a plan's best throughput, and how many were in flight."""
    screened = store.trials.measurements(plan.evidence.trial, "screening")
    point = screened[-1].conditions.get("throughput") if screened else None
    if not isinstance(point, Mapping) or not point.get("samples_ms"):
        return {}, 1
    percentiles = summary(point["samples_ms"])
    values = {name: getattr(percentiles, name) for name in ("n", *PERCENTILES.values())}
    return values, int(point.get("concurrency", 1))


def _best(name: str, device_class: str, operations: list[Operation], bound: Bound) -> WithinBound:
    held = [entry for entry in operations if entry.latency.value is not None and entry.latency.value <= bound.limit_ms]
    if held:
        best = max(held, key=lambda entry: (entry.throughput.value or 0.0, entry.plan.batch))
        return WithinBound(name=name, device_class=device_class, operation=best)
    latencies = [entry.latency.value for entry in operations if entry.latency.value is not None]
    if latencies:
        reason = f"no plan holds {bound}: the nearest takes {min(latencies):.4g} ms"
    elif operations:
        reason = operations[0].latency.note
    else:
        reason = "no plan stands beside the others"
    return WithinBound(name=name, device_class=device_class, operation=None, reason=reason)
