"""The results of earlier runs: finished studies that answer at once, and stored plans that may not fit any more."""

import importlib.metadata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypedDict

from autotune import registry
from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.model import reading
from autotune.records.device import Toolchain
from autotune.records.evidence import FinalistRecord
from autotune.records.identity import ArtifactKey
from autotune.records.plain import values_in
from autotune.records.plan import Plan
from autotune.records.trial import Trial
from autotune.runtime import toolchain as versions
from autotune.search.history import TrialOutcome
from autotune.study.identity import request_digest
from autotune.study.request import StudyOutcome, StudyRequest
from autotune.study.space import untried


class Sources(TypedDict, total=False):
    """The files and packages that a model and its metrics were made from: the setting ``read`` of a study.

    ``records`` are those of :mod:`autotune.model.reading`, ``packages`` the versions of distributions.
    """

    records: list[Mapping[str, object]]
    packages: Mapping[str, str]


def stored_outcome(request: StudyRequest, store: Store) -> StudyOutcome | None:
    """Return the outcome of a finished study of exactly this request, if its model's sources are unchanged.

    It needs no torch.
    """
    if request.factory is None:
        return None
    digest: str | None = None
    for row in reversed(store.studies.list(request.name, request.batch)):
        if row.state != "finished" or row.conditions is None or asks_more(request, row):
            continue
        digest = digest or request_digest(request)
        if row.settings.get("request") != digest or not _unchanged(row.settings.get("read") or Sources()):
            continue
        plan = store.plans.find(row.identity.plan, row.weights)
        if plan is None or not _is_of(plan, row, store):
            continue
        if not misfits(plan, row.weights, row.conditions.form, versions.current(request.device), store):
            study = plan.evidence.study or row.uid
            return outcome(request, store, study, plan, plan.evidence.finalists, cached=True, seconds=0.0)
    return None


def asks_more(request: StudyRequest, row: StudyRow) -> bool:
    """Return true if a request allows more trials or time than a finished study had, and its space is not used up."""
    former = row.timings.get("asked", {})
    more = request.trials > former.get("trials", 0) or request.budget_s > former.get("budget_s", 0.0)
    return more and not former.get("exhausted", False)


def misfits(plan: Plan, weights: str, form: str, toolchain: Toolchain, store: Store) -> list[tuple[str, str, str]]:
    """Return the reasons why a plan's artifact does not serve, as (part, value needed, its value); empty if it does.

    ``form`` is the form of the answer. The tuned kernels that the database has now do not matter: those that the plan
    was timed with are in its artifact.
    """
    entries = toolchain.only(registry.backend(plan.configuration.backend).toolchain)
    needed = ArtifactKey(weights=weights, toolchain=entries, kernels=plan.kernels)
    reasons = list(plan.artifact_key.differences(needed))
    if plan.form != form:
        reasons.append(
            ("form of the answer", form[:12], plan.form[:12] or f"unknown to fingerprint {plan.fingerprint}")
        )
    if plan.artifact is None or not store.artifacts.has(plan.artifact):
        reasons.append(("artifact", "one in this store", "none"))
    return reasons


def outcome(
    request: StudyRequest,
    store: Store,
    study: str,
    plan: Plan | None,
    finalists: Iterable[FinalistRecord],
    *,
    seconds: float,
    cached: bool = False,
    split: Mapping[str, float] | None = None,
    doubt: str = "",
) -> StudyOutcome:
    """Return the outcome of a study: its plan or, if the finals could not decide, their ``doubt`` and the incumbent.

    ``study`` is the uid of the study that the plan is from, or whose finals could not decide. A plan from the database
    has its own device and objective, which may be stricter than the request's.
    """
    row, trials = store.studies.get(study), store.trials.of_study(study)
    answered = request if plan is None or doubt else plan
    return StudyOutcome(
        name=answered.name,
        batch=answered.batch,
        device=answered.device,
        objective=answered.objective,
        plan=plan,
        status="undecided" if plan is None or doubt else plan.status,
        reason=doubt,
        run="the same call again, which repeats only the finals" if doubt else "",
        cached=cached,
        trials=Counter(trial.state for trial in trials),
        seconds=seconds,
        split=split or {},
        finalists=_in_short(finalists),
        untried=untried(request, trials),
        known_at_start=row.start,
        curve=row.curve,
    )


def _in_short(finalists: Iterable[FinalistRecord]) -> tuple[FinalistRecord, ...]:
    """Return finalists without the data that only a recomputation needs."""
    return tuple(finalist.without("samples_ms", "uid", "disturbed_rounds") for finalist in finalists)


def as_outcome(trial: Trial) -> TrialOutcome:
    """Return a finished trial in the form that the search learns from."""
    if trial.state == "running":
        raise ValueError(f"trial {trial.number} has not ended")
    return TrialOutcome(
        configuration=trial.configuration, state=trial.state, score=trial.ranked_by, build_s=trial.build_s,
        inaccurate=trial.is_inaccurate,
    )  # fmt: skip


def package_versions(records: Iterable[Mapping[str, object]]) -> dict[str, str]:
    """Return the versions of the distributions whose modules were imported according to records of what was read."""
    modules = {name for record in records for name in values_in(record)["packages"]}
    owners = importlib.metadata.packages_distributions()
    tops = {name.partition(".")[0] for name in modules}
    names = {owner for top in tops for owner in owners.get(top, ())}
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def _is_of(plan: Plan, row: StudyRow, store: Store) -> bool:
    """Return true if this study promoted a plan, or the same study for other weights or another toolchain did."""
    families = {study.uid: study.identity.family for study in store.studies.list(row.name, row.batch)}
    return families.get(plan.evidence.study or "") == row.identity.family


def _unchanged(sources: Sources) -> bool:
    """Return true if all sources are as they were; false if that is unknown."""
    if not sources.get("records") or not all(map(reading.unchanged, sources["records"])):
        return False
    try:
        versions_then = sources.get("packages", {}).items()
        return all(importlib.metadata.version(name) == version for name, version in versions_then)
    except importlib.metadata.PackageNotFoundError:
        return False
