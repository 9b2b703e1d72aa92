"""The roofline plot: the rate that each plan reaches, over its operations per byte, and the roof of its device.

Work, roofs and limit are those of :mod:`autotune.comparison.roofline`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from autotune.comparison.cell import Cell
from autotune.report.comparison import limit_words
from autotune.report.page.labels import label

COLOURS = SYMBOLS = 8
DASHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How a device class is drawn: the numbers of its colour, its symbol, and the dash of its line."""

    colour: int
    symbol: int
    dash: int

    @classmethod
    def of(cls, number: int) -> "Mark":
        """Return the mark of a device class by its number; 32 classes differ in their symbol or their dash."""
        return cls(colour=number % COLOURS, symbol=number % SYMBOLS, dash=(number + number // SYMBOLS) % DASHES)


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflinePoint:
    """A plan and the roof above it, in TFLOP/s, and in operations per byte of traffic (``intensity``).

    ``limit_tflops`` is the rate of a call that takes as long as the limit, which includes a launch; ``roof_tflops`` and
    ``bandwidth_gb_s`` are the two parts of the roof, which does not.
    """

    name: str
    mark: Mark
    precision: str
    intensity: float
    tflops: float
    limit_tflops: float
    roof_tflops: float
    bandwidth_gb_s: float
    distance: str

    @property
    def position(self) -> str:
        """The place of the plan in words."""
        return f"{_short(self.tflops)} TFLOP/s at {_short(self.intensity)} operations per byte"

    def as_dict(self) -> dict[str, object]:
        """Plain data for the script of the page."""
        return {**asdict(self), "position": self.position}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """A line of the key, which is also the plot in words; without a mark if the plot lacks the plan."""

    mark: Mark | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflinePlot:
    """The points of a workload, and its key; both are empty if there is nothing to draw."""

    points: tuple[RooflinePoint, ...] = ()
    key: tuple[KeyEntry, ...] = ()


def roofline_plot(cells: Sequence[Cell], names: Mapping[str, str], classes: Sequence[str]) -> RooflinePlot:
    """Return the plot of compared cells: ``names`` are those of their device classes, ``classes`` all of the page.

    A device class has the same mark in all plots of a page.
    """
    marks = {name: Mark.of(number) for number, name in enumerate(classes)}
    points = [_point(cell, label(cell, names), marks[cell.device_class]) for cell in cells]
    drawn = tuple(point for point in points if point is not None)
    if not drawn:
        return RooflinePlot()
    key = tuple(_entry(cell, label(cell, names), point) for cell, point in zip(cells, points, strict=True))
    return RooflinePlot(points=drawn, key=key)


def _point(cell: Cell, name: str, mark: Mark) -> RooflinePoint | None:
    """Return the point of a plan; ``None`` if its limit is not known, or if it has no operations or no traffic."""
    plan, limit = cell.plan, cell.limit
    if plan is None or limit is None or limit.ms is None or limit.inputs is None:
        return None
    inputs = limit.inputs
    # No axis of powers of ten has a zero.
    if not inputs.intensity:
        return None
    return RooflinePoint(
        name=name,
        mark=mark,
        precision="default precision" if inputs.precision == "default" else inputs.precision,
        intensity=inputs.intensity,
        tflops=inputs.tflops_within(plan.latency_ms),
        limit_tflops=inputs.tflops_within(limit.ms),
        roof_tflops=inputs.tflops,
        bandwidth_gb_s=inputs.bandwidth_gb_s,
        distance=limit_words(cell),
    )


def _entry(cell: Cell, name: str, point: RooflinePoint | None) -> KeyEntry:
    if point is not None:
        return KeyEntry(mark=point.mark, text=f"{name}, {point.precision}: {point.position}; {point.distance}")
    return KeyEntry(mark=None, text=f"{name}: limit {'not known' if cell.limit is None else cell.limit.note}")


def _short(value: float) -> str:
    """Write a positive number in three digits, never in powers of ten if it is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
