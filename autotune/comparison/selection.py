"""The models, batches and device classes of a comparison, chosen by name: Selection."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from autotune.comparison.supplied_roofs import SuppliedRoofs
from autotune.database.plan_rows import device_classes
from autotune.database.rows import StudyRow
from autotune.errors import PlanNotFoundError, RequestError
from autotune.records.device import slug
from autotune.records.plan import Plan

NEAREST = 3
RowSubject = Literal["device", "weights", "toolchain"]
SUBJECTS: tuple[RowSubject, ...] = ("device", "weights", "toolchain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Names of studies, a batch, and devices: parts of SKUs, or whole device classes; empty ones admit all.

    ``here`` are device classes of this machine: they may be named although the database has nothing of them.
    ``by`` is the subject of a row: a device class, each weights of a model on it, or each toolchain that its plans were
    measured under.
    """

    models: tuple[str, ...] = ()
    batch: int | None = None
    devices: tuple[str, ...] = ()
    here: tuple[str, ...] = ()
    by: RowSubject = "device"

    def plans(self, plans: Sequence[Plan], classes: Sequence[str]) -> list[Plan]:
        """Return the plans that the selection admits; PlanNotFoundError names a model without one."""
        for model in self.models:
            if all(plan.name != model for plan in plans):
                raise PlanNotFoundError(
                    f"there is no plan of {model} to compare",
                    found=nearest(model, {plan.name for plan in plans}) or "no plan at all",
                    expected="the name of a study that has a plan", run="autotune plan list",
                )  # fmt: skip
        of_models = [plan for plan in plans if not self.models or plan.name in self.models]
        chosen = [plan for plan in of_models if self.batch in (None, plan.batch)]
        if of_models and not chosen:
            raise PlanNotFoundError(
                f"there is no plan at batch {self.batch} to compare",
                found=f"batch {', '.join(map(str, sorted({plan.batch for plan in of_models})))}",
                expected="one of these", run="autotune plan list",
            )  # fmt: skip
        return [plan for plan in chosen if plan.device.device_class in classes] if self.devices else chosen

    def device_classes(
        self, plans: Sequence[Plan], rows: Iterable[StudyRow], supplied: SuppliedRoofs | None = None
    ) -> tuple[str, ...]:
        """Return the device classes to compare in their order.

        RequestError for a name that fits none of them, and no device that the user supplied roofs of.
        """
        stored = sorted({plan.device.device_class for plan in plans} | {row.device_class for row in rows})
        if not self.devices:
            with_plans = {plan.device.device_class for plan in self.plans(plans, ())}
            return tuple(name for name in stored if name in with_plans)
        chosen: list[str] = []
        for device in self.devices:
            fitting = device_classes(stored, device) or [name for name in self.here if name == device]
            if not fitting and not (supplied is not None and supplied.named([device]).by_sku):
                skus = {name.split("/", 1)[0] for name in stored}
                raise RequestError(
                    f"device {device!r} is not one to compare", found=nearest(slug(device), skus) or "no device at all",
                    expected="whole words of the name of an SKU that the database has a study of",
                    run="autotune plan list; results of another host come in with autotune db merge",
                )  # fmt: skip
            chosen += [name for name in fitting if name not in chosen]
        return tuple(chosen)


def row_subject(text: str) -> RowSubject:
    """Return the subject of this name; RequestError for another text."""
    for subject in SUBJECTS:
        if subject == text:
            return subject
    raise RequestError(f"plans cannot be compared by {text!r}", expected=f"one of {', '.join(SUBJECTS)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known names that are nearest to a name, or all if none is near; at most twelve."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.4) or [known for known in names if name in known]
    return ", ".join((near or names)[:12])
