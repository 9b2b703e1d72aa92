"""The explanation of a plan as plain data: kernels and SM efficiency before and after, fusions, and each GEMM."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from autotune import registry
from autotune.database.artifacts import stored
from autotune.records.evidence import FinalistRecord
from autotune.records.kernel_problem import GemmProblem
from autotune.records.plan import Plan
from autotune.report.explanation import (
    ExplainedSite,
    Explanation,
    Figures,
    GemmEntry,
    GraphExplanation,
    OtherFinalist,
    RefusedTrial,
    TimedKernel,
    TorchEntry,
)
from autotune.report.kernels import problem_words

if TYPE_CHECKING:
    from autotune.database.store import Store

_TRACED = ("kernels_per_call", "copies_per_call", "gpu_utilisation", "sm_efficiency", "occupancy", "heaviest")
_COUNTED = ("sm_util", "sm_occupancy", "any_tensor", "dram_bw")
"""The figures that are taken from the kernel trace of the finals, and from the device's own counters."""

UNKNOWN = "no kernel was chosen for it"
"""The reason why torch computes a GEMM, if its record has no other."""


def explanation(plan: Plan, store: "Store") -> Explanation:
    """Return the explanation of a plan from its evidence, its trials and its artifact."""
    finalists = plan.evidence.finalists
    baseline = next((finalist for finalist in finalists if finalist.is_baseline), None)
    own = plan.evidence.finalist_of(plan.configuration)
    trials = store.trials.of_study(plan.evidence.study) if plan.evidence.study is not None else ()
    refused = [trial for trial in trials if trial.failure is not None]
    return {
        "name": plan.name,
        "batch": plan.batch,
        "structure": plan.structure,
        "weights": plan.weights,
        "device": plan.device.sku,
        "configuration": plan.configuration.as_dict(),
        "status": plan.status,
        "latency_ms": plan.latency_ms,
        "baseline_latency_ms": plan.baseline_latency_ms,
        "speedup": plan.speedup,
        "before": _figures(baseline),
        "after": _figures(own),
        "not_measured": _not_measured(baseline) or _not_measured(own),
        "graph": _graph(plan, store),
        "others": [
            OtherFinalist(
                configuration=finalist.configuration.as_dict(),
                latency_ms=finalist.latency_ms,
                interval_ms=list(finalist.interval_ms),
            )
            for finalist in sorted(finalists, key=lambda finalist: finalist.latency_ms)
            if finalist is not own
        ],
        "trials": dict(Counter(trial.state for trial in trials)),
        "refused": [
            RefusedTrial(number=trial.number, configuration=trial.configuration.as_dict(), why=str(trial.failure))
            for trial in refused
        ],
    }


def _figures(finalist: FinalistRecord | None) -> Figures | None:
    """Return the figures of a finalist from its kernel trace and from the device's own counters."""
    parts = zip((_TRACED, _COUNTED), _parts(finalist), strict=False)
    figures = {name: part[name] for names, part in parts if part["available"] for name in names}
    return cast(Figures, figures) if figures else None


def _not_measured(finalist: FinalistRecord | None) -> str | None:
    """Return the reason why a finalist has no kernel trace; ``None`` if it has one."""
    trace = next(iter(_parts(finalist)), None)
    if trace is None:
        return "the finals took no trace of kernels"
    return None if trace["available"] else str(trace["reason"])


def _parts(finalist: FinalistRecord | None) -> list[Mapping[str, Any]]:
    """Return a finalist's kernel trace and the counters of its device; if it has neither, one part with the reason."""
    utilisation = None if finalist is None else finalist.utilisation
    if not utilisation:
        return []
    return [utilisation["trace"], utilisation["gpm"]] if utilisation["available"] else [utilisation]


def _graph(plan: Plan, store: "Store") -> GraphExplanation | None:
    """Return the graph of a plan's artifact; ``None`` if its backend describes none, or the artifact is not here."""
    backend = registry.explaining(plan.configuration.backend)
    if backend is None or plan.artifact is None or not store.artifacts.has(plan.artifact):
        return None
    with stored(store.artifacts.open(plan.artifact)) as folder:
        return graph_document(backend.explain_artifact(folder))


def graph_document(record: Mapping[str, Any]) -> GraphExplanation:
    """Return the ``graph`` of :func:`explanation`; an artifact from before places were recorded has no places."""
    sites: list[ExplainedSite] = list(record["sites"])
    kernels = _kernels(sites)
    savings = [entry["saved_us_per_call"] for entry in kernels if entry["saved_us_per_call"] is not None]
    return {
        "nodes_before": record["nodes_before"],
        "nodes_after": record["nodes_after"],
        "fusions": dict(record["fusions"]),
        "places": dict(record.get("places", {})),
        "kernels": kernels,
        "saved_us_per_call": sum(savings) if savings else None,
        "written": dict(Counter(site["operator"] for site in sites if site.get("plans"))),
        "left": _left(site for site in sites if not site.get("kernel")),
    }


def _kernels(sites: Iterable[ExplainedSite]) -> list[GemmEntry]:
    """Return one entry for all GEMMs of the same problem and kernel; the largest saving in a call first."""
    groups: dict[tuple[str, str], tuple[dict[str, object], TimedKernel, list[ExplainedSite]]] = {}
    for site in sites:
        problem, kernel = site.get("problem"), site.get("kernel")
        if problem and kernel:
            key = GemmProblem.from_dict(problem).canonical, kernel["words"]
            groups.setdefault(key, (problem, kernel, []))[2].append(site)
    entries = [_kernel(*group) for group in groups.values()]
    return sorted(entries, key=lambda entry: (-(entry["saved_us_per_call"] or 0), -entry["times"] * entry["median_us"]))


def _kernel(problem: dict[str, object], kernel: TimedKernel, sites: Sequence[ExplainedSite]) -> GemmEntry:
    library, times = sites[0].get("library"), len(sites)
    saved_us = library["median_us"] - kernel["median_us"] if library else None
    return {
        "problem": problem,
        "times": times,
        "sites": [site["name"] for site in sites],
        "places": _places(sites),
        "configuration": kernel["configuration"],
        "kernel": kernel["words"],
        "median_us": kernel["median_us"],
        "library": library["words"] if library else None,
        "library_us": library["median_us"] if library else None,
        "saved_us": saved_us,
        "saved_share": saved_us / library["median_us"] if library and saved_us is not None else None,
        "saved_us_per_call": None if saved_us is None else times * saved_us,
    }


def _left(sites: Iterable[ExplainedSite]) -> list[TorchEntry]:
    """Return the operators that torch computes: all GEMMs, and others that have a reason; the most frequent first."""
    groups: dict[tuple[str, str], list[ExplainedSite]] = {}
    for site in sites:
        why = site.get("why") or (UNKNOWN if site.get("problem") else None)
        if why is not None:
            groups.setdefault((_operator_words(site), why), []).append(site)
    entries = [
        TorchEntry(what=operator, why=why, times=len(group), places=_places(group))
        for (operator, why), group in groups.items()
    ]
    return sorted(entries, key=lambda entry: -entry["times"])


def _operator_words(site: ExplainedSite) -> str:
    problem = site.get("problem")
    return problem_words(GemmProblem.from_dict(problem)) if problem else site["operator"]


def _places(sites: Iterable[ExplainedSite]) -> list[str]:
    return [site["place"] for site in sites if "place" in site]
