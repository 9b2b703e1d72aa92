"""One cell of a comparison: a model, batch and objective on one device class: Cell, Reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from autotune.comparison.figures import Figure
from autotune.comparison.ratio import FigureRatio
from autotune.comparison.roofline import Limit
from autotune.records.plan import Plan

CellState = Literal["compared", "apart", "predicted", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a cell is not put beside the others: a short name, and a sentence with the remedy."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolchainEntries:
    """The toolchain that a plan was measured under, and the change against the next older row of its device class.

    ``versions`` are the entries in which the rows of its table differ, with an empty text for an absent one; ``before``
    are those of the older row. ``change`` is ``None`` if there is no older row to compare with. ``is_newest`` says that
    no row of the same constraints and serving format is newer.
    """

    versions: Mapping[str, str]
    before: Mapping[str, str] = field(default_factory=dict)
    change: FigureRatio | None = None
    is_newest: bool = False

    def __str__(self) -> str:
        return ", ".join(f"{name} {version or 'absent'}" for name, version in self.versions.items())

    @property
    def steps(self) -> str:
        """The entries that differ from the older row, such as ``torch 2.11.0 → 2.13.0``."""
        pairs = {name: (self.before.get(name, ""), version) for name, version in self.versions.items()}
        differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
        return ", ".join(f"{name} {old or 'absent'} → {new or 'absent'}" for name, (old, new) in differing.items())

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        change = {"judgement": None, "ratio": None, "interval": None} if self.change is None else self.change.as_dict()
        return {"versions": dict(self.versions), "before": dict(self.before), **change}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A plan with its figures by quantity, or the command that fills a cell without one.

    ``compared`` cells were measured under one protocol, constraints and serving format; ``apart`` ones were not, and
    ``reasons`` say in which way. A ``predicted`` cell has no plan: its latency is a limit and no measurement.
    ``command`` reproduces the cell or, if it has no plan, fills it. ``limit`` is how fast its device could be at most.
    ``weights_known`` is the number of different weights that the plans of the cell are for; the newest is shown.
    ``toolchain`` is there if the rows are the toolchains of one device class.
    """

    device_class: str
    state: CellState
    command: str
    plan: Plan | None = None
    figures: Mapping[str, Figure] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    weights_known: int = 0
    limit: Limit | None = None
    toolchain: ToolchainEntries | None = None

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
            "toolchain": None if self.toolchain is None else self.toolchain.as_dict(),
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
        "measured_under": plan.measured_under.as_dict(),
        "created": plan.created,
    }  # fmt: skip
