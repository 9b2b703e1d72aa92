"""Plans that are carried between device classes, in words and as a table."""

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.comparison.carried import CarriedPlan, carried_to
from autotune.comparison.comparison import ComparedWorkload, DeviceComparison
from autotune.comparison.figures import Figure
from autotune.records.plan import Plan
from autotune.report import words
from autotune.report.fitting_table import FittingTable

NOTHING = (
    "no plan was carried, and no two plans of one model for two GPUs or for two CPUs stand side by side; with the "
    "plans of both in one database: autotune tune STUDY_FILE --carry DEVICE"
)


def loss_words(loss: Figure) -> str:
    """Write a loss in percent with its interval; a dash if it was not measured."""
    if loss.value is None:
        return "–"
    interval = "" if loss.interval is None else f" [{loss.interval[0]:+.1%} – {loss.interval[1]:+.1%}]"
    return f"{loss.value:+.1%}{interval}"


def carried_words(entry: CarriedPlan) -> str:
    """Write what became of a carried plan on the device of its finals, in one line."""
    what = f"{entry.configuration.backend} ({words.knobs(entry.configuration)})"
    if entry.carried.value is None:
        return f"{what} was not timed here: {entry.reason}"
    if entry.state == "same":
        return f"{what} is also the plan here"
    loss = loss_words(entry.loss)
    against = f"{loss}, {entry.verdict} than" if entry.verdict != "no difference" else f"{loss}, no difference from"
    reason = f" ({entry.reason})" if entry.reason else ""
    return f"{what}: {words.figure(entry.carried.value, entry.unit)}, {against} the plan here{reason}"


def carried_lines(plan: Plan) -> list[str]:
    """Return a line for each plan of another device class that took part in the finals of this one, or was to."""
    return [f"carried from {entry.from_class}: {carried_words(entry)}" for entry in carried_to(plan)]


def carried_tables(comparison: DeviceComparison) -> RenderableType:
    """Show a table of carried plans for each workload, or say that there is none."""
    parts: list[RenderableType] = []
    for workload in comparison.workloads:
        if workload.carried:
            parts.append(_table(workload))
            parts += [Text(f"not carried: {entry.command}") for entry in workload.carried if entry.command]
    return Group(*parts) if parts else Text(NOTHING)


def _table(workload: ComparedWorkload) -> FittingTable:
    title = f"carried plans of {workload.name}, batch {workload.batch}, {workload.objective}"
    table = FittingTable(title=title, title_justify="left")
    for name in ("plan of", "timed on", "configuration"):
        table.add_column(name, overflow="fold")
    for name in ("carried", "tuned there", "loss [95% interval]"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("remarks", overflow="fold")
    for entry in workload.carried:
        values = (entry.carried.value, entry.own.value)
        figures = ("–" if value is None else words.figure(value, entry.unit) for value in values)
        table.add_row(
            entry.from_class, entry.to_class, f"{entry.configuration.backend}: {words.knobs(entry.configuration)}",
            *figures, loss_words(entry.loss), ", ".join(filter(None, (entry.verdict, entry.reason))),
            style="" if entry.verdict else "dim",
        )  # fmt: skip
    return table
