"""The parts that distinguish plans of the same name, so that no two of them look alike in a table."""

from collections.abc import Iterable, Sequence

from autotune.records.objective import Objective
from autotune.records.plan import Plan

PARTS = ("structure", "weights", "objective", "constraints", "served as")
"""The parts that may differ between plans of one name, batch and device class, in the order in which they are shown."""


def part(plan: Plan, name: str) -> str:
    """Return one of :data:`PARTS` of a plan as text."""
    texts = {
        "structure": short(plan.structure),
        "weights": short(plan.weights),
        "objective": plan.objective.name,
        "constraints": constraints(plan.objective),
        "served as": plan.serve_as,
    }
    return texts[name]


def differing(plans: Sequence[Plan]) -> tuple[str, ...]:
    """Return those of :data:`PARTS` that differ between plans of the same name, batch and device class."""
    groups: dict[tuple[str, int, str], list[Plan]] = {}
    for plan in plans:
        groups.setdefault((plan.name, plan.batch, plan.device.device_class), []).append(plan)
    return tuple(
        name for name in PARTS if any(_differ(part(plan, name) for plan in group) for group in groups.values())
    )


def named(plan: Plan, parts: Sequence[str]) -> str:
    """Return the name and batch of a plan, with the parts that distinguish it from others."""
    return ", ".join([f"{plan.name}, batch {plan.batch}", *(f"{name} {part(plan, name)}" for name in parts)])


def short(digest: str) -> str:
    """Return the first eight characters of a digest, enough to see that two digests differ."""
    return digest[:8]


def constraints(objective: Objective) -> str:
    """Return all limits that a plan of an objective has to keep."""
    outputs = (f"{name} ≤ {limit:g}" for name, limit in objective.signal_error_by_output)
    texts = [f"signal error ≤ {objective.signal_error:g}", *outputs]
    if objective.integer_agreement != Objective().integer_agreement:
        texts.append(f"integers ≥ {objective.integer_agreement:g}")
    return "; ".join([*texts, *map(str, objective.metrics)])


def _differ(texts: Iterable[str]) -> bool:
    return len(set(texts)) > 1
