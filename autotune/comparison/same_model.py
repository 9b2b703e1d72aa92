"""Structures that are one model: another version of torch may capture another graph of it: same_models."""

from collections.abc import Iterator, Mapping, Sequence

from autotune.database.rows import StudyRow
from autotune.records.canonical import canonical
from autotune.records.plan import Plan
from autotune.records.workload import Workload

SameModels = Mapping[str, str]
"""The structure that stands for each structure; one that is missing stands for itself."""


def same_models(
    plans: Sequence[Plan], studies: Mapping[str, StudyRow], workloads: Mapping[str, Workload]
) -> SameModels:
    """Return which structures of plans of one name and batch are one model.

    Two are if their inputs, outputs, operations and compulsory bytes are equal, and they were captured by different
    versions of torch or of the packages that their factories import. Under equal versions another structure is another
    model: its user has changed it. The structure that most device classes have stands for the others. ``studies`` are
    by uid, ``workloads`` by structure.
    """
    made_by: dict[str, set[str]] = {}
    classes: dict[str, set[str]] = {}
    for plan in plans:
        made_by.setdefault(plan.structure, set()).add(_versions(plan, studies))
        classes.setdefault(plan.structure, set()).add(plan.device.device_class)
    chosen: list[str] = []
    same: dict[str, str] = {}
    for structure in sorted(made_by, key=lambda name: (-len(classes[name]), name)):
        versions = made_by[structure]
        for other in chosen:
            if _work(workloads.get(structure)) == _work(workloads.get(other)) != "" and not versions & made_by[other]:
                same[structure] = other
                break
        else:
            chosen.append(structure)
    return same


def notes_of(plans: Sequence[Plan], same: SameModels) -> Iterator[str]:
    """Yield a sentence for each device class whose plan is for another graph of the same model."""
    devices: dict[str, list[str]] = {}
    for plan in plans:
        if plan.structure in same:
            torch = plan.measured_under.as_dict().get("torch", "another version")
            devices.setdefault(torch, []).append(plan.device.sku)
    for torch, skus in devices.items():
        yield (
            f"{plans[0].name} at batch {plans[0].batch}: torch {torch} captured another graph of the model than the "
            f"others; its inputs, outputs, operations and bytes are equal ({', '.join(dict.fromkeys(skus))})"
        )


def _versions(plan: Plan, studies: Mapping[str, StudyRow]) -> str:
    study = studies.get(plan.evidence.study or "")
    packages = {} if study is None else (study.settings.get("read") or {}).get("packages", {})
    return canonical({"torch": plan.measured_under.as_dict().get("torch", ""), "packages": dict(packages)})


def _work(workload: Workload | None) -> str:
    """Return what two graphs of one model have in common; empty if their work was not counted."""
    if workload is None or None in (workload.flops, workload.traffic_bytes):
        return ""
    record = workload.as_dict()
    return canonical({name: record[name] for name in ("inputs", "outputs", "flops", "traffic_bytes")})
