"""Measured roofs as a table: one row a roof."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.measure.flags import explain
from autotune.records.roofs import Roof, Roofs
from autotune.report.fitting_table import FittingTable

UNITS = {"copy": "GB/s", "launch": "µs"}
MATRIX_UNIT = "TFLOP/s"


def roofs_table(rows: Sequence[Roofs]) -> RenderableType:
    """Show the roofs of device classes with their intervals, and the meaning of their flags below."""
    if not rows:
        return Text("no roofs were measured; measure those of this machine with: autotune roofs measure")
    table = FittingTable(title="measured roofs", title_justify="left")
    for name in ("device class", "roof"):
        table.add_column(name, overflow="fold")
    table.add_column("value [95% interval]", justify="right", no_wrap=True)
    for name in ("samples", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("measured", "remarks"):
        table.add_column(name, overflow="fold")
    for roofs in rows:
        for name, roof in roofs.all.items():
            table.add_row(
                roofs.device_class, name, value(name, roof), str(roof.samples), size(name, roof), roofs.created[:10],
                ", ".join(roof.flags),
            )  # fmt: skip
    return Group(table, *(Text(f"note: {note}") for note in _notes(rows)))


def value(name: str, roof: Roof) -> str:
    """Write the value of a roof with its interval and its unit."""
    low, high = roof.interval
    return f"{roof.value:.4g} {UNITS.get(name, MATRIX_UNIT)} [{low:.4g} – {high:.4g}]"


def size(name: str, roof: Roof) -> str:
    """Write what a call worked on; empty for a launch."""
    if name == "copy":
        return f"{roof.size / 2**20:.0f} MiB"
    return "" if name == "launch" else f"{roof.size}×{roof.size}"


def _notes(rows: Sequence[Roofs]) -> list[str]:
    notes = [f"{roofs.device_class}: no {name}: {why}" for roofs in rows for name, why in roofs.absent.items()]
    flags = dict.fromkeys(flag for roofs in rows for flag in roofs.flags)
    return [*notes, *(f"{flag.replace('_', ' ')}: {explain(flag)}" for flag in flags)]
