"""What earlier runs left: finished studies that answer at once, and whether a stored plan still fits."""

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.database.rows import StudyRow
from autotune.database.store import Store
from autotune.device import Toolchain
from autotune.plan import Plan
from autotune.runtime import toolchain as versions
from autotune.search.history import Outcome
from autotune.study_request import StudyOutcome, StudyRequest
from autotune.trial import Trial


def request_digest(request: StudyRequest) -> str:
    """What a request asks, trials and budget aside, with what this host offers: equal digests mean the same study."""
    backends = [(name, registry.backend(name).probe(request.device).works) for name in registry.names()]
    content = {
        "factory": request.factory,
        "inputs": [asdict(spec) for spec in request.inputs],
        "device": request.device.device_class,
        "objective": request.objective.as_dict(),
        "serve_as": request.serve_as,
        "backends": request.backends,
        "precisions": request.precisions,
        "seed": request.seed,
        "offered": backends,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def known_outcome(request: StudyRequest, store: Store) -> StudyOutcome | None:
    """The outcome of a finished study of exactly this request, if its model's sources are unchanged; needs no torch."""
    if request.factory is None:
        return None
    digest: str | None = None
    for row in reversed(store.studies(request.name, request.batch)):
        sources = row.settings.get("sources") or {}
        if row.state != "finished" or asks_more(request, row) or not sources or not _unchanged(sources):
            continue
        digest = digest or request_digest(request)
        if row.settings.get("request") != digest:
            continue
        plan = store.find_plan(row.structure, row.device_class, row.objective, row.serve_as, row.weights)
        if plan is None or not _is_of(plan, row, store):
            continue
        if artifact_fits(plan, row.weights, versions.current(request.device), store):
            return outcome(plan, store.trials(plan.evidence["study"]), cached=True, seconds=0.0)
    return None


def asks_more(request: StudyRequest, row: StudyRow) -> bool:
    """Whether a request has more trials or time to spend than a finished study was given, and something is left."""
    asked = row.timings.get("asked", {})
    more = request.trials > asked.get("trials", 0) or request.budget_s > asked.get("budget_s", 0.0)
    return more and not asked.get("exhausted", False)


def artifact_fits(plan: Plan, weights: str, toolchain: Toolchain, store: Store) -> bool:
    """Whether a plan's artifact serves these weights under this toolchain and is at hand."""
    entries = toolchain.only(registry.backend(plan.configuration.backend).toolchain)
    return (
        plan.weights == weights
        and plan.toolchain == entries
        and plan.artifact is not None
        and store.artifacts.has(plan.artifact)
    )


def outcome(
    plan: Plan, trials: Sequence[Trial], *, cached: bool, seconds: float, split: Mapping[str, float] | None = None
) -> StudyOutcome:
    """Put together what a study answers."""
    finalists = tuple(
        {key: value for key, value in finalist.items() if key not in ("samples_ms", "uid")}
        for finalist in plan.evidence.get("finalists", ())
    )
    return StudyOutcome(
        plan=plan,
        cached=cached,
        trials=Counter(trial.state for trial in trials),
        seconds=seconds,
        split=split or {},
        finalists=finalists,
    )


def as_outcome(trial: Trial) -> Outcome:
    """A finished trial as the search learns from it."""
    if trial.state == "running":
        raise ValueError(f"trial {trial.number} has not ended")
    return Outcome(configuration=trial.configuration, state=trial.state, score=trial.ranked_by, build_s=trial.build_s)


def package_versions(modules: Iterable[str]) -> dict[str, str]:
    """Versions of the distributions that modules belong to."""
    owners = importlib.metadata.packages_distributions()
    tops = {name.partition(".")[0] for name in modules}
    names = {owner for top in tops for owner in owners.get(top, ())}
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def _is_of(plan: Plan, row: StudyRow, store: Store) -> bool:
    """Whether a plan was found by this study, or by the same study for other weights."""
    found = {study.uid: study.space_digest for study in store.studies(row.name, row.batch)}
    return found.get(plan.evidence.get("study", "")) == row.space_digest


def _unchanged(sources: Mapping[str, Any]) -> bool:
    for file, digest in sources.get("files", {}).items():
        path = Path(file)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return False
    try:
        return all(importlib.metadata.version(name) == had for name, had in sources.get("packages", {}).items())
    except importlib.metadata.PackageNotFoundError:
        return False
