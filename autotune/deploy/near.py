"""Plans of other devices, rechecked on this one for a request that no plan of its device class answers."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.deploy import miss as misses
from autotune.deploy.model import open_folder, open_plan, verified
from autotune.deploy.portability import portability_on
from autotune.deploy.recheck import Example, failing, not_faster
from autotune.errors import ArtifactError, PlanNotFoundError

if TYPE_CHECKING:
    from autotune.database.store import Store
    from autotune.deploy.model import OptimizedModel
    from autotune.deploy.prepared import Prepared
    from autotune.records.device import Device
    from autotune.records.identity import PlanKey
    from autotune.records.plan import Plan

log = logging.getLogger("autotune")


def near_plan_of_model(
    store: "Store", prepared: "Prepared", key: "PlanKey", miss: PlanNotFoundError
) -> "OptimizedModel":  # fmt: skip
    """Return a plan of another device class, loaded, that answers like the model and is faster than it on this device.

    Raises PlanNotFoundError, with the reasons of the plans that were tried, if there is none.
    """
    workload, form = prepared.captured.workload, prepared.captured.form
    with misses.unreadable_is_a_miss():
        near = store.plans.nearest(key, prepared.name)
    exact = [plan for plan in near if plan.weights == workload.weights and plan.form == form.digest]

    def opened(plan: "Plan") -> "OptimizedModel":
        return open_plan(plan, store, form, prepared.captured.inputs)

    def wrong(fast: "OptimizedModel") -> str:
        try:
            verified(fast, prepared)
        except ArtifactError as error:
            return error.found
        return not_faster(fast, prepared.example, prepared.device, prepared.module)

    fast = _first(store, _running(store, exact, key, prepared.device), opened, wrong, miss)
    fast.seconds = {**prepared.seconds, **fast.seconds}
    return fast


def near_plan_of_name(
    store: "Store", plans: "Sequence[Plan]", device: "Device", miss: PlanNotFoundError
) -> "OptimizedModel":  # fmt: skip
    """Return the first of some plans of other device classes, loaded, that is accurate and a gain on this device.

    Its answer to its example is compared with the model's, which its artifact keeps, and its latency with the one that
    the baseline had on the device that it was tuned on. Raises PlanNotFoundError if there is none.
    """
    examples: dict[str, Example] = {}

    def opened(plan: "Plan") -> "OptimizedModel":
        with store.artifacts.verified(str(plan.artifact)) as folder:
            fast = open_folder(plan, folder)
            examples[plan.uid] = Example.of(folder)
        return fast

    def wrong(fast: "OptimizedModel") -> str:
        return failing(fast, examples[fast.plan.uid], device)

    return _first(store, _running(store, plans, None, device), opened, wrong, miss)


def _first(
    store: "Store", plans: "Iterable[Plan]", opened: "Callable[[Plan], OptimizedModel]",
    wrong: "Callable[[OptimizedModel], str]", miss: PlanNotFoundError,
) -> "OptimizedModel":  # fmt: skip
    """Return the first plan that can be opened and of which nothing is wrong here."""
    reasons = []
    for plan in plans:
        begin = time.perf_counter()
        try:
            fast = opened(plan)
        except ArtifactError as error:
            reasons.append(f"plan {plan.uid[:8]}: {error.asked}: {error.found}")
            continue
        opened_s = time.perf_counter() - begin
        why = wrong(fast)
        if not why:
            fast.seconds = {"open": opened_s, "recheck": time.perf_counter() - begin - opened_s}
            log.warning(
                "%s: plan %s was tuned on another device, and was rechecked on this one", plan.name, plan.uid[:8]
            )
            return fast
        fast.close()
        made_on = store.plans.get(plan.uid).device.device_class  # the plan itself is placed on this device
        reasons.append(f"plan {plan.uid[:8]} of {made_on}: {why}")
    raise misses.rechecked(miss, reasons) from miss


def _running(
    store: "Store", plans: "Sequence[Plan]", key: "PlanKey | None", device: "Device"
) -> "Iterator[Plan]":  # fmt: skip
    """Yield, fastest first and placed on the device, the plans of other classes whose artifacts run on it."""
    for plan in sorted(plans, key=lambda plan: (plan.latency_ms, plan.uid)):
        wanted = plan.key if key is None else replace(key, device_class=plan.device.device_class)
        if plan.configuration.get("form", "") == "module" or not plan.key.serves(wanted):
            continue
        if plan.artifact is None or not store.artifacts.has(plan.artifact):
            continue
        if portability_on(plan, device).verdict == "works":
            yield replace(plan, device=device)
