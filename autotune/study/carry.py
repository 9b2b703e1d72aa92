"""Plans that are carried from other device classes into the finals of a study: plans_to_carry, carried_records."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from autotune.database.plan_rows import device_classes
from autotune.database.store import Store
from autotune.errors import RequestError
from autotune.records.evidence import CarriedRecord
from autotune.records.plan import Plan
from autotune.records.trial import Trial
from autotune.study.request import StudyRequest

ALL = "all"
"""The name that stands for every other device class of the same kind."""


def plans_to_carry(request: StudyRequest, store: Store, structure: str = "") -> tuple[Plan, ...]:
    """Return the newest plan of each device class that a request names, by device class.

    A plan is carried if it is for a study of the same name, batch, objective and serving format, and its device is of
    the same kind: a CPU or a GPU. One for this ``structure`` comes before others: another version of torch may capture
    another graph of the same model, and a configuration can be built all the same. Raises RequestError for a name
    without such a plan.
    """
    if not request.carry:
        return ()
    others = [
        plan for plan in store.plans.list(request.name, request.batch)
        if plan.device.device_class != request.device.device_class and plan.device.kind == request.device.kind
        and (plan.objective.name, plan.serve_as) == (request.objective.name, request.serve_as)
    ]  # fmt: skip
    classes = sorted({plan.device.device_class for plan in others})
    chosen: set[str] = set()
    for name in request.carry:
        fitting = classes if name == ALL else device_classes(classes, name)
        if not fitting:
            raise _nothing_to_carry(request, name, classes)
        chosen |= set(fitting)
    newest: dict[str, Plan] = {}
    for plan in sorted(others, key=lambda plan: (plan.structure == structure, plan.created, plan.uid)):
        if plan.device.device_class in chosen:
            newest[plan.device.device_class] = plan
    return tuple(newest[name] for name in sorted(newest))


def has_carried(own: Plan, plans: Sequence[Plan]) -> bool:
    """Return whether the finals of a plan had each of these plans; one of its own configuration needs no finals."""
    stored = {(record.device_class, record.configuration.digest) for record in own.evidence.carried or ()}
    return all(
        plan.configuration == own.configuration or (plan.device.device_class, plan.configuration.digest) in stored
        for plan in plans
    )


def carried_records(
    plans: Sequence[Plan], trials: Sequence[Trial], chosen: Collection[str], timed: Collection[str]
) -> tuple[CarriedRecord, ...]:
    """Return for each carried plan its finalist, or the reason why it was not timed in the finals.

    ``trials`` are those of the study under its toolchain; ``chosen`` are the uids of those that were to enter the
    finals, ``timed`` of those that were timed there.
    """
    tried = {trial.configuration.digest: trial for trial in trials}
    records = []
    for plan in plans:
        trial = tried.get(plan.configuration.digest)
        record = CarriedRecord(device_class=plan.device.device_class, plan=plan.uid, configuration=plan.configuration)
        records.append(replace(record, **_result(trial, chosen, timed)))
    return tuple(records)


def _result(trial: Trial | None, chosen: Collection[str], timed: Collection[str]) -> dict[str, Any]:
    if trial is None or trial.state == "running":
        return {"failure": "it was not tried"}
    if trial.uid in timed:
        return {"trial": trial.uid}
    if trial.failure is not None:
        return {"failure": str(trial.failure)}
    if trial.uid in chosen or trial.ranked_by is None:
        return {"failure": "it passed the screening and failed in the finals"}
    return {"screened": trial.ranked_by}


def _nothing_to_carry(request: StudyRequest, name: str, classes: Sequence[str]) -> RequestError:
    skus = sorted({device_class.split("/", 1)[0] for device_class in classes})
    near = difflib.get_close_matches(name, skus, n=3, cutoff=0.4) or skus
    kind = "GPU" if request.device.kind == "cuda" else "CPU"
    what = f"{request.name} at batch {request.batch}"
    others = f"plans of it for {', '.join(near)}" if near else f"no plan of it for another {kind}"
    return RequestError(
        f"no plan of {what} can be carried from {'another device' if name == ALL else name}",
        found=others,
        expected=f"a plan for another {kind}, with the same objective and serving format",
        run="autotune db export there, and autotune db merge its file here",
    )
