"""Hints for a study from the plans of the database: past_finals, study_hints."""

import math
from collections.abc import Sequence

from autotune.database.store import Store
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.plan import Plan
from autotune.records.search_space import SearchSpace
from autotune.records.study_start import HintRecord, HintSource
from autotune.search.warm_start import PastFinals, WarmHint, warm_start
from autotune.study.request import StudyRequest

MOST_PLANS = 64
"""The most plans that are read; each is a few hundred kilobytes of samples, which take about 2 ms."""


def study_hints(request: StudyRequest, spaces: Sequence[SearchSpace], store: Store) -> tuple[HintRecord, ...]:
    """Return the hints of a study that begins: configurations that were as good as the best of other finals.

    Only the order of its proposals depends on them: no result is reused, and no key has them. None without
    ``warm_start``. Plans of another objective, or of another kind of device (CPU or GPU), propose nothing.
    """
    if not request.warm_start:
        return ()
    device = request.device
    plans = store.plans.related(request.name, device.device_class, request.objective.name, MOST_PLANS)
    past = [past_finals(plan, device) for plan in plans if plan.device.kind == device.kind]
    hints = warm_start(past, spaces, name=request.name, device_class=device.device_class)
    return tuple(map(_record, hints))


def past_finals(plan: Plan, device: Device) -> PastFinals:
    """Return the finals of a plan in the form that a warm start on a device reads.

    Threads on all cores of the plan's CPU become threads on all cores of this one. A finalist whose value is no
    positive number is left out: a plan may come from another database.
    """
    figures = plan.evidence.objective
    baseline = plan.baseline_latency_ms if figures is None else figures.baseline
    finalists = [
        (_on_cores(finalist.configuration, plan.device.cores, device.cores), finalist.compared)
        for finalist in plan.evidence.finalists
        if _is_positive(finalist.compared) and _is_positive(baseline)
    ]
    return PastFinals(
        name=plan.name,
        batch=plan.batch,
        device_class=plan.device.device_class,
        baseline=baseline,
        finalists=tuple(finalists),
    )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _on_cores(configuration: Configuration, before: int, now: int) -> Configuration:
    if configuration.get("threads", 0) != before:
        return configuration
    return Configuration.of(configuration.backend, {**dict(configuration.values), "threads": now})


def _record(hint: WarmHint) -> HintRecord:
    sources = [HintSource(name=past.name, batch=past.batch, device_class=past.device_class) for past in hint.studies]
    return HintRecord(configuration=hint.configuration, gain=hint.gain, studies=tuple(sources))
