"""The errors for a request that no stored plan answers: the parts in which the nearest plans differ from it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from autotune.errors import ArtifactError, DatabaseError, PlanNotFoundError
from autotune.records.identity import PlanKey

if TYPE_CHECKING:
    from autotune.database.store import Store
    from autotune.deploy.prepared import Prepared
    from autotune.records.plan import Plan

SHOWN = 3
"""The number of nearest plans that the error describes."""


def not_found(store: "Store", prepared: "Prepared", key: PlanKey) -> PlanNotFoundError:
    """Return the error for a request that no plan serves."""
    former = prepared.captured.workload.former
    near = store.plans.nearest(key, prepared.name, former)
    lines = [_line(plan, key, prepared.batch, former) for plan in near[:SHOWN]]
    return PlanNotFoundError(
        f"no stored plan answers {prepared.name} at batch {prepared.batch} on {prepared.device.name}",
        found="\n    ".join(lines) or f"no plan of this structure or name in {store.location}",
        expected=f"a plan of structure {key.structure[:12]}, device class {key.device_class}, objective "
        f"{key.objective.name} within these constraints, served as {key.serve_as}",
        run="autotune.optimize(model, inputs), or autotune plan list",
    )


def unusable(
    prepared: "Prepared", plan: "Plan", differences: Sequence[tuple[str, str, str]], why: str, run: str
) -> PlanNotFoundError:
    """Return the error for a plan whose artifact does not serve a model and was not built again."""
    subject = f"{prepared.name} at batch {prepared.batch} on {prepared.device.name}"
    return does_not_serve(plan, differences, why, run, subject=subject)


def does_not_serve(
    plan: "Plan", differences: Sequence[tuple[str, str, str]], why: str, run: str, *, subject: str = ""
) -> PlanNotFoundError:
    """Return the error for a plan whose artifact does not serve; ``subject`` is by default that of the plan."""
    parts = "; ".join(
        f"{part}: requested {requested}, the plan has {stored}" for part, requested, stored in differences
    )
    subject = subject or f"{plan.name} at batch {plan.batch} on {plan.device.name}"
    return PlanNotFoundError(
        f"no stored plan answers {subject} as it stands",
        found=f"plan {plan.uid[:8]} ({plan.configuration}), whose artifact does not serve: {parts}",
        expected=f"an artifact that is built again, {why}",
        run=run,
    )


def rechecked(miss: PlanNotFoundError, reasons: Sequence[str]) -> PlanNotFoundError:
    """Return the error for a miss whose nearest plans were tried on this device; ``reasons`` has a line for each."""
    tried = reasons or ["no plan of another device of this kind whose artifact runs here"]
    found = "\n    ".join([miss.found, *(f"rechecked here: {reason}" for reason in tried)])
    return PlanNotFoundError(miss.asked, found=found, expected=miss.expected, run=miss.run)


@contextlib.contextmanager
def unreadable_is_a_miss() -> Iterator[None]:
    """Turn the error of a stored plan that cannot be read into PlanNotFoundError."""
    try:
        yield
    except DatabaseError as error:
        raise PlanNotFoundError(
            "no stored plan answers", found=f"{error.asked}: {error.found}", expected=error.expected, run=error.run
        ) from error


@contextlib.contextmanager
def damaged_is_a_miss(plan: "Plan") -> Iterator[None]:
    """Turn the error of a plan whose artifact is damaged, missing or does not load into PlanNotFoundError."""
    try:
        yield
    except ArtifactError as error:
        raise PlanNotFoundError(
            f"no stored plan answers {plan.name} at batch {plan.batch} on {plan.device.name}",
            found=f"plan {plan.uid[:8]} ({plan.configuration}): {error.asked}: {error.found}",
            expected=error.expected or "an artifact as it was stored",
            run=error.run or "autotune db check",
        ) from error


def _line(plan: "Plan", key: PlanKey, batch: int, former: str) -> str:
    """Describe a plan by the parts in which it differs from the request."""
    parts = []
    if former and plan.structure == former and plan.fingerprint == 1:
        parts.append("recorded by fingerprint 1, which was the same for graphs that differ only in an inner graph")
    if plan.batch != batch:
        parts.append(f"batch: requested {batch}, the plan has {plan.batch}")
    differences = plan.key.differences(key)
    parts += [f"{part}: requested {requested}, the plan has {stored}" for part, requested, stored in differences]
    return f"plan {plan.uid[:8]} of {plan.name}: {'; '.join(parts)}"
