"""Rows for devices that nothing was measured on: the limit by roofs that the user supplied, marked as predicted."""

from collections.abc import Iterable, Iterator, Sequence

from autotune.comparison.cell import Cell, Reason
from autotune.comparison.figures import Figure
from autotune.comparison.roofline import BYTES, Ceilings, Limit, LimitInputs, Roofline, precision_of
from autotune.comparison.supplied_roofs import SuppliedRoofs
from autotune.records.device import names_sku
from autotune.records.plan import Plan

PREDICTED = Reason(name="predicted", text="the limit by roofs that the user supplied: it is no measurement")


def unmeasured(supplied: SuppliedRoofs | None, device_classes: Iterable[str]) -> tuple[dict[str, Ceilings], list[str]]:
    """Return the supplied roofs of SKUs without measurements, and a sentence for each SKU that has some."""
    if supplied is None:
        return {}, []
    measured = {name.split("/", 1)[0] for name in device_classes}
    chosen, notes = {}, []
    for sku, ceilings in supplied.by_sku.items():
        same = sorted(name for name in measured if names_sku(sku, name))
        if same:
            notes.append(f"nothing is predicted for {sku}: the database has measurements of {', '.join(same)}")
        else:
            chosen[sku] = ceilings
    return chosen, notes


def predicted_cells(plans: Sequence[Plan], roofs: dict[str, Ceilings], roofline: Roofline) -> Iterator[Cell]:
    """Yield a cell for each SKU, in fp32 or in a precision that the plans use: the one with the lowest limit."""
    for sku, ceilings in roofs.items():
        limits = list(_limits(plans, ceilings, roofline))
        if not limits:
            continue
        inputs = min(limits, key=lambda candidate: (*candidate.least_ms(), candidate.precision))
        ms, by = inputs.least_ms()
        note = f"{PREDICTED.text} ({inputs.precision}, by {by})"
        yield Cell(
            device_class=sku, state="predicted", reasons=(PREDICTED,),
            command=f"autotune tune STUDY_FILE --batch {plans[0].batch} on a host with {sku}, which measures it",
            figures={"latency": Figure(value=ms, note=note)}, limit=Limit(ms=ms, by=by, note=note, inputs=inputs),
        )  # fmt: skip


def not_predicted(name: str, batch: int, cells: Iterable[Cell], roofs: dict[str, Ceilings]) -> Iterator[str]:
    """Yield a sentence for each SKU that no cell was predicted for."""
    there = {cell.device_class for cell in cells if cell.state == "predicted"}
    for sku in roofs:
        if sku not in there:
            yield (
                f"nothing is predicted for {name} at batch {batch} on {sku}: the work of the model was not counted, or "
                "the file has no rate in fp32, nor in a precision that a plan of it uses"
            )


def _limits(plans: Sequence[Plan], ceilings: Ceilings, roofline: Roofline) -> Iterator[LimitInputs]:
    """Yield the inputs of the limit in fp32 and in each precision that a plan uses.

    In fp32 every model keeps its accuracy.
    """
    for plan in plans:
        work = roofline.work(plan.structure)
        for precision in ("fp32", precision_of(plan.configuration)):
            if work is not None and precision in BYTES and ceilings.rate(precision) is not None:
                yield LimitInputs.of(*work, precision, ceilings)
