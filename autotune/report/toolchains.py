"""A comparison as tables: of toolchains, one for each model, batch, objective and device class; else of devices."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.comparison.cell import Cell, ToolchainEntries
from autotune.comparison.comparison import ComparedWorkload, DeviceComparison
from autotune.records.plan import Plan
from autotune.report import words
from autotune.report.comparison import STYLES, comparison_tables, differing_parts, part_of, remarks, short
from autotune.report.fitting_table import FittingTable


def tables_of(comparison: DeviceComparison) -> RenderableType:
    """Show the tables of a comparison, whatever its rows are."""
    if comparison.by != "toolchain" or not comparison.workloads:
        return comparison_tables(comparison)
    parts: list[RenderableType] = []
    for workload in comparison.workloads:
        parts += [_table(comparison, workload), *map(Text, sentences(workload)), Text("")]
    notes = [*_explanations(comparison), *comparison.notes]
    return Group(*parts, *(Text(f"note: {note}") for note in notes))


def sentences(workload: ComparedWorkload) -> Iterator[str]:
    """Yield a sentence for each change, the newest first; a single one if there is none."""
    changes = [change_sentence(cell.toolchain) for cell in workload.cells if cell.toolchain and cell.toolchain.change]
    yield from changes or ["No two rows can be compared"]


def change_sentence(entries: ToolchainEntries) -> str:
    """Write the entries of a toolchain that changed, and the change of the plan's figure: above 1 it became worse."""
    change = entries.change
    if change is None:
        return ""
    low, high = change.interval
    return f"{entries.steps}: {change.judgement}, factor {change.value:.3f} [{low:.3f} – {high:.3f}]"


def change_words(cell: Cell) -> str:
    """Write the ratio of a cell to the older one with its interval; a dash if there is none."""
    change = None if cell.toolchain is None else cell.toolchain.change
    return "–" if change is None else f"{change.value:.3f} [{change.interval[0]:.3f} – {change.interval[1]:.3f}]"


def judgement_of(cell: Cell) -> str:
    """Return the judgement about a cell against the older one; empty if there is none."""
    change = None if cell.toolchain is None else cell.toolchain.change
    return "" if change is None else change.judgement


def _table(comparison: DeviceComparison, workload: ComparedWorkload) -> FittingTable:
    table = FittingTable(title=workload.title, title_justify="left")
    parts = differing_parts(workload.cells)
    for name in (*parts, "plan"):
        table.add_column(name, overflow="fold")
    for name in ("plan's [95% interval]", "speedup", "items/s"):
        table.add_column(name, justify="right", no_wrap=True)
    if comparison.prices is not None:
        table.add_column(f"{comparison.prices.currency} per million", justify="right", no_wrap=True)
    table.add_column("to the older one [95% interval]", justify="right", no_wrap=True)
    for name in ("judgement", "remarks"):
        table.add_column(name, overflow="fold")
    for cell in workload.cells:
        if cell.plan is not None:
            costs = [] if comparison.prices is None else [short("cost", cell.figure("cost"))]
            row = [*(part_of(cell, cell.plan, name) for name in parts), *_plan_columns(cell, cell.plan), *costs]
            style = "bold red" if judgement_of(cell) == "slower" else STYLES[cell.state]
            table.add_row(*row, change_words(cell), judgement_of(cell), remarks(cell), style=style)
    return table


def _plan_columns(cell: Cell, plan: Plan) -> list[str]:
    compared = plan.evidence.objective
    own = words.figure_with_interval(plan.latency_ms, plan.interval_ms, "ms")
    if compared is not None:
        own = words.figure_with_interval(compared.value, compared.interval, plan.objective.unit)
    configuration = f"{plan.configuration.backend}: {words.knobs(plan.configuration)}"
    return [configuration, own, words.speedup(plan.speedup), short("throughput", cell.figure("throughput"))]


def _explanations(comparison: DeviceComparison) -> list[str]:
    """Explain each remark about a row that stands apart once."""
    texts = (f"{reason.name}: {reason.text}" for _, cell in comparison.cells() for reason in cell.reasons)
    return list(dict.fromkeys(texts))
