"""Why a plan is fast: kernels and SM efficiency before and after, what was fused, which kernel each GEMM got."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune import registry
from autotune.configuration import Configuration
from autotune.database.artifacts import stored
from autotune.kernel_problem import GemmProblem
from autotune.plan import Plan
from autotune.report import words

if TYPE_CHECKING:
    from autotune.database.store import Store

_FIGURES = ("kernels_per_call", "sm_efficiency", "gpu_utilisation")


def explanation(plan: Plan, store: "Store") -> dict[str, Any]:
    """Plain data about one plan: its finals, its trials by state, and what its artifact says of its graph.

    ``before`` and ``after`` are the baseline's and the plan's figures from a kernel trace, ``None`` where the finals
    took none (a CPU has no such trace). ``graph`` is ``None`` for a backend that tells nothing of its graph.
    """
    finalists = list(plan.evidence.get("finalists") or ())
    baseline = next((one for one in finalists if one.get("is_baseline")), None)
    own = next((one for one in finalists if one["configuration"] == plan.configuration.as_dict()), None)
    trials = store.trials(plan.evidence["study"]) if "study" in plan.evidence else ()
    refused = [trial for trial in trials if trial.failure is not None]
    return {
        "name": plan.name,
        "batch": plan.batch,
        "device": plan.device.sku,
        "configuration": plan.configuration.as_dict(),
        "status": plan.status,
        "latency_ms": plan.latency_ms,
        "baseline_latency_ms": plan.baseline_latency_ms,
        "speedup": plan.speedup,
        "before": _figures(baseline),
        "after": _figures(own),
        "graph": _graph(plan, store),
        "others": [
            {name: one[name] for name in ("configuration", "latency_ms", "interval_ms")}
            for one in sorted(finalists, key=lambda one: float(one["latency_ms"]))
            if one is not own
        ],
        "trials": dict(Counter(trial.state for trial in trials)),
        "refused": [
            {"number": trial.number, "configuration": trial.configuration.as_dict(), "why": str(trial.failure)}
            for trial in refused
        ],
    }


def _figures(finalist: Mapping[str, Any] | None) -> dict[str, float] | None:
    found = (finalist or {}).get("utilisation") or {}
    figures = {name: float(found[name]) for name in _FIGURES if isinstance(found.get(name), int | float)}
    return figures or None


def _graph(plan: Plan, store: "Store") -> dict[str, Any] | None:
    """What the backend reads out of its artifact; ``None`` where it tells nothing, or the artifact is not here."""
    tell = getattr(registry.backend(plan.configuration.backend), "explain", None)
    if tell is None or plan.artifact is None or not store.artifacts.has(plan.artifact):
        return None
    with stored(store.artifacts.open(plan.artifact)) as folder:
        record = tell(folder)
    return {
        "nodes_before": record["nodes_before"],
        "nodes_after": record["nodes_after"],
        "fusions": dict(record["fusions"]),
        "kernels": [_kernel(site) for site in record["sites"] if site.get("problem")],
    }


def _kernel(site: Mapping[str, Any]) -> dict[str, Any]:
    kernel, library = site.get("kernel"), site.get("library")
    saved = library["median_us"] - kernel["median_us"] if kernel and library else None
    return {
        "site": site["name"],
        "problem": site["problem"],
        "configuration": kernel["configuration"] if kernel else None,
        "median_us": kernel["median_us"] if kernel else None,
        "library_us": library["median_us"] if library else None,
        "saved_us": saved,
    }


def explanation_view(found: Mapping[str, Any]) -> RenderableType:
    """The same for people to read."""
    configuration = Configuration.from_dict(found["configuration"])
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("plan", f"{configuration.backend}: {words.knobs(configuration)}")
    latencies = f"{words.milliseconds(found['baseline_latency_ms'])} ms to {words.milliseconds(found['latency_ms'])} ms"
    facts.add_row("latency", f"{latencies}, {words.speedup(found['speedup'])} ({found['status']})")
    for name, what in zip(_FIGURES, ("kernels a call", "SM efficiency", "GPU utilisation"), strict=True):
        facts.add_row(what, _before_and_after(found, name))
    graph = found["graph"]
    if graph is None:
        facts.add_row("graph", f"{configuration.backend} tells nothing of what it did to the graph")
    else:
        facts.add_row("graph", f"{graph['nodes_before']} operators to {graph['nodes_after']}")
        matched = [f"{name} {count}" for name, count in graph["fusions"].items() if count]
        facts.add_row("fusions", ", ".join(matched) or "none matched")
    counts = ", ".join(f"{count} {state}" for state, count in found["trials"].items())
    facts.add_row("trials", counts or "not in this database")
    parts: list[RenderableType] = [Text(f"{found['name']}, batch {found['batch']}", style="bold underline"), facts]
    if graph is not None and graph["kernels"]:
        parts.append(_kernels_table(graph["kernels"]))
    parts.append(_others_table(found["others"]))
    if found["refused"]:
        see = f"autotune trials {found['name']} --batch {found['batch']} --failed"
        parts.append(Text(f"{len(found['refused'])} candidates were refused; why, and how to see it again: {see}"))
    return Group(*parts, Text(""))


def _before_and_after(found: Mapping[str, Any], name: str) -> str:
    """A figure of the baseline and of the plan; without a trace it is said that there is none."""
    ends = [found[which].get(name) if found[which] else None for which in ("before", "after")]
    if all(end is None for end in ends):
        return "not available: the finals took no trace of kernels here"
    return " to ".join(
        "not available" if end is None else (f"{end:.0f}" if name == "kernels_per_call" else f"{end:.0%}")
        for end in ends
    )


def _kernels_table(kernels: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One row for each distinct problem and kernel, with how often it comes."""
    table = Table(title="GEMMs", title_justify="left")
    table.add_column("times", justify="right")
    table.add_column("m × n × k, epilogue", no_wrap=True)
    table.add_column("kernel", overflow="fold")
    for column in ("µs", "best library µs", "saved µs a call"):
        table.add_column(column, justify="right", no_wrap=True)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in kernels:
        key = (GemmProblem.from_dict(one["problem"]).canonical, str(one["configuration"]))
        groups.setdefault(key, []).append(one)
    for same in groups.values():
        one, times = same[0], len(same)
        chosen = Configuration.from_dict(one["configuration"]) if one["configuration"] else None
        table.add_row(
            str(times),
            problem_text(GemmProblem.from_dict(one["problem"])),
            f"{chosen.backend}: {words.knobs(chosen)}" if chosen else "torch's own call: not tuned",
            _us(one["median_us"]), _us(one["library_us"]),
            "–" if one["saved_us"] is None else f"{times * one['saved_us']:.2f}",
        )  # fmt: skip
    return table


def _others_table(others: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = Table(title="What it was held against in the finals", title_justify="left")
    table.add_column("configuration", overflow="fold")
    table.add_column("latency ms [95% interval]", justify="right", no_wrap=True)
    for one in others:
        configuration = Configuration.from_dict(one["configuration"])
        table.add_row(
            f"{configuration.backend}: {words.knobs(configuration)}",
            words.latency(one["latency_ms"], one["interval_ms"]),
        )
    return table if others else Text("no finals are on record with this plan")


def problem_text(problem: GemmProblem) -> str:
    """A problem in a few words: ``128 × 3072 × 768 fp16, bias + gelu``."""
    parts = [name for name, there in (("bias", problem.bias), ("residual", problem.residual)) if there]
    parts += [problem.activation] if problem.activation != "none" else []
    return f"{problem.m} × {problem.n} × {problem.k} {problem.dtype}{', ' if parts else ''}{' + '.join(parts)}"


def _us(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
