"""Why a plan is fast, as plain data: kernels and SM efficiency before and after, what was fused where, each GEMM."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autotune import registry
from autotune.database.artifacts import stored
from autotune.records.evidence import FinalistRecord
from autotune.records.kernel_problem import GemmProblem
from autotune.records.plan import Plan
from autotune.report.kernels import problem_words

if TYPE_CHECKING:
    from autotune.database.store import Store

_TRACED = ("kernels_per_call", "copies_per_call", "gpu_utilisation", "sm_efficiency", "occupancy", "heaviest")
_COUNTED = ("sm_util", "sm_occupancy", "any_tensor", "dram_bw")
"""What is told of the finals' kernel trace, and of what the device counted itself."""

UNKNOWN = "no kernel was chosen for it"
"""Why torch computes a GEMM, where its record gives no other reason."""


def explanation(plan: Plan, store: "Store") -> dict[str, Any]:
    """Plain data about one plan: its finals, its trials by state, and what its artifact says of its graph.

    ``before`` and ``after`` are the baseline's and the plan's figures, ``None`` where the finals took none;
    ``not_measured`` then says why (a CPU has no kernels to trace). ``graph`` is ``None`` for a backend that tells
    nothing of its graph.
    """
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
            {
                "configuration": finalist.configuration.as_dict(),
                "latency_ms": finalist.latency_ms,
                "interval_ms": list(finalist.interval_ms),
            }
            for finalist in sorted(finalists, key=lambda finalist: finalist.latency_ms)
            if finalist is not own
        ],
        "trials": dict(Counter(trial.state for trial in trials)),
        "refused": [
            {"number": trial.number, "configuration": trial.configuration.as_dict(), "why": str(trial.failure)}
            for trial in refused
        ],
    }


def _figures(finalist: FinalistRecord | None) -> dict[str, Any] | None:
    """What the kernel trace and the device's own counters gave of a finalist."""
    known = zip((_TRACED, _COUNTED), _parts(finalist), strict=False)
    return {name: part[name] for names, part in known if part["available"] for name in names} or None


def _not_measured(finalist: FinalistRecord | None) -> str | None:
    """Why a finalist has no kernel trace; ``None`` where it has one."""
    trace = next(iter(_parts(finalist)), None)
    if trace is None:
        return "the finals took no trace of kernels"
    return None if trace["available"] else str(trace["reason"])


def _parts(finalist: FinalistRecord | None) -> list[Mapping[str, Any]]:
    """A finalist's kernel trace, and what its device counted; one part alone says why there is neither."""
    utilisation = None if finalist is None else finalist.utilisation
    if not utilisation:
        return []
    return [utilisation["trace"], utilisation["gpm"]] if utilisation["available"] else [utilisation]


def _graph(plan: Plan, store: "Store") -> dict[str, Any] | None:
    """What the backend reads out of its artifact; ``None`` where it tells nothing, or the artifact is not here."""
    backend = registry.explaining(plan.configuration.backend)
    if backend is None or plan.artifact is None or not store.artifacts.has(plan.artifact):
        return None
    with stored(store.artifacts.open(plan.artifact)) as folder:
        return graph_document(backend.explain_artifact(folder))


def graph_document(record: Mapping[str, Any]) -> dict[str, Any]:
    """What ``graph`` of :func:`explanation` holds: places of fusions, GEMMs by what they save, and what torch computes.

    An artifact that was built before places were recorded has none.
    """
    kernels = _kernels(site for site in record["sites"] if site.get("problem") and site.get("kernel"))
    savings = [one["saved_us_per_call"] for one in kernels if one["saved_us_per_call"] is not None]
    return {
        "nodes_before": record["nodes_before"],
        "nodes_after": record["nodes_after"],
        "fusions": dict(record["fusions"]),
        "places": dict(record.get("places", {})),
        "kernels": kernels,
        "saved_us_per_call": sum(savings) if savings else None,
        "written": dict(Counter(site["operator"] for site in record["sites"] if site.get("plans"))),
        "left": _left(site for site in record["sites"] if not site.get("kernel")),
    }


def _kernels(sites: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """GEMMs of the same problem and kernel as one entry, what saves most in a call first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for site in sites:
        key = (GemmProblem.from_dict(site["problem"]).canonical, site["kernel"]["words"])
        groups.setdefault(key, []).append(site)
    found = [_kernel(group) for group in groups.values()]
    return sorted(found, key=lambda one: (-(one["saved_us_per_call"] or 0), -one["times"] * one["median_us"]))


def _kernel(sites: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kernel, library, times = sites[0]["kernel"], sites[0].get("library"), len(sites)
    saved_us = library["median_us"] - kernel["median_us"] if library else None
    return {
        "problem": sites[0]["problem"],
        "times": times,
        "sites": [site["name"] for site in sites],
        "places": _places(sites),
        "configuration": kernel["configuration"],
        "kernel": kernel["words"],
        "median_us": kernel["median_us"],
        "library": library["words"] if library else None,
        "library_us": library["median_us"] if library else None,
        "saved_us": saved_us,
        "saved_share": saved_us / library["median_us"] if library else None,
        "saved_us_per_call": None if saved_us is None else times * saved_us,
    }


def _left(sites: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What torch computes: every GEMM, and of other operators those that say why; the most frequent first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for site in sites:
        why = site.get("why") or (UNKNOWN if site.get("problem") else None)
        if why is not None:
            groups.setdefault((_what(site), why), []).append(site)
    found = [
        {"what": what, "why": why, "times": len(group), "places": _places(group)}
        for (what, why), group in groups.items()
    ]
    return sorted(found, key=lambda one: -int(one["times"]))


def _what(site: Mapping[str, Any]) -> str:
    problem = site.get("problem")
    return problem_words(GemmProblem.from_dict(problem)) if problem else str(site["operator"])


def _places(sites: Iterable[Mapping[str, Any]]) -> list[str]:
    return [site["place"] for site in sites if "place" in site]
