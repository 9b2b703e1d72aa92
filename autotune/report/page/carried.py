"""The carried plans of a workload as rows of a table, and those that were not measured: CarriedSection."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autotune.comparison.carried import CarriedPlan
from autotune.comparison.figures import Figure
from autotune.report import words
from autotune.report.page.entries import TableEntry, objective_entry


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedColumn:
    """A column: its heading, and its entry for each carried plan."""

    title: str
    entry: Callable[[CarriedPlan], TableEntry]
    is_number: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedRow:
    """A row: the device class whose plan was carried, its state, and an entry for each column."""

    from_class: str
    state: str
    entries: tuple[TableEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCarried:
    """A plan that was not timed on another device class, and the command that does it."""

    from_class: str
    to_class: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedSection:
    """The carried plans of a workload; empty if none was tried."""

    rows: tuple[CarriedRow, ...] = ()
    missing: tuple[NotCarried, ...] = ()
    columns: tuple[CarriedColumn, ...] = ()


def carried_section(carried: Sequence[CarriedPlan]) -> CarriedSection:
    """Return the section of a workload's carried plans.

    Eight device classes have 56 pairs. If none of them was tried, the page does not name them.
    """
    tried = [plan for plan in carried if plan.state != "missing"]
    if not tried:
        return CarriedSection()
    missing = tuple(
        NotCarried(from_class=plan.from_class, to_class=plan.to_class, command=plan.command)
        for plan in carried
        if plan.state == "missing"
    )
    return CarriedSection(rows=tuple(map(_row, tried)), missing=missing, columns=COLUMNS)


def _row(plan: CarriedPlan) -> CarriedRow:
    entries = tuple(column.entry(plan) for column in COLUMNS)
    return CarriedRow(from_class=plan.from_class, state=plan.state, entries=entries)


def _configuration(plan: CarriedPlan) -> TableEntry:
    return TableEntry(text=plan.configuration.backend, below=words.knobs(plan.configuration))


def _loss(plan: CarriedPlan) -> TableEntry:
    loss = plan.loss
    if loss.value is None:
        return TableEntry(text="not measured", title=loss.note, is_absent=True)
    below = "" if loss.interval is None else f"[{loss.interval[0]:+.1%} – {loss.interval[1]:+.1%}]"
    return TableEntry(text=f"{loss.value:+.1%}", below=below, title=loss.note, number=loss.value)


def _result(plan: CarriedPlan) -> TableEntry:
    """Return the verdict, or the state of a plan without one; below it the reason."""
    return TableEntry(text=plan.verdict or plan.state, below=plan.reason)


def _figure_column(title: str, figure_of: Callable[[CarriedPlan], Figure]) -> CarriedColumn:
    def entry(plan: CarriedPlan) -> TableEntry:
        figure = figure_of(plan)
        if figure.value is None:
            return TableEntry(text="not measured", title=figure.note, is_absent=True)
        return objective_entry(figure.value, figure.interval, plan.unit)

    return CarriedColumn(title=title, entry=entry, is_number=True)


COLUMNS = (
    CarriedColumn(title="timed on", entry=lambda plan: TableEntry(text=plan.to_class)),
    CarriedColumn(title="configuration", entry=_configuration),
    _figure_column("carried plan [95% interval]", lambda plan: plan.carried),
    _figure_column("plan tuned there [95% interval]", lambda plan: plan.own),
    CarriedColumn(title="loss [95% interval]", entry=_loss, is_number=True),
    CarriedColumn(title="result", entry=_result),
)
"""The columns after the one with the device class whose plan was carried."""
