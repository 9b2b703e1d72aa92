"""What earlier runs left: finished studies that answer at once, and whether a stored plan still fits."""

import importlib.metadata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autotune import registry
from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.model import reading
from autotune.records.device import Toolchain
from autotune.records.evidence import FinalistRecord
from autotune.records.identity import ArtifactKey
from autotune.records.plan import Plan
from autotune.records.trial import Trial
from autotune.runtime import toolchain as versions
from autotune.search.history import TrialOutcome
from autotune.study.identity import request_digest
from autotune.study.request import StudyOutcome, StudyRequest


def known_outcome(request: StudyRequest, store: Store) -> StudyOutcome | None:
    """The outcome of a finished study of exactly this request, if its model's sources are unchanged; needs no torch."""
    if request.factory is None:
        return None
    digest: str | None = None
    for row in reversed(store.studies.list(request.name, request.batch)):
        if row.state != "finished" or row.conditions is None or asks_more(request, row):
            continue
        digest = digest or request_digest(request)
        if row.settings.get("request") != digest or not _unchanged(row.settings.get("read") or {}):
            continue
        plan = store.plans.find(row.identity.plan, row.weights)
        if plan is None or not _is_of(plan, row, store):
            continue
        if not misfits(plan, row.weights, row.conditions.form, versions.current(request.device), store):
            return outcome(plan, store.trials.of_study(plan.evidence.study or row.uid), cached=True, seconds=0.0)
    return None


def asks_more(request: StudyRequest, row: StudyRow) -> bool:
    """Whether a request has more trials or time to spend than a finished study was given, and something is left."""
    asked = row.timings.get("asked", {})
    more = request.trials > asked.get("trials", 0) or request.budget_s > asked.get("budget_s", 0.0)
    return more and not asked.get("exhausted", False)


def misfits(plan: Plan, weights: str, form: str, toolchain: Toolchain, store: Store) -> list[tuple[str, str, str]]:
    """Return why a plan's artifact does not serve, as (part, what is asked, what it has); empty if it does.

    ``form`` is that of the answer: an artifact of another one is described anew, the others are built again. Which
    tuned kernels the database knows now does not matter: those that the plan was timed with are in its artifact.
    """
    entries = toolchain.only(registry.backend(plan.configuration.backend).toolchain)
    found = list(plan.artifact_key.differences(ArtifactKey(weights=weights, toolchain=entries, kernels=plan.kernels)))
    if plan.form != form:
        found.append(("form of the answer", form[:12], plan.form[:12] or f"unknown to fingerprint {plan.fingerprint}"))
    if plan.artifact is None or not store.artifacts.has(plan.artifact):
        found.append(("artifact", "one in this store", "none"))
    return found


def outcome(
    plan: Plan, trials: Sequence[Trial], *, cached: bool, seconds: float, split: Mapping[str, float] | None = None
) -> StudyOutcome:
    """Put together what a study answers that has decided."""
    return StudyOutcome(
        name=plan.name,
        batch=plan.batch,
        device=plan.device,
        objective=plan.objective,
        plan=plan,
        status=plan.status,
        cached=cached,
        trials=Counter(trial.state for trial in trials),
        seconds=seconds,
        split=split or {},
        finalists=_in_short(plan.evidence.finalists),
    )


def undecided_outcome(
    row: StudyRow,
    request: StudyRequest,
    incumbent: Plan | None,
    *,
    reason: str,
    finalists: Iterable[FinalistRecord],
    trials: Sequence[Trial],
    seconds: float,
    split: Mapping[str, float],
) -> StudyOutcome:
    """Put together what a study answers whose finals could not decide."""
    return StudyOutcome(
        name=row.name,
        batch=row.batch,
        device=request.device,
        objective=request.objective,
        plan=incumbent,
        status="undecided",
        reason=reason,
        run="the same call again, which repeats only the finals",
        cached=False,
        trials=Counter(trial.state for trial in trials),
        seconds=seconds,
        split=split,
        finalists=_in_short(finalists),
    )


def _in_short(finalists: Iterable[FinalistRecord]) -> tuple[FinalistRecord, ...]:
    """Return finalists without the data that only a recomputation needs."""
    return tuple(finalist.without("samples_ms", "uid", "disturbed_rounds") for finalist in finalists)


def as_outcome(trial: Trial) -> TrialOutcome:
    """A finished trial as the search learns from it."""
    if trial.state == "running":
        raise ValueError(f"trial {trial.number} has not ended")
    return TrialOutcome(
        configuration=trial.configuration, state=trial.state, score=trial.ranked_by, build_s=trial.build_s
    )


def package_versions(modules: Iterable[str]) -> dict[str, str]:
    """Versions of the distributions that modules belong to."""
    owners = importlib.metadata.packages_distributions()
    tops = {name.partition(".")[0] for name in modules}
    names = {owner for top in tops for owner in owners.get(top, ())}
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def _is_of(plan: Plan, row: StudyRow, store: Store) -> bool:
    """Whether a plan was found by this study, or by the same study for other weights or another toolchain."""
    families = {study.uid: study.identity.family for study in store.studies.list(row.name, row.batch)}
    return families.get(plan.evidence.study or "") == row.identity.family


def _unchanged(read: Mapping[str, Any]) -> bool:
    """Whether everything that a model and its metrics were made from is as it was; False if that cannot be known."""
    if not read.get("records") or not all(map(reading.unchanged, read["records"])):
        return False
    try:
        return all(importlib.metadata.version(name) == had for name, had in read.get("packages", {}).items())
    except importlib.metadata.PackageNotFoundError:
        return False
