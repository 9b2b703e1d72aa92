"""The figures of a plan that devices are compared by: Quantity, Figure, figures_of."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from autotune.records.plan import Plan

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """A quantity with its unit, and which of two values of it is better."""

    name: str
    title: str
    unit: str
    better: Better


QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity(name="latency", title="latency", unit="ms", better="lower"),
        Quantity(name="throughput", title="throughput", unit="items/s", better="higher"),
        Quantity(name="energy", title="energy", unit="J/item", better="lower"),
        Quantity(name="memory", title="memory", unit="bytes", better="lower"),
        Quantity(name="sm_utilisation", title="SM utilisation", unit="share", better="neither"),
        Quantity(name="gpu_utilisation", title="GPU utilisation", unit="share", better="neither"),
        Quantity(name="cost", title="cost of a million items", unit="currency", better="lower"),
    )
}
"""All quantities by name. An item is one element of the batch, so one inference."""

ON_A_CPU = "not measurable on a CPU"
NO_ENERGY_COUNTER = "not measurable here: no energy counter is read on a CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A value with its 95% interval, or no value and the reason.

    ``interval`` is ``None`` for a value that has none, such as a utilisation. ``note`` says how the value came about,
    or why there is none.
    """

    value: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        data = asdict(self)
        data["interval"] = None if self.interval is None else list(self.interval)
        return data

    def overlaps(self, other: "Figure") -> bool:
        """Return whether the intervals of two values have a point in common; a value without interval is its own."""
        mine, theirs = self.ends, other.ends
        return mine[0] <= theirs[1] and theirs[0] <= mine[1]

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of its interval, lower first; ``ValueError`` if there is no value."""
        if self.value is None:
            raise ValueError(f"a figure without a value has no interval: {self.note}")
        return self.interval if self.interval is not None else (self.value, self.value)

    def divided_by(self, divisor: float) -> "Figure":
        """Return the figure with its value and interval divided."""
        if self.value is None or divisor == 1:
            return self
        low, high = self.ends
        interval = None if self.interval is None else (low / divisor, high / divisor)
        return Figure(value=self.value / divisor, interval=interval, note=self.note)

    def inverse(self, numerator: float, note: str = "") -> "Figure":
        """Return the numerator divided by the figure."""
        if self.value is None:
            return self
        low, high = self.ends
        interval = None if self.interval is None else (numerator / high, numerator / low)
        return Figure(value=numerator / self.value, interval=interval, note=note or self.note)


def compared_figure(plan: Plan) -> Figure:
    """Return the value that the objective of a plan minimises, or its latency if that is not there."""
    figures = plan.evidence.objective
    if figures is None:
        return Figure(value=plan.latency_ms, interval=plan.interval_ms)
    return Figure(value=figures.value, interval=figures.interval)


def figures_of(plan: Plan) -> dict[str, Figure]:
    """Return the figures of a plan by the names of :data:`QUANTITIES`, all but the cost."""
    return {
        "latency": Figure(value=plan.latency_ms, interval=plan.interval_ms),
        "throughput": _throughput(plan),
        "energy": _energy(plan),
        "memory": _by_objective(plan, "memory"),
        **_utilisation(plan),
    }


def _throughput(plan: Plan) -> Figure:
    figures = plan.evidence.objective
    if plan.objective.name == "throughput" and figures is not None:
        own = Figure(value=figures.value, interval=figures.interval)
        return own.inverse(1e3, f"{figures.concurrency or 1} requests in flight")
    latency = Figure(value=plan.latency_ms, interval=plan.interval_ms)
    return latency.inverse(1e3 * plan.batch, "one request at a time")


def _energy(plan: Plan) -> Figure:
    if plan.objective.name == "energy":
        return _by_objective(plan, "energy").divided_by(plan.batch)
    if plan.device.kind == "cpu":
        return Figure(note=NO_ENERGY_COUNTER)
    return Figure(note="not measured: a study with the objective energy measures it")


def _by_objective(plan: Plan, name: str) -> Figure:
    """Return the value that the objective compares, if it is the named one."""
    figures = plan.evidence.objective
    if plan.objective.name != name or figures is None:
        return Figure(note=f"not measured: a study with the objective {name} measures it")
    return Figure(value=figures.value, interval=figures.interval)


def _utilisation(plan: Plan) -> dict[str, Figure]:
    names = {"sm_utilisation": "sm_efficiency", "gpu_utilisation": "gpu_utilisation"}
    if plan.device.kind == "cpu":
        return {name: Figure(note=ON_A_CPU) for name in names}
    winner = plan.evidence.winner
    trace = {} if winner is None or winner.utilisation is None else winner.utilisation.get("trace") or {}
    return {name: _share(trace, key) for name, key in names.items()}


def _share(trace: Mapping[str, object], key: str) -> Figure:
    value = trace.get(key)
    if isinstance(value, int | float):
        return Figure(value=float(value), note="by a trace of the plan's kernels")
    return Figure(note=f"not measured: {trace.get('reason') or 'the finals of the plan have no trace of kernels'}")
