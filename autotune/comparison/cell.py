"""One cell of a comparison: a model, batch and objective on one device class: Cell, Reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autotune.comparison.figures import Figure
from autotune.comparison.roofline import Limit
from autotune.records.plan import Plan

CellState = Literal["compared", "apart", "predicted", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a cell is not put beside the others: a short name, and a sentence with the remedy."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A plan with its figures by quantity, or the command that fills a cell without one.

    ``compared`` cells were measured under one protocol, constraints and serving format; ``apart`` ones were not, and
    ``reasons`` say in which way. A ``predicted`` cell has no plan: its latency is a limit and no measurement.
    ``command`` reproduces the cell or, if it has no plan, fills it. ``limit`` is how fast its device could be at most.
    ``weights_known`` is the number of different weights that the plans of the cell are for; the newest is shown.
    """

    device_class: str
    state: CellState
    command: str
    plan: Plan | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    weights_known: int = 0
    limit: Limit | None = None

    @property
    def sku(self) -> str:
        """The name of the device in lower case, with hyphens."""
        return self.device_class.split("/", 1)[0]

    def figure(self, name: str) -> Figure:
        """Return a figure by its quantity; one without a value if the cell has none."""
        return self.figures.get(name, Figure(note="no plan"))

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "device": self.sku,
            "device_class": self.device_class,
            "state": self.state,
            "reasons": [{"name": reason.name, "text": reason.text} for reason in self.reasons],
            "command": self.command,
            "plan": None if self.plan is None else _plan_values(self.plan, self.weights_known),
            "figures": {name: figure.as_dict() for name, figure in self.figures.items()},
            "limit": None if self.limit is None else self.limit.as_dict(),
        }


def _plan_values(plan: Plan, weights_known: int) -> dict[str, object]:
    compared = plan.evidence.objective
    return {
        "uid": plan.uid,
        "backend": plan.configuration.backend,
        "configuration": plan.configuration.as_dict(),
        "status": plan.status,
        "speedup": plan.speedup,
        "baseline_latency_ms": plan.baseline_latency_ms,
        "objective": None if compared is None else {
            "unit": compared.unit, "value": compared.value, "interval": list(compared.interval),
            "baseline": compared.baseline,
        },
        "signal_error": plan.signal_error,
        "flags": list(plan.flags),
        "structure": plan.structure,
        "weights": plan.weights,
        "weights_known": weights_known,
        "constraints": {name: value for name, value in plan.objective.as_dict().items() if name != "name"},
        "serve_as": plan.serve_as,
        "toolchain": plan.toolchain.as_dict(),
        "created": plan.created,
    }  # fmt: skip
