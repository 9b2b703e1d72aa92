"""The comparison of device classes as tables: one for each model, batch and objective."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.comparison.bound import Bound, WithinBound
from autotune.comparison.cell import Cell
from autotune.comparison.comparison import ComparedWorkload, DeviceComparison
from autotune.comparison.figures import QUANTITIES, Figure
from autotune.comparison.prices import Prices
from autotune.comparison.regression import Change
from autotune.comparison.roofline import MEASURE
from autotune.records.plan import Plan
from autotune.report import distinction, words
from autotune.report.fitting_table import FittingTable

APART = "dim"
"""The style of a row whose figures do not stand beside the others."""
PREDICTED = "italic dim"
"""The style of a row that was not measured."""
STYLES = {"compared": "", "apart": APART, "predicted": PREDICTED, "missing": APART}


def comparison_tables(comparison: DeviceComparison) -> RenderableType:
    """Show a table for each workload with its winners, then the notes about the whole."""
    if not comparison.workloads:
        return Text("no plan to compare; create one with: autotune tune STUDY_FILE")
    parts: list[RenderableType] = []
    for workload in comparison.workloads:
        parts += [_table(comparison, workload), *_sentences(comparison, workload), Text("")]
    notes = [*explanations(comparison), *comparison.notes]
    return Group(*parts, *(Text(f"note: {note}") for note in notes))


def changes_table(changes: Sequence[Change], threshold: float) -> RenderableType:
    """Show what has changed against a baseline, worst first."""
    table = FittingTable(title=f"against the baseline, beyond {threshold:.1%}", title_justify="left")
    for name, justify in (("model", "left"), ("batch", "right"), ("objective", "left"), ("device class", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("now / before [95% interval]", justify="right", no_wrap=True)
    table.add_column("judgement")
    for change in changes:
        ratio = "–" if change.ratio is None else f"{change.ratio:.3f}"
        bounds = "" if change.interval is None else f" [{change.interval[0]:.3f} – {change.interval[1]:.3f}]"
        table.add_row(
            change.name, str(change.batch), change.objective, change.device_class, ratio + bounds, change.judgement,
            style="" if change.judgement != "slower" else "bold red",
        )  # fmt: skip
    return table


def bound_table(entries: Sequence[WithinBound], bound: Bound, comparison: DeviceComparison) -> RenderableType:
    """Show for each model and device class the most that it serves within a bound of latency."""
    table = FittingTable(title=f"the most within {bound}", title_justify="left")
    for name in ("model", "device class"):
        table.add_column(name, overflow="fold")
    for name in ("batch", "in flight", bound.percentile, "items/s"):
        table.add_column(name, justify="right", no_wrap=True)
    if comparison.prices is not None:
        table.add_column(f"{comparison.prices.currency} per million", justify="right", no_wrap=True)
    table.add_column("remarks", overflow="fold")
    for entry in entries:
        figures = ["–"] * 4
        cost = "–"
        if entry.operation is not None:
            operation = entry.operation
            figures = [str(operation.plan.batch), str(operation.concurrency)]
            figures += [words.figure(operation.latency.value or 0.0, "ms"), short("throughput", operation.throughput)]
            cost = short("cost", operation.cost)
        costs = [] if comparison.prices is None else [cost]
        table.add_row(entry.name, entry.device_class, *figures, *costs, entry.reason)
    return table


def _table(comparison: DeviceComparison, workload: ComparedWorkload) -> FittingTable:
    table = FittingTable(title=workload.title, title_justify="left")
    parts = differing_parts(workload.cells)
    table.add_column("device class", overflow="fold")
    for name in parts:
        table.add_column(name, overflow="fold")
    table.add_column("baseline", justify="right", no_wrap=True)
    table.add_column("plan", overflow="fold")
    table.add_column("plan's [95% interval]", justify="right", no_wrap=True)
    for name in ("speedup", "items/s", "J/item", "SM", "GPU"):
        table.add_column(name, justify="right", no_wrap=True)
    if comparison.prices is not None:
        table.add_column(f"{comparison.prices.currency} per million", justify="right", no_wrap=True)
    limits = has_limits(comparison)
    if limits:
        table.add_column("limit", overflow="fold")
    table.add_column("remarks", overflow="fold")
    for cell in workload.cells:
        figures = ("energy", "sm_utilisation", "gpu_utilisation")
        row = [cell.device_class, *_plan_columns(cell, parts), *(short(name, cell.figure(name)) for name in figures)]
        if comparison.prices is not None:
            row.append(short("cost", cell.figure("cost")))
        if limits:
            row.append(limit_words(cell))
        table.add_row(*row, remarks(cell), style=STYLES[cell.state])
    return table


def _plan_columns(cell: Cell, parts: Sequence[str]) -> list[str]:
    plan = cell.plan
    if plan is None:
        latency = cell.figure("latency").value
        predicted = "" if latency is None else f"at least {words.figure(latency, 'ms')}"
        return [*("" for _ in parts), "", "predicted" if predicted else "not tuned", predicted, "", ""]
    compared, unit = plan.evidence.objective, plan.objective.unit
    baseline = words.figure(plan.baseline_latency_ms, "ms")
    own = words.figure_with_interval(plan.latency_ms, plan.interval_ms, "ms")
    if compared is not None:
        baseline = words.figure(compared.baseline, unit)
        own = words.figure_with_interval(compared.value, compared.interval, unit)
    return [
        *(part_of(cell, plan, name) for name in parts),
        baseline,
        f"{plan.configuration.backend}: {words.knobs(plan.configuration)}",
        own,
        words.speedup(plan.speedup) + (" (tie)" if plan.status == "tie" else ""),
        short("throughput", cell.figure("throughput")),
    ]


def short(quantity: str, figure: Figure) -> str:
    """Write a figure for a narrow column; a dash if there is none, for the remarks say why."""
    if figure.value is None:
        return "–"
    if quantity == "throughput":
        return f"{figure.value:,.1f}"
    if quantity == "cost":
        return f"{figure.value:,.4g}"
    return f"{figure.value:.4g}" if quantity == "energy" else f"{figure.value:.0%}"


def has_limits(comparison: DeviceComparison) -> bool:
    """Return whether the limit of any plan is known."""
    return any(cell.limit is not None and cell.limit.distance is not None for _, cell in comparison.cells())


def limit_words(cell: Cell) -> str:
    """Write how far a plan is from the limit of its device; a dash if that is not known."""
    limit = cell.limit
    if limit is None or limit.by is None:
        return "–"
    if limit.distance is None:
        return f"by {limit.by}"
    if limit.distance < 1:
        return "beyond the roofs"
    digits = 1 if limit.distance < 100 else 0
    return f"{limit.distance:,.{digits}f}× the limit, by {limit.by}"


def remarks(cell: Cell) -> str:
    """Name the reasons why a cell stands apart, and the conditions that its figures were measured under."""
    flags = () if cell.plan is None else cell.plan.flags
    names = [reason.name for reason in cell.reasons]
    return ", ".join([*names, *(flag for flag in flags if flag.replace("_", " ") not in names)])


def explanations(comparison: DeviceComparison) -> list[str]:
    """Explain each remark and each dash of the tables once, with the devices that it is about."""
    about: dict[str, list[str]] = {}
    limits = has_limits(comparison)
    for _, cell in comparison.cells():
        texts = [f"{reason.name}: {reason.text}" for reason in cell.reasons if cell.state in ("apart", "predicted")]
        if cell.plan is not None:
            if limits and cell.limit is not None and cell.limit.note:
                texts.append(": ".join(filter(None, ("limit", cell.limit.note, cell.limit.command))))
            texts += [f"{QUANTITIES[name].title}: {cell.figure(name).note}" for name in _absent(cell)]
        for text in texts:
            about.setdefault(text, []).append(cell.sku)
    texts = [f"{text} ({', '.join(dict.fromkeys(skus))})" for text, skus in about.items()]
    return texts if limits else [*texts, f"no limits: {MEASURE} measures those of a device"]


def _absent(cell: Cell) -> Iterator[str]:
    """Yield the shown quantities that a plan has no figure of; the notes speak of prices that were not given."""
    for name in ("energy", "sm_utilisation", "gpu_utilisation", "cost"):
        figure = cell.figure(name)
        if figure.value is None and not (name == "cost" and "--prices" in figure.note):
            yield name


def _sentences(comparison: DeviceComparison, workload: ComparedWorkload) -> Iterator[Text]:
    for cell in workload.cells:
        if cell.state == "missing":
            yield Text(f"not tuned: {cell.command}")
    for name, winner in workload.winners.items():
        if name == "throughput" and workload.objective != "throughput":
            continue  # it follows from the latency
        skus = " and ".join(winner.device_classes)
        margin = "" if winner.margin is None else f", {winner.margin:.2f} times better than the next"
        first = "tie between" if winner.is_tie else "best"
        yield Text(f"{name}: {first} {skus}{margin}", style="" if winner.is_tie else "green")
    for entry in workload.break_evens(comparison.prices):
        currency = comparison.prices.currency if comparison.prices else ""
        price = f"{entry.per_hour:.4g} {currency} an hour"
        yield Text(f"break-even: {entry.device_class} costs as much as {entry.against} at {price}")


def differing_parts(cells: Sequence[Cell]) -> list[str]:
    """Return the parts that distinguish the rows of a table; weights are among them if a row has several.

    Toolchains are among them if they are the rows.
    """
    plans = [cell.plan for cell in cells if cell.plan is not None]
    names = ("structure", "constraints", "served as")
    differing = [name for name in names if len({distinction.part(plan, name) for plan in plans}) > 1]
    compared = [(cell.plan.device.device_class, cell.plan.weights) for cell in cells if cell.plan is not None]
    if any(cell.weights_known > 1 for cell in cells) or len(set(compared)) > len({name for name, _ in compared}):
        differing.append("weights")
    parts = [name for name in distinction.PARTS if name in differing]
    return ["toolchain", *parts] if any(cell.toolchain and cell.toolchain.versions for cell in cells) else parts


def part_of(cell: Cell, plan: Plan, name: str) -> str:
    """Write one of these parts of a cell; for weights of several plans, that they are the newest of them."""
    if name == "toolchain":
        return str(cell.toolchain or "")
    text = distinction.part(plan, name)
    return f"{text} (newest of {cell.weights_known})" if name == "weights" and cell.weights_known > 1 else text


def prices_view(prices: Prices, priced: Mapping[str, float | None], unknown: Mapping[str, str]) -> RenderableType:
    """Show the price of each device class, and the names of the file that fit none of them."""
    table = FittingTable(title=f"prices in {prices.path}", title_justify="left")
    table.add_column("device class", overflow="fold")
    table.add_column(f"{prices.currency} per hour", justify="right", no_wrap=True)
    for device_class, price in priced.items():
        table.add_row(device_class, "no price" if price is None else f"{price:g}")
    lines = [Text(f"{name} {reason}") for name, reason in unknown.items()]
    if prices.electricity_per_kwh is None:
        lines.append(Text("no electricity_per_kwh: costs leave the energy out"))
    return Group(table, *lines)
