"""The content of the page as plain texts, which the template puts into HTML: PageContent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autotune import __version__
from autotune.comparison.cell import Cell
from autotune.comparison.comparison import ComparedWorkload, DeviceComparison
from autotune.report import toolchains, words
from autotune.report.comparison import explanations
from autotune.report.page import sentences
from autotune.report.page.carried import CarriedSection, carried_section
from autotune.report.page.entries import TableColumn, TableEntry, columns_of
from autotune.report.page.labels import label, labels
from autotune.report.page.plots import plots_of
from autotune.report.page.roofline import KeyEntry, roofline_plot


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """A row of a workload's table: one device class with its state in words; ``reason`` stands in for the entries."""

    device_class: str
    sku: str
    state: str
    state_text: str
    entries: tuple[TableEntry, ...]
    command: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterRow:
    """A parameter with its value in each plan's configuration, and whether these values differ."""

    name: str
    values: tuple[str, ...]
    differs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSection:
    """Everything that the page shows of one workload.

    ``parameter_columns`` name the plans of the parameters. ``roofline_key`` is empty if there is no roofline to draw.
    If the rows are toolchains, ``device_class`` is theirs, and ``fastest`` holds the change to the newest one.
    """

    anchor: str
    name: str
    batch: int
    objective: str
    winners: tuple[str, ...]
    break_evens: tuple[str, ...]
    columns: tuple[TableColumn, ...]
    rows: tuple[TableRow, ...]
    parameter_columns: tuple[str, ...]
    parameters: tuple[ParameterRow, ...]
    plots: dict[str, object]
    roofline_key: tuple[KeyEntry, ...]
    not_drawn: str
    carried: CarriedSection
    fastest: TableEntry
    cheapest: TableEntry
    title: str
    device_class: str = ""

    @property
    def differing(self) -> int:
        """The number of parameters that differ."""
        return sum(row.differs for row in self.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """The whole page."""

    subject: str
    newest: str
    notes: tuple[str, ...]
    prices: str
    has_costs: bool
    sections: tuple[WorkloadSection, ...]
    names: tuple[str, ...]
    fastest_title: str = "fastest"
    version: str = __version__

    @property
    def plots(self) -> dict[str, object]:
        """The data of all plots by the anchors of their sections."""
        return {section.anchor: section.plots for section in self.sections if section.plots}

    @property
    def has_rooflines(self) -> bool:
        """Whether any section has a roofline."""
        return any(section.roofline_key for section in self.sections)


def content_of(comparison: DeviceComparison) -> PageContent:
    """Return the content of the page of a comparison."""
    sections = tuple(
        _section(comparison, workload, f"w{number}") for number, workload in enumerate(comparison.workloads, start=1)
    )
    created = [cell.plan.created for _, cell in comparison.cells() if cell.plan is not None]
    return PageContent(
        subject=sentences.subject(comparison),
        newest=max(created, default="")[:16].replace("T", " "),
        notes=(*explanations(comparison), *comparison.notes),
        prices=sentences.priced(comparison.prices),
        has_costs=comparison.prices is not None and comparison.by != "toolchain",
        fastest_title="newest toolchain" if comparison.by == "toolchain" else "fastest",
        sections=sections,
        names=tuple(sorted({workload.name for workload in comparison.workloads} | set(comparison.device_classes))),
    )


def _section(comparison: DeviceComparison, workload: ComparedWorkload, anchor: str) -> WorkloadSection:
    columns = columns_of(comparison, workload)
    planned = [cell for cell in workload.cells if cell.plan is not None]
    roofline = roofline_plot(workload.compared, labels(workload.compared), comparison.device_classes)
    return WorkloadSection(
        anchor=anchor,
        name=workload.name,
        batch=workload.batch,
        objective=workload.objective,
        title=workload.title,
        device_class=workload.device_class,
        winners=tuple(_summary(workload)),
        break_evens=tuple(sentences.break_evens(workload, comparison.prices)),
        columns=columns,
        rows=tuple(_row(cell, columns) for cell in workload.cells),
        parameter_columns=tuple(_parameter_column(cell, planned) for cell in planned),
        parameters=tuple(_parameters(planned)),
        plots=plots_of(comparison, workload, roofline),
        roofline_key=roofline.key,
        not_drawn=_not_drawn(workload),
        carried=carried_section(workload.carried),
        fastest=_newest(workload) if workload.device_class else _first(workload, "latency"),
        cheapest=_first(workload, "cost"),
    )


def _summary(workload: ComparedWorkload) -> Iterator[str]:
    """Yield the sentences above a table: the changes between toolchains, or the winners of the devices."""
    if workload.device_class:
        yield from (f"{text}." for text in toolchains.sentences(workload))
    else:
        yield from sentences.winners(workload)


def _row(cell: Cell, columns: Sequence[TableColumn]) -> TableRow:
    names = ", ".join(reason.name for reason in cell.reasons)
    texts = {
        "compared": "",
        "apart": f"apart: {names}",
        "predicted": "predicted: a limit, no measurement",
        "missing": "no plan",
    }
    return TableRow(
        device_class=cell.device_class,
        sku=cell.sku,
        state=cell.state,
        state_text=texts[cell.state],
        entries=() if cell.plan is None else tuple(column.entry(cell.plan, cell) for column in columns),
        command=cell.command,
        reason=_reason(cell),
    )


def _reason(cell: Cell) -> str:
    latency = cell.figure("latency").value if cell.state == "predicted" else None
    predicted = [] if latency is None else [f"at least {words.figure(latency, 'ms')}"]
    return "; ".join([*predicted, *(f"{reason.name}: {reason.text}" for reason in cell.reasons)])


def _parameter_column(cell: Cell, cells: Sequence[Cell]) -> str:
    name = label(cell, labels(cells))
    return name if cell.state == "compared" else f"{name} (apart)"


def _parameters(cells: Sequence[Cell]) -> list[ParameterRow]:
    configurations = [cell.plan.configuration.as_dict() for cell in cells if cell.plan is not None]
    names = dict.fromkeys(name for configuration in configurations for name in configuration)
    rows = []
    for name in names:
        values = tuple(_value(configuration.get(name)) for configuration in configurations)
        rows.append(ParameterRow(name=name, values=values, differs=len(set(values)) > 1))
    return rows


def _value(value: str | int | float | bool | None) -> str:
    if value is None:
        return "–"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _first(workload: ComparedWorkload, quantity: str) -> TableEntry:
    """Return the device classes that are first by a quantity, with their margin to the next."""
    winner = workload.winners.get(quantity)
    if winner is None:
        return TableEntry(text="not compared", is_absent=True)
    below = "tie" if winner.is_tie else ""
    if winner.margin is not None:
        below = f"{below}{', ' if below else ''}{winner.margin:.2f}× better than the next"
    return TableEntry(text=sentences.listed(winner.device_classes), below=below)


def _newest(workload: ComparedWorkload) -> TableEntry:
    """Return the change of the newest plan of a device class against the toolchain before."""
    first = next((cell.toolchain for cell in workload.cells if cell.state == "compared"), None)
    if first is None or first.change is None:
        return TableEntry(text="not compared", is_absent=True)
    return TableEntry(text=first.change.judgement, below=f"factor {first.change.value:.3f}")


def _not_drawn(workload: ComparedWorkload) -> str:
    """Name the device classes that the plots leave out, each with its reason."""
    apart = [cell for cell in workload.cells if cell.state != "compared"]
    names = {cell.device_class: cell.device_class for cell in apart}
    texts = [f"{label(cell, names)} ({', '.join(reason.name for reason in cell.reasons)})" for cell in apart]
    return f"Not drawn: {', '.join(texts)}." if texts else ""
