"""The columns of a workload's table, and the entry of each cell in them: TableColumn, TableEntry, columns_of."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from autotune.comparison.cell import Cell
from autotune.comparison.comparison import ComparedWorkload, DeviceComparison
from autotune.comparison.figures import Figure
from autotune.records.objective import Objective
from autotune.records.plan import Plan
from autotune.report import distinction, words
from autotune.report.comparison import differing_parts, has_limits, limit_words, part_of, remarks, short


@dataclass(frozen=True, slots=True, kw_only=True)
class TableEntry:
    """The text of one entry, a smaller text below it, a longer explanation, and the number that it is sorted by.

    ``is_absent`` marks a text that stands in place of a figure. An entry without a number is sorted by its text.
    """

    text: str
    below: str = ""
    title: str = ""
    number: float | None = None
    is_absent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """A column: its heading, and its entry for each cell with its plan."""

    title: str
    entry: Callable[[Plan, Cell], TableEntry]
    is_number: bool = True


def columns_of(comparison: DeviceComparison, workload: ComparedWorkload) -> tuple[TableColumn, ...]:
    """Return the columns after the one with the device class; parts and costs only if there is something to show."""
    return tuple(_columns(comparison, workload))


def _columns(comparison: DeviceComparison, workload: ComparedWorkload) -> Iterator[TableColumn]:
    for part in differing_parts(workload.cells):
        yield TableColumn(title=part, entry=_part_entry(part), is_number=False)
    yield TableColumn(title="baseline", entry=_of_plan(_baseline))
    yield TableColumn(title="plan [95% interval]", entry=_of_plan(_own))
    yield TableColumn(title="backend", entry=_of_plan(_backend), is_number=False)
    yield TableColumn(title="speedup", entry=_of_plan(_speedup))
    if workload.device_class:
        yield TableColumn(title="to the older one", entry=lambda _, cell: _change(cell))
    if workload.objective != Objective().name:
        yield _figure_column("latency, ms", "latency")
    yield _figure_column("throughput, items/s", "throughput")
    yield _figure_column("energy, J/item", "energy")
    if comparison.prices is not None:
        yield _figure_column(f"{comparison.prices.currency} per million items", "cost")
    yield _figure_column("SM use", "sm_utilisation")
    yield _figure_column("GPU use", "gpu_utilisation")
    if has_limits(comparison):
        yield TableColumn(title="limit", entry=lambda _, cell: _limit(cell))
    yield TableColumn(title="satisfies the constraints", entry=_of_plan(_constraints), is_number=False)
    yield TableColumn(title="remarks", entry=lambda _, cell: TableEntry(text=remarks(cell) or "none"), is_number=False)


def figure_entry(quantity: str, figure: Figure) -> TableEntry:
    """Return a figure with its interval below, or the beginning of the reason for which there is none."""
    if figure.value is None:
        return TableEntry(text=figure.note.partition(":")[0], title=figure.note, is_absent=True)
    below = ""
    if figure.interval is not None:
        low, high = (_number(quantity, end) for end in figure.interval)
        below = f"[{low} – {high}]"
    return TableEntry(text=_number(quantity, figure.value), below=below, title=figure.note, number=figure.value)


def objective_entry(value: float, interval: tuple[float, float] | None, unit: str) -> TableEntry:
    """Return a value of an objective in the unit that people use for it, with its interval below."""
    if interval is None:
        return TableEntry(text=words.figure(value, unit), number=value)
    text, _, rest = words.figure_with_interval(value, interval, unit).partition(" [")
    ends, _, shown_unit = rest.partition("] ")
    return TableEntry(text=f"{text} {shown_unit}", below=f"[{ends}]", number=value)


def _number(quantity: str, value: float) -> str:
    return words.milliseconds(value) if quantity == "latency" else short(quantity, Figure(value=value))


def _figure_column(title: str, quantity: str) -> TableColumn:
    return TableColumn(title=title, entry=lambda _, cell: figure_entry(quantity, cell.figure(quantity)))


def _of_plan(entry: Callable[[Plan], TableEntry]) -> Callable[[Plan, Cell], TableEntry]:
    return lambda plan, _: entry(plan)


def _part_entry(part: str) -> Callable[[Plan, Cell], TableEntry]:
    return lambda plan, cell: TableEntry(text=part_of(cell, plan, part))


def _change(cell: Cell) -> TableEntry:
    change = None if cell.toolchain is None else cell.toolchain.change
    if change is None:
        return TableEntry(text="not compared", title="there is no older row to compare with", is_absent=True)
    low, high = change.interval
    below = f"{change.judgement} [{low:.3f} – {high:.3f}]"
    return TableEntry(text=f"{change.value:.3f}×", below=below, number=change.value)


def _limit(cell: Cell) -> TableEntry:
    limit = cell.limit
    if limit is None or limit.distance is None:
        return TableEntry(text="unknown", title="" if limit is None else limit.note, is_absent=True)
    return TableEntry(text=limit_words(cell).partition(" the limit")[0], below=f"by {limit.by}", number=limit.distance)


def _baseline(plan: Plan) -> TableEntry:
    compared = plan.evidence.objective
    value = plan.baseline_latency_ms if compared is None else compared.baseline
    return TableEntry(text=words.figure(value, _unit(plan)), number=value)


def _own(plan: Plan) -> TableEntry:
    compared = plan.evidence.objective
    if compared is None:
        return objective_entry(plan.latency_ms, plan.interval_ms, "ms")
    return objective_entry(compared.value, compared.interval, plan.objective.unit)


def _unit(plan: Plan) -> str:
    return "ms" if plan.evidence.objective is None else plan.objective.unit


def _backend(plan: Plan) -> TableEntry:
    configuration = plan.configuration
    precision = words.precision_of(configuration) if "precision" in dict(configuration.values) else ""
    return TableEntry(text=configuration.backend, below=precision, title=words.knobs(configuration))


def _speedup(plan: Plan) -> TableEntry:
    below = {"tie": "tie with another finalist", "baseline": "the baseline won"}.get(plan.status, "")
    return TableEntry(text=words.speedup(plan.speedup), below=below, number=plan.speedup)


def _constraints(plan: Plan) -> TableEntry:
    """Compare the signal error of a plan with its limit; of several limits, one an output, with the largest."""
    objective, error = plan.objective, plan.signal_error
    limit = max(objective.signal_error, *(value for _, value in objective.signal_error_by_output), 0.0)
    text, sign = ("yes", "≤") if error <= limit else ("no", "is not ≤")
    return TableEntry(
        text=text,
        below=f"signal error {words.signal_error(error)} {sign} {limit:g}",
        title=distinction.constraints(objective),
        number=error,
    )
