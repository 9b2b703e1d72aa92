"""The comparison of device classes over one database: compare_store, DeviceComparison, ComparedWorkload."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from autotune.comparison import by_toolchain, predicted, protocol
from autotune.comparison.carried import CarriedPlan, carried_plans
from autotune.comparison.cell import Cell, CellState, Reason
from autotune.comparison.cost import break_even, cost_figure
from autotune.comparison.figures import QUANTITIES, Figure, figures_of
from autotune.comparison.frame import frame_of, html_of, row_of
from autotune.comparison.prices import Prices
from autotune.comparison.ratio import THRESHOLD
from autotune.comparison.roofline import Roofline
from autotune.comparison.same_model import SameModels, notes_of, same_models
from autotune.comparison.selection import RowSubject, Selection
from autotune.comparison.supplied_roofs import SuppliedRoofs
from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.records.plan import Plan

if TYPE_CHECKING:
    import pandas

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The best device classes by one quantity: several if nothing separates their intervals.

    ``margin`` is the best value of the others over that of the winners, above 1; ``None`` if there are no others.
    """

    quantity: str
    device_classes: tuple[str, ...]
    margin: float | None

    @property
    def is_tie(self) -> bool:
        """Whether several device classes share the first place."""
        return len(self.device_classes) > 1

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {"device_classes": list(self.device_classes), "tie": self.is_tie, "margin": self.margin}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """The price per hour at which a device class costs as much for an item as another one does at its own price."""

    device_class: str
    against: str
    per_hour: float

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {"device_class": self.device_class, "against": self.against, "per_hour": self.per_hour}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedWorkload:
    """The cells of one model, batch and objective: compared ones, then those apart, predicted and missing ones.

    ``device_class`` is there if the cells are the toolchains of that class alone.
    """

    name: str
    batch: int
    objective: str
    cells: tuple[Cell, ...]
    device_class: str = ""

    @property
    def title(self) -> str:
        """Its name for people."""
        return ", ".join(filter(None, (self.name, f"batch {self.batch}", self.objective, self.device_class)))

    @property
    def carried(self) -> tuple[CarriedPlan, ...]:
        """The plans of its device classes carried to each other; none if its rows are toolchains."""
        return () if self.device_class else carried_plans(self.cells)

    @property
    def compared(self) -> tuple[Cell, ...]:
        """The cells whose figures stand side by side."""
        return tuple(cell for cell in self.cells if cell.state == "compared")

    @property
    def winners(self) -> dict[str, Winner]:
        """The winner by each quantity that two device classes or more have a figure of."""
        winners = {name: _winner(name, self.compared) for name, kind in QUANTITIES.items() if kind.better != "neither"}
        return {name: winner for name, winner in winners.items() if winner is not None}

    def break_evens(self, prices: Prices | None) -> tuple[BreakEven, ...]:
        """Return for each device class but the cheapest the price at which it would cost as much as the cheapest."""
        costs = [(cell.figure("cost").value, cell) for cell in self.compared]
        priced = [(cost, cell) for cost, cell in costs if cost is not None]
        if prices is None or len(priced) < 2:
            return ()
        _, cheapest = min(priced, key=lambda entry: entry[0])
        break_evens = []
        for _, cell in priced:
            paid = prices.of(cell.device_class)
            if cell.device_class == cheapest.device_class or paid is None:
                continue
            price = break_even(cell.figure("throughput"), cell.figure("cost"), cheapest.figure("cost"), paid)
            if price is not None:
                break_evens.append(
                    BreakEven(device_class=cell.device_class, against=cheapest.device_class, per_hour=price)
                )
        return tuple(break_evens)

    def as_dict(self, prices: Prices | None = None) -> dict[str, object]:
        """Plain data for JSON; the break-even prices need the prices."""
        return {
            "name": self.name,
            "batch": self.batch,
            "objective": self.objective,
            "device_class": self.device_class or None,
            "winners": {name: winner.as_dict() for name, winner in self.winners.items()},
            "break_even": [entry.as_dict() for entry in self.break_evens(prices)],
            "cells": [cell.as_dict() for cell in self.cells],
            "carried": [entry.as_dict() for entry in self.carried],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceComparison:
    """Plans of several models on several device classes.

    ``notes`` are sentences about the whole, such as that there is only one SKU. ``prices`` and ``supplied_roofs`` are
    the user's own. ``by`` is the subject of a row, see :class:`autotune.comparison.selection.Selection`.
    """

    device_classes: tuple[str, ...]
    workloads: tuple[ComparedWorkload, ...]
    prices: Prices | None = None
    notes: tuple[str, ...] = field(default_factory=tuple)
    supplied_roofs: SuppliedRoofs | None = None
    by: RowSubject = "device"

    def cells(self) -> Iterator[tuple[ComparedWorkload, Cell]]:
        """Yield every cell with its workload."""
        for workload in self.workloads:
            for cell in workload.cells:
                yield workload, cell

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        quantities = {name: {"title": kind.title, "unit": self.unit(name), "better": kind.better}
                      for name, kind in QUANTITIES.items()}  # fmt: skip
        return {
            "schema": SCHEMA,
            "by": self.by,
            "device_classes": list(self.device_classes),
            "quantities": quantities,
            "prices": None if self.prices is None else self.prices.as_dict(),
            "supplied_roofs": None if self.supplied_roofs is None else self.supplied_roofs.as_dict(),
            "notes": list(self.notes),
            "workloads": [workload.as_dict(self.prices) for workload in self.workloads],
        }

    def unit(self, quantity: str) -> str:
        """Return the unit of a quantity; that of the cost is the currency of the prices."""
        if quantity == "cost" and self.prices is not None:
            return self.prices.currency
        return QUANTITIES[quantity].unit

    def to_frame(self) -> "pandas.DataFrame":
        """Return a row a cell; needs pandas, and raises RequestError if it is not installed.

        A figure that is absent is NaN. The units of the columns are in ``frame.attrs["units"]``.
        """
        return frame_of(self._rows(), self._units())

    def _repr_html_(self) -> str:
        """Show the comparison in a notebook."""
        return html_of(self._rows(), self._units(), self.notes)

    def _rows(self) -> list[dict[str, object]]:
        return [row_of(workload.name, workload.batch, workload.objective, cell) for workload, cell in self.cells()]

    def _units(self) -> dict[str, str]:
        return {name: self.unit(name) for name in QUANTITIES}


def compare_store(
    store: Store,
    selection: Selection | None = None,
    prices: Prices | None = None,
    supplied_roofs: SuppliedRoofs | None = None,
    threshold: float = THRESHOLD,
) -> DeviceComparison:
    """Compare the plans of a database that a selection admits, by default all of them.

    ``threshold`` is the share by which a figure has to differ between two toolchains, such as 0.03. Raises RequestError
    for a name or a SKU that the database does not know.
    """
    selection = selection or Selection()
    roofline = Roofline.of(store.roofs.list(), store.studies.workloads())
    plans = [*store.plans.list(), *(store.plans.former() if selection.by == "toolchain" else ())]
    return compare_plans(plans, store.studies.list(), selection, prices, roofline, supplied_roofs, threshold)


def compare_plans(
    plans: Sequence[Plan],
    studies: Sequence[StudyRow],
    selection: Selection,
    prices: Prices | None = None,
    roofline: Roofline | None = None,
    supplied_roofs: SuppliedRoofs | None = None,
    threshold: float = THRESHOLD,
) -> DeviceComparison:
    """Compare plans that were found by these studies; errors as those of :func:`compare_store`."""
    rows, roofline = {row.uid: row for row in studies}, roofline or Roofline()
    supplied_roofs = None if supplied_roofs is None else supplied_roofs.named(selection.devices)
    classes = selection.device_classes(plans, studies, supplied_roofs)
    unmeasured, notes = predicted.unmeasured(supplied_roofs, {plan.device.device_class for plan in plans})
    groups: dict[tuple[str, int, str, str], list[Plan]] = {}
    for plan in selection.plans(plans, classes):
        device_class = plan.device.device_class if selection.by == "toolchain" else ""
        groups.setdefault((plan.name, plan.batch, plan.objective.name, device_class), []).append(plan)
    workloads = []
    for (name, batch, objective, device_class), group in sorted(groups.items()):
        columns = (device_class,) if device_class else classes
        same = same_models(group, rows, roofline.workloads)
        cells = _cells(group, columns, rows, prices, roofline, same, by=selection.by)
        notes += notes_of([cell.plan for cell in cells if cell.plan is not None], same)
        if device_class:
            cells = by_toolchain.with_changes(cells, threshold, same)
        else:
            cells = sorted([*cells, *predicted.predicted_cells(group, unmeasured, roofline)], key=_place)
            notes += predicted.not_predicted(name, batch, cells, unmeasured)
        workloads.append(
            ComparedWorkload(name=name, batch=batch, objective=objective, device_class=device_class, cells=tuple(cells))
        )
    notes = [*_notes(classes, prices, workloads, selection.by), *dict.fromkeys(notes)]
    return DeviceComparison(
        device_classes=classes, workloads=tuple(workloads), prices=prices, supplied_roofs=supplied_roofs,
        notes=tuple(notes), by=selection.by,
    )  # fmt: skip


def _notes(
    classes: Sequence[str], prices: Prices | None, workloads: Sequence[ComparedWorkload], by: RowSubject
) -> Iterator[str]:
    if by == "toolchain":
        if workloads and not any(cell.toolchain and cell.toolchain.versions for w in workloads for cell in w.cells):
            yield by_toolchain.ONE_TOOLCHAIN
    elif len(classes) == 1:
        yield f"only one device class has plans: {classes[0]}; tune on another and merge its export to compare"
    if prices is None:
        yield "no costs: give a file of your prices with --prices"
    else:
        unpriced = [name for name in classes if prices.of(name) is None]
        if unpriced:
            yield f"no price for {', '.join(unpriced)}: autotune prices check says what the file lacks"


def _cells(
    plans: Sequence[Plan],
    classes: Sequence[str],
    rows: Mapping[str, StudyRow],
    prices: Prices | None,
    roofline: Roofline,
    same: SameModels,
    *,
    by: RowSubject,
) -> list[Cell]:
    newest = [(plan, 1) for plan in plans] if by == "weights" else _newest(plans, by, same)
    own = {plan.uid: tuple(protocol.own_reasons(plan, rows)) for plan, _ in newest}
    # Toolchains are compared within each group, so that no group stands apart for being another one.
    comparable = [] if by == "toolchain" else [plan for plan, _ in newest if not own[plan.uid]]
    group = protocol.group_to_compare(comparable, same)
    cells = []
    for plan, weights_known in newest:
        reasons = (*own[plan.uid], *protocol.other_group(plan, group, same))
        cells.append(_cell(plan, weights_known, reasons, prices, roofline))
    return cells + [_missing(plans[0], name) for name in classes if all(cell.device_class != name for cell in cells)]


def _place(cell: Cell) -> tuple[int, float, str]:
    """Return the place of a cell among those of its workload: by its state, then the fastest first."""
    return get_args(CellState).index(cell.state), cell.figure("latency").value or 0.0, cell.device_class


def _newest(plans: Sequence[Plan], by: RowSubject, same: SameModels) -> list[tuple[Plan, int]]:
    """Return the newest plan of each device class, group and, if asked, toolchain; with its number of weights."""
    groups: dict[tuple[str, protocol.Group, str], list[Plan]] = {}
    for plan in plans:
        toolchain = plan.measured_under.digest if by == "toolchain" else ""
        groups.setdefault((plan.device.device_class, protocol.group_of(plan, same), toolchain), []).append(plan)
    return [
        (max(group, key=lambda plan: (plan.created, plan.uid)), len({plan.weights for plan in group}))
        for group in groups.values()
    ]


def _cell(
    plan: Plan, weights_known: int, reasons: tuple[Reason, ...], prices: Prices | None, roofline: Roofline
) -> Cell:
    figures = figures_of(plan)
    return Cell(
        device_class=plan.device.device_class, state="apart" if reasons else "compared", reasons=reasons, plan=plan,
        command=f"autotune reproduce {plan.name} {plan.evidence.trial} --batch {plan.batch}",
        figures={**figures, "cost": cost_figure(figures, plan.device.device_class, prices)},
        weights_known=weights_known, limit=roofline.limit(plan),
    )  # fmt: skip


def _missing(sibling: Plan, device_class: str) -> Cell:
    reason = Reason(name="not tuned", text=f"{sibling.name} at batch {sibling.batch} has no plan for it")
    tune, merge = f"autotune tune STUDY_FILE --batch {sibling.batch}", "autotune db merge"
    command = f"{tune} with {sibling.name}'s study file on a host with {device_class}, then {merge} its export here"
    return Cell(device_class=device_class, state="missing", reasons=(reason,), command=command)


def _winner(quantity: str, cells: Sequence[Cell]) -> Winner | None:
    entries = [(cell.device_class, cell.figure(quantity)) for cell in cells]
    entries = [(name, figure) for name, figure in entries if figure.value is not None]
    if len({name for name, _ in entries}) < 2:
        return None
    lower = QUANTITIES[quantity].better == "lower"
    _, best = (min if lower else max)(entries, key=lambda entry: entry[1].value or 0.0)
    first = {name for name, figure in entries if figure.overlaps(best)}
    others = [figure for name, figure in entries if name not in first]
    return Winner(quantity=quantity, device_classes=tuple(sorted(first)), margin=_margin(best, others, lower=lower))


def _margin(best: Figure, others: Sequence[Figure], *, lower: bool) -> float | None:
    values = [figure.value for figure in others if figure.value]
    if not values or not best.value:
        return None
    return min(values) / best.value if lower else best.value / max(values)
