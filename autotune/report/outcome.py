"""What a study found, as the table that ``autotune tune`` ends with."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.configuration import Configuration
from autotune.report import words
from autotune.study_request import StudyOutcome


def outcome_view(outcome: StudyOutcome, location: str) -> RenderableType:
    """The baseline, the best finalist of each backend, the plan, and what became of the time and the trials."""
    plan = outcome.plan
    parts: list[RenderableType] = []
    if outcome.finalists:
        parts.append(_finalists_table(outcome))
    lines = [_verdict(outcome), *_fp32_line(outcome), _trials_line(outcome), *_split_line(outcome)]
    lines.append(f"stored in {location}; see it again with: autotune plan show {plan.name} --batch {plan.batch}")
    return Group(*parts, *(Text(line) for line in lines), Text(""))


def baseline_of(finalists: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The fastest of the baselines (the same model at several thread counts); ``ValueError`` where there is none."""
    return min(
        (finalist for finalist in finalists if finalist.get("is_baseline")),
        key=lambda entry: float(entry["latency_ms"]),
    )


def best_of_backends(finalists: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The baseline first, then the best finalist of each backend by latency.

    The baseline's own backend comes again only with something faster.
    """
    baseline = baseline_of(finalists)
    best: dict[str, Mapping[str, Any]] = {}
    for finalist in sorted(finalists, key=lambda entry: float(entry["latency_ms"])):
        behind = finalist["backend"] == baseline["backend"] and finalist["latency_ms"] >= baseline["latency_ms"]
        if not behind:
            best.setdefault(finalist["backend"], finalist)
    return [baseline, *best.values()]


def best_fp32(finalists: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The fastest finalist that computes in fp32 as the baseline does, the baseline itself included."""
    exact = [each for each in finalists if not words.is_reduced(Configuration.from_dict(each["configuration"]))]
    return min(exact, key=lambda entry: float(entry["latency_ms"]), default=None)


def _finalists_table(outcome: StudyOutcome) -> Table:
    plan = outcome.plan
    title = f"{plan.name}, batch {plan.batch}, on {plan.device.name} ({plan.device.cores} cores)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("backend", no_wrap=True)
    table.add_column("best configuration", overflow="fold")
    for column in ("latency ms [95% interval]", "speedup", "signal error", "build s"):
        table.add_column(column, justify="right", no_wrap=True)
    for finalist in best_of_backends(outcome.finalists):
        configuration = Configuration.from_dict(finalist["configuration"])
        is_plan = configuration == plan.configuration
        build_s, base = finalist.get("build_s"), finalist.get("is_baseline")
        table.add_row(
            "plan →" if is_plan else "",
            f"{configuration.backend} (baseline)" if base else configuration.backend,
            words.knobs(configuration) + (" (reduced precision)" if words.is_reduced(configuration) else ""),
            words.latency(finalist["latency_ms"], finalist["interval_ms"]),
            words.speedup(plan.baseline_latency_ms / finalist["latency_ms"]),
            words.signal_error(finalist.get("signal_error")),
            "–" if build_s is None else f"{build_s:.1f}",
            style="bold green" if is_plan else "",
        )
    return table


def _verdict(outcome: StudyOutcome) -> str:
    plan = outcome.plan
    found = " (found in the database, nothing was measured)" if outcome.cached else ""
    if plan.status == "baseline":
        return (
            f"plan{found}: the baseline stays, {words.milliseconds(plan.latency_ms)} ms: "
            "nothing was significantly faster"
        )
    tie = ", level with another finalist and chosen for being simpler" if plan.status == "tie" else ""
    reduced = ", in reduced precision" if words.is_reduced(plan.configuration) else ""
    return (
        f"plan{found}: {plan.configuration.backend} ({words.knobs(plan.configuration)}){reduced}: "
        f"{words.milliseconds(plan.baseline_latency_ms)} → {words.milliseconds(plan.latency_ms)} ms, "
        f"{words.speedup(plan.speedup)} the baseline{tie}"
    )


def _fp32_line(outcome: StudyOutcome) -> list[str]:
    """The best in full precision, told apart where the plan computes in less."""
    best = best_fp32(outcome.finalists)
    if best is None or not words.is_reduced(outcome.plan.configuration):
        return []
    configuration = Configuration.from_dict(best["configuration"])
    return [
        f"best in fp32: {configuration.backend} ({words.knobs(configuration)}): "
        f"{words.milliseconds(best['latency_ms'])} ms, "
        f"{words.speedup(outcome.plan.baseline_latency_ms / best['latency_ms'])} the baseline"
    ]


def _trials_line(outcome: StudyOutcome) -> str:
    plan, counts = outcome.plan, outcome.trials
    told = ", ".join(f"{counts[state]} {state}" for state in counts if counts[state]) or "none"
    if counts.get("failed"):
        told += f"; why they failed: autotune trials {plan.name} --batch {plan.batch} --failed"
    return f"trials: {told}"


def _split_line(outcome: StudyOutcome) -> list[str]:
    total = sum(outcome.split.values())
    if not total:
        return []
    parts = ", ".join(
        f"{name} {words.seconds(value)} ({100 * value / total:.0f}%)" for name, value in outcome.split.items()
    )
    return [f"took {words.seconds(outcome.seconds)}: {parts}"]
