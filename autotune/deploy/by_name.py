"""The stored plan of a name, found and loaded without the model: open_by_name, plan_of_name."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from autotune.errors import PlanNotFoundError, RequestError
from autotune.records.identity import PlanKey

if TYPE_CHECKING:
    from autotune.database.store import Store
    from autotune.deploy.model import OptimizedModel
    from autotune.deploy.recheck import OnMiss
    from autotune.records.device import Device
    from autotune.records.objective import Objective
    from autotune.records.plan import Plan

SHOWN = 8
"""The most plans that an error lists."""


def refuse_beside_name(inputs: object, name: str | None) -> None:
    """Raise RequestError if a caller of a plan by its name has given what belongs to a module."""
    given = [f"{what}=" for what, value in (("inputs", inputs), ("name", name)) if value is not None]
    if given:
        raise RequestError(
            "a plan by its name", found=f"{' and '.join(given)} beside it", expected="the name, and batch= if needed"
        )


def open_by_name(
    store: "Store", name: str, batch: int | None, device: str | None, objective: "Objective", serve_as: str,
    on_miss: "OnMiss" = "error",
) -> "OptimizedModel":  # fmt: skip
    """Return the plan that :func:`plan_of_name` finds, loaded on the device of a name, by default ``auto``.

    With ``on_miss="recheck"`` it may be one of another device of the same kind, see :mod:`autotune.deploy.near`.
    """
    from autotune.deploy.miss import damaged_is_a_miss, unreadable_is_a_miss
    from autotune.deploy.model import open_plan
    from autotune.deploy.near import near_plan_of_name
    from autotune.runtime import discovery

    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise RequestError(f"a plan of {name!r}", found=f"batch={batch!r}", expected="a whole number from 1")
    begin, here = time.perf_counter(), discovery.find(device or "auto")
    try:
        with unreadable_is_a_miss():
            plan = plan_of_name(store, name, batch, here, objective, serve_as)
        found = time.perf_counter()
        with damaged_is_a_miss(plan):
            fast = open_plan(plan, store)
    except PlanNotFoundError as miss:
        if on_miss != "recheck":
            raise
        return near_plan_of_name(store, _near(store, name, batch, here, objective, serve_as), here, miss)
    fast.seconds = {"look_up": found - begin, "open": time.perf_counter() - found}
    return fast


def _near(
    store: "Store", name: str, batch: int | None, device: "Device", objective: "Objective", serve_as: str
) -> "list[Plan]":  # fmt: skip
    """Return the plans of a name for other devices of a kind; RequestError as that of :func:`plan_of_name`."""
    near = [
        plan for plan in store.plans.list(name=name, batch=batch)
        if plan.device.kind == device.kind and plan.device.device_class != device.device_class
        and plan.key.serves(_request(plan, objective, serve_as))
    ]  # fmt: skip
    _require_one_model(name, near)
    return near


def plan_of_name(
    store: "Store", name: str, batch: int | None, device: "Device", objective: "Objective", serve_as: str
) -> "Plan":
    """Return the fastest plan of a name that serves a request and has an artifact that can be loaded as it is.

    Without ``batch`` the name must have plans for one batch only. Raises RequestError if plans of several batches, of
    several structures or of several weights have the name, PlanNotFoundError if none of it serves or its artifact
    would have to be built again, for which the model is needed.
    """
    named = store.plans.list(name=name, batch=batch)
    here = [plan for plan in named if plan.device.device_class == device.device_class]
    if not here:
        raise _no_plan(store, name, batch, device, named)
    serving = [plan for plan in here if plan.key.serves(_request(plan, objective, serve_as))]
    if not serving:
        parts = [
            f"{_shown(plan)}: "
            + "; ".join(f"{part}: requested {wanted}, the plan has {own}" for part, wanted, own in
                        plan.key.differences(_request(plan, objective, serve_as)))
            for plan in here
        ]  # fmt: skip
        raise PlanNotFoundError(
            f"no stored plan of {name} serves objective {objective.name} as {serve_as} on {device.name}",
            found=_listed(parts), expected="a plan within these constraints",
            run="autotune tune with a study file of this objective, or autotune plan list",
        )  # fmt: skip
    _require_one_model(name, serving)
    ordered = [replace(plan, device=device) for plan in sorted(serving, key=lambda plan: (plan.latency_ms, plan.uid))]
    return next((plan for plan in ordered if not _misfits(store, plan)), None) or _refuse(store, ordered[0])


def _require_one_model(name: str, serving: "Sequence[Plan]") -> None:
    """Raise RequestError if plans are for several batches or several models."""
    batches = sorted({plan.batch for plan in serving})
    if len(batches) > 1:
        raise RequestError(
            f"a plan of {name} without its batch", found=f"plans of batch {', '.join(map(str, batches))}",
            expected="one of these", run=f"autotune.load({name!r}, batch={batches[0]})",
        )  # fmt: skip
    if len({(plan.structure, plan.weights, plan.form) for plan in serving}) > 1:
        raise RequestError(
            f"several models are named {name}", found=_listed(list(map(_shown, serving))),
            expected="one structure with one set of weights",
            run="autotune.load(model, inputs), which finds the plan of this very model",
        )  # fmt: skip


def _request(plan: "Plan", objective: "Objective", serve_as: str) -> PlanKey:
    """Return the key that a request for the model of a plan has."""
    return replace(plan.key, objective=objective, serve_as=serve_as)


def _misfits(store: "Store", plan: "Plan") -> list[tuple[str, str, str]]:
    """Return the reasons why the artifact of a plan cannot be loaded here without the model; empty if it can."""
    from autotune import registry
    from autotune.model.source import holds_model_file
    from autotune.runtime import toolchain
    from autotune.study.cache import misfits

    names = registry.backend(plan.configuration.backend).toolchain
    reasons = misfits(plan, plan.weights, plan.form, toolchain.current(plan.device, names), store)
    if not reasons and plan.artifact is not None and plan.configuration.get("form", "") == "module":
        with store.artifacts.verified(plan.artifact) as folder:
            if not holds_model_file(folder):
                reasons.append(("code", "none of the model's", "its own module"))
    return reasons


def _refuse(store: "Store", plan: "Plan") -> NoReturn:
    from autotune.deploy.miss import does_not_serve

    run = "autotune.load(model, inputs), or autotune tune --again"
    raise does_not_serve(plan, _misfits(store, plan), "which needs the model", run)


def _no_plan(
    store: "Store", name: str, batch: int | None, device: "Device", named: "Sequence[Plan]"
) -> PlanNotFoundError:  # fmt: skip
    of_batch = "" if batch is None else f" at batch {batch}"
    others = named or store.plans.list(name=name)
    found = _listed(list(map(_shown, others))) if others else _names(store)
    run = "autotune plan list, or autotune tune STUDY_FILE"
    if device.kind != "cpu" and any(plan.device.kind == "cpu" for plan in others):
        run = f"autotune.load({name!r}, device='cpu'), or {run}"
    return PlanNotFoundError(
        f"no stored plan of {name!r}{of_batch} on {device.name}", found=found,
        expected=f"a plan of this name{of_batch} for device class {device.device_class}", run=run,
    )  # fmt: skip


def _names(store: "Store") -> str:
    names = sorted({plan.name for plan in store.plans.list()})
    return f"plans of {', '.join(names[:SHOWN])}{' and others' if len(names) > SHOWN else ''} in {store.location}" \
        if names else f"no plan in {store.location}"  # fmt: skip


def _shown(plan: "Plan") -> str:
    return (
        f"plan {plan.uid[:8]} at batch {plan.batch} on {plan.device.device_class}, structure {plan.structure[:8]}, "
        f"weights {plan.weights[:8]}, of {plan.created[:10]}"
    )


def _listed(lines: Sequence[str]) -> str:
    more = [] if len(lines) <= SHOWN else [f"and {len(lines) - SHOWN} others"]
    return "\n    ".join([*lines[:SHOWN], *more])
