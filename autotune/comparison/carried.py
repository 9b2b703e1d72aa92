"""The loss of a plan that is carried to another device class, against the plan that was tuned there: CarriedPlan."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from autotune.comparison.cell import Cell
from autotune.comparison.figures import Figure, compared_figure
from autotune.comparison.paired import paired_ratio
from autotune.records.configuration import Configuration
from autotune.records.evidence import CarriedRecord
from autotune.records.plan import Plan

CarriedState = Literal["measured", "same", "outclassed", "failed", "missing"]
CarriedVerdict = Literal["slower", "faster", "no difference", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedPlan:
    """A plan of one device class that was built and timed on another one, beside the plan that was tuned there.

    ``own`` and ``carried`` are the values of the objective on ``to_class``, in its ``unit``. ``loss`` is their ratio
    less 1 with its 95% interval, by pairs of rounds in the same finals: 0.1 means that the carried plan takes 10% more.

    ``state`` is ``measured``; ``same`` if both have the same configuration; ``outclassed`` if the carried plan was so
    much slower in screening that it was not timed in the finals, so that ``loss`` has no interval; ``failed`` if it
    does not work there; ``missing`` if it was not tried. ``reason`` explains all but the first, ``command`` measures a
    missing one. ``verdict`` is empty unless there is a measurement.
    """

    from_class: str
    to_class: str
    unit: str
    state: CarriedState
    own: Figure
    carried: Figure
    loss: Figure
    configuration: Configuration
    verdict: CarriedVerdict = ""
    reason: str = ""
    command: str = ""

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "from": self.from_class,
            "to": self.to_class,
            "unit": self.unit,
            "state": self.state,
            "own": self.own.as_dict(),
            "carried": self.carried.as_dict(),
            "loss": self.loss.as_dict(),
            "configuration": self.configuration.as_dict(),
            "verdict": self.verdict,
            "reason": self.reason,
            "command": self.command,
        }


def carried_plans(cells: Sequence[Cell]) -> tuple[CarriedPlan, ...]:
    """Return the carried plans of a workload: all that were measured, and those that are missing between its cells.

    Plans of compared cells can be carried between device classes of one kind: from a CPU to another one, from a GPU to
    another one.
    """
    return tuple(entry for cell in cells if cell.plan is not None for entry in _carried_to(cell, cell.plan, cells))


def carried_to(own: Plan) -> tuple[CarriedPlan, ...]:
    """Return the plans of other device classes that took part in the finals of a plan, or were to."""
    return tuple(_recorded(own, record, "") for record in own.evidence.carried or ())


def _carried_to(cell: Cell, own: Plan, cells: Sequence[Cell]) -> Iterator[CarriedPlan]:
    others = {other.device_class: other.plan for other in cells if other.plan is not None and _fits(cell, own, other)}
    records = {record.device_class: record for record in own.evidence.carried or ()}
    for device_class in sorted({*records, *others}):
        record, plan = records.get(device_class), others.get(device_class)
        if record is not None and (plan is None or plan.configuration == record.configuration):
            yield _recorded(own, record, "")
        elif record is not None:
            yield _recorded(own, record, f"an earlier plan of {device_class}; the present one was not carried")
        elif plan is not None and plan.configuration == own.configuration:
            yield _same(own, device_class)
        elif plan is not None:
            yield _missing(own, plan)


def _fits(cell: Cell, own: Plan, other: Cell) -> bool:
    plan = other.plan
    return (
        plan is not None
        and (cell.state, other.state) == ("compared", "compared")
        and cell.device_class != other.device_class
        and own.device.kind == plan.device.kind
    )


def _recorded(own: Plan, record: CarriedRecord, remark: str) -> CarriedPlan:
    finalists = {finalist.uid: finalist for finalist in own.evidence.finalists}
    finalist, winner = finalists.get(record.trial), own.evidence.winner
    figure = compared_figure(own)
    if finalist is None or winner is None:
        return _not_timed(own, record, figure, remark)
    if finalist is winner:
        return _same(own, record.device_class, remark)
    ratio = paired_ratio(own, finalist, winner)
    if ratio is None:
        return _not_timed(own, record, figure, remark)
    loss = Figure(
        value=ratio.value - 1, note="in pairs of rounds",
        interval=None if ratio.interval is None else (ratio.interval[0] - 1, ratio.interval[1] - 1),
    )  # fmt: skip
    verdict: CarriedVerdict = "no difference"
    if ratio.differs:
        verdict = "slower" if ratio.value > 1 else "faster"
    timed = Figure(value=finalist.compared, interval=finalist.objective_interval or finalist.interval_ms)
    return _entry(own, record, "measured", figure, timed, loss, verdict=verdict, reason=remark)


def _not_timed(own: Plan, record: CarriedRecord, figure: Figure, remark: str) -> CarriedPlan:
    if record.screened is None:
        reason = _joined(record.failure or "the finals have no sample of it", remark)
        return _entry(own, record, "failed", figure, Figure(note=reason), Figure(note=reason), reason=reason)
    reason = _joined("too slow in screening to be timed in the finals; compared with the plan's figure there", remark)
    timed = Figure(value=record.screened, note=reason)
    ratio = record.screened / (figure.value or record.screened)
    return _entry(
        own, record, "outclassed", figure, timed, Figure(value=ratio - 1, note=reason), verdict="slower", reason=reason
    )


def _entry(
    own: Plan, record: CarriedRecord, state: CarriedState, figure: Figure, timed: Figure, loss: Figure, *,
    verdict: CarriedVerdict = "", reason: str = "",
) -> CarriedPlan:  # fmt: skip
    return CarriedPlan(
        from_class=record.device_class, to_class=own.device.device_class, unit=own.objective.unit, state=state,
        own=figure, carried=timed, loss=loss, configuration=record.configuration, verdict=verdict, reason=reason,
    )  # fmt: skip


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def _same(own: Plan, device_class: str, remark: str = "") -> CarriedPlan:
    figure = compared_figure(own)
    return CarriedPlan(
        from_class=device_class, to_class=own.device.device_class, unit=own.objective.unit, state="same", own=figure,
        carried=figure, loss=Figure(value=0.0, note="the same configuration"), configuration=own.configuration,
        verdict="no difference", reason=_joined("both plans have the same configuration", remark),
    )  # fmt: skip


def _missing(own: Plan, plan: Plan) -> CarriedPlan:
    here, there = own.device.sku, plan.device.sku
    reason = f"the plan of {there} was not timed on {here}"
    tune = f"autotune tune STUDY_FILE --batch {own.batch} --carry {there}"
    return CarriedPlan(
        from_class=plan.device.device_class, to_class=own.device.device_class, unit=own.objective.unit,
        state="missing", own=compared_figure(own), carried=Figure(note=reason), loss=Figure(note=reason),
        configuration=plan.configuration, reason=reason,
        command=f"{tune} with {own.name}'s study file on a host with {here}; merge the export of {there} there",
    )  # fmt: skip
