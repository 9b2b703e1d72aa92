"""The table and the lines that ``autotune tune`` ends with."""

import shlex
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.comparison.paired import paired_ratio
from autotune.records.evidence import FinalistRecord
from autotune.records.plan import Plan
from autotune.report import words
from autotune.report.carried import carried_lines
from autotune.report.distinction import constraints
from autotune.report.fitting_table import FittingTable
from autotune.report.searched import curve_line, known_at_start
from autotune.report.served import served_lines
from autotune.study.request import StudyOutcome
from autotune.study.sweep import items_per_s, saturated


def outcome_view(
    outcome: StudyOutcome, location: str, *, deploy: str = "", db: str | None = None, unconstrained: Plan | None = None
) -> RenderableType:
    """Show the baseline and the best finalist of each backend, and the plan's speedup, accuracy and next step.

    Below are the trials that the database had before, the gain of more search, the numbers of trials, and the times.
    ``deploy`` is the command that deploys the plan; its lines are never broken. ``unconstrained`` is the fastest stored
    plan in any format, if the study is for a serving format.
    """
    parts: list[RenderableType] = []
    if any(finalist.is_baseline for finalist in outcome.finalists):
        parts.append(_finalists_table(outcome))
    lines: list[str | Text]
    if outcome.plan is None or outcome.undecided:
        lines = _undecided(outcome)
    else:
        plan = outcome.plan
        lines = [_speedup_line(outcome, plan), *served_lines(plan, unconstrained), _accuracy_line(outcome, plan)]
        lines += [*_next(deploy), *_fp32_line(outcome), *carried_lines(plan)]
    if outcome.untried:
        lines.append(f"not tried within --trials and --budget: {', '.join(outcome.untried)}")
    lines += [f"known at the start: {known_at_start(outcome.known_at_start)}", *curve_line(outcome.curve)]
    lines += [_trials_line(outcome), *_split_line(outcome)]
    if outcome.plan is not None:
        command = f"autotune plan show {outcome.name} --batch {outcome.batch}{f' --db {shlex.quote(db)}' if db else ''}"
        lines.append(_whole(f"stored in {location}; to show it again: {command}"))
    return Group(*parts, *(line if isinstance(line, Text) else Text(line) for line in lines), Text(""))


def sweep_view(outcomes: Sequence[StudyOutcome]) -> RenderableType:
    """Show the throughput of each batch, and the batch at which it is saturated."""
    best = saturated(outcomes)
    table = FittingTable(title=f"{outcomes[0].name}: throughput by batch", title_justify="left")
    for column in ("batch", "in flight", "items/s", "latency ms"):
        table.add_column(column, justify="right")
    for outcome in outcomes:
        plan, served = outcome.plan, items_per_s(outcome)
        if plan is None or served is None:
            table.add_row(str(outcome.batch), "–", "undecided", "–")
            continue
        in_flight = None if plan.evidence.objective is None else plan.evidence.objective.concurrency
        cells = (str(outcome.batch), str(in_flight), f"{served:,.1f}")
        style = "bold green" if outcome is best else ""
        table.add_row(*cells, words.milliseconds(plan.latency_ms), style=style)
    served = None if best is None else items_per_s(best)
    if best is None or served is None:
        return Group(table, Text("no batch was decided"), Text(""))
    return Group(table, Text(f"saturated at batch {best.batch}: {served:,.1f} items/s"), Text(""))


def baseline_of(finalists: Sequence[FinalistRecord]) -> FinalistRecord:
    """Return the fastest baseline (the same model at several thread counts); ``ValueError`` if there is none."""
    return min((finalist for finalist in finalists if finalist.is_baseline), key=_compared)


def _compared(finalist: FinalistRecord) -> float:
    return finalist.compared


def best_of_backends(finalists: Sequence[FinalistRecord]) -> list[FinalistRecord]:
    """Return the baseline, then the best finalist of each backend by the value that the objective compares.

    The backend of the baseline has another entry only if it has a faster finalist.
    """
    baseline = baseline_of(finalists)
    best: dict[str, FinalistRecord] = {}
    for finalist in sorted(finalists, key=_compared):
        slower = finalist.backend == baseline.backend and finalist.compared >= baseline.compared
        if not slower:
            best.setdefault(finalist.backend, finalist)
    return [baseline, *best.values()]


def best_fp32(finalists: Sequence[FinalistRecord]) -> FinalistRecord | None:
    """Return the best finalist that computes in fp32 as the baseline does, the baseline itself included."""
    exact = [finalist for finalist in finalists if not words.is_reduced(finalist.configuration)]
    return min(exact, key=_compared, default=None)


def _finalists_table(outcome: StudyOutcome) -> FittingTable:
    device = outcome.device
    title = f"{outcome.name}, batch {outcome.batch}, on {device.name} ({device.cores} cores)"
    table = FittingTable(title=title, title_justify="left")
    table.add_column("")
    table.add_column("backend", no_wrap=True)
    table.add_column("best configuration", overflow="fold")
    objective = outcome.objective
    own = () if objective.name == "latency_p50" else (objective.name,)
    for column in ("latency ms [95% interval]", *own, "speedup", "signal error", "build s"):
        table.add_column(column, justify="right", no_wrap=True)
    disturbed = any(finalist.flags for finalist in outcome.finalists)
    if disturbed:
        table.add_column("measured under", overflow="fold")
    baseline = baseline_of(outcome.finalists).compared
    for finalist in best_of_backends(outcome.finalists):
        configuration, build_s = finalist.configuration, finalist.build_s
        is_plan = outcome.plan is not None and configuration == outcome.plan.configuration
        table.add_row(
            "plan →" if is_plan else "",
            f"{configuration.backend}{_role(outcome, finalist)}",
            words.knobs(configuration) + (" (reduced precision)" if words.is_reduced(configuration) else ""),
            words.latency(finalist.latency_ms, finalist.interval_ms),
            *((words.figure(finalist.compared, objective.unit),) if own else ()),
            words.speedup(baseline / finalist.compared),
            words.signal_error(finalist.signal_error),
            "–" if build_s is None else f"{build_s:.1f}",
            *((", ".join(finalist.flags),) if disturbed else ()),
            style="bold green" if is_plan else "",
        )
    return table


def _role(outcome: StudyOutcome, finalist: FinalistRecord) -> str:
    if finalist.is_unserved:
        return " (not served)" if outcome.plan is None else f" (no {outcome.plan.serve_as})"
    return " (baseline)" if finalist.is_baseline else ""


def _undecided(outcome: StudyOutcome) -> list[str | Text]:
    """Return the reason why no plan was promoted, the plan that stays, and the command that repeats the finals."""
    plan = outcome.plan
    current = "there is no plan yet"
    if plan is not None:
        current = (
            f"the earlier plan stays: {plan.configuration.backend} ({words.knobs(plan.configuration)}), "
            f"{words.milliseconds(plan.latency_ms)} ms"
        )
    return [f"undecided: {outcome.reason}", current, _whole(f"run again: {outcome.run}")]


def _speedup_line(outcome: StudyOutcome, plan: Plan) -> str:
    origin = " (from the database, nothing was measured)" if outcome.cached else ""
    figures = plan.evidence.objective
    value, baseline, unit = plan.latency_ms, plan.baseline_latency_ms, "ms"
    if figures is not None:
        value, baseline, unit = figures.value, figures.baseline, figures.unit
    before, after = words.figure(baseline, unit), words.figure(value, unit)
    if plan.status == "baseline":
        return (
            f"speedup{origin}: none; the baseline stays, {after}, because nothing was significantly better"
            f"{_disturbance(outcome)}"
        )
    tie = ""
    if plan.status == "tie":
        tie = f"; noise makes it impossible to say whether {_tied(plan)} is faster"
        if any(finalist.compared < value and not finalist.is_unserved for finalist in outcome.finalists):
            tie += ", and the plan is the simpler of them"
    bounds = speedup_interval(plan)
    between = f" (in pairs of rounds {words.speedup(bounds[0])} – {words.speedup(bounds[1])} at 95%)" if bounds else ""
    return (
        f"speedup{origin}: {before} → {after}, {words.speedup(plan.speedup)} the baseline{between}, by "
        f"{plan.configuration.backend} ({words.knobs(plan.configuration)}){tie}{_disturbance(outcome)}"
    )


def _tied(plan: Plan) -> str:
    """Return the names of the finalists that the finals could not distinguish from the plan."""
    finalists = {finalist.uid: finalist for finalist in plan.evidence.finalists}
    tied = [finalists[uid].configuration for uid in plan.evidence.tied_with if uid in finalists]
    named = [f"{configuration.backend} ({words.knobs(configuration)})" for configuration in tied[:2]]
    others = len(tied) - 2
    more = "" if others < 1 else f" or {others} other" if others == 1 else f" or one of {others} others"
    return (" or ".join(named) + more) or "another finalist"


def _disturbance(outcome: StudyOutcome) -> str:
    """Return a remark if other programs disturbed the finals; empty if none did."""
    seen = {flag for finalist in outcome.finalists for flag in finalist.flags}
    causes = {"busy_host": "a busy host", "shared_device": "a device that others used"}
    disturbances = [cause for flag, cause in causes.items() if flag in seen]
    if not disturbances:
        return ""
    return f"; measured on {' and '.join(disturbances)}, so the speedup may differ on a quiet one"


def _accuracy_line(outcome: StudyOutcome, plan: Plan) -> str:
    """Return the largest error of the plan, the limits, and its precision."""
    precision = words.precision_of(plan.configuration)
    reduced = f"reduced precision, {precision}" if words.is_reduced(plan.configuration) else "full precision"
    return (
        f"accuracy: signal error {words.signal_error(plan.signal_error)} in the worst output; every limit holds: "
        f"{constraints(outcome.objective)}; {reduced}"
    )


def _next(deploy: str) -> list[str | Text]:
    if not deploy:
        return []
    return ["next step: load the plan in your service, with", _whole(deploy)]


def _whole(text: str) -> Text:
    """Return a text whose lines are never broken, so that a command in it can be copied."""
    return Text(text, no_wrap=True, overflow="ignore")


def speedup_interval(plan: Plan) -> tuple[float, float] | None:
    """Return the 95% interval of baseline / plan, paired by rounds of the finals; None if the rounds are too few."""
    own = plan.evidence.finalist_of(plan.configuration)
    baseline = next((finalist for finalist in plan.evidence.finalists if finalist.is_baseline), None)
    if own is None or baseline is None:
        return None
    ratio = paired_ratio(plan, baseline, own)
    return None if ratio is None else ratio.interval


def _fp32_line(outcome: StudyOutcome) -> list[str]:
    """Return a line on the best finalist in fp32, if the plan computes with reduced precision."""
    best = best_fp32(outcome.finalists)
    if best is None or outcome.plan is None or not words.is_reduced(outcome.plan.configuration):
        return []
    return [
        f"best in fp32: {best.backend} ({words.knobs(best.configuration)}): "
        f"{words.figure(best.compared, outcome.objective.unit)}, "
        f"{words.speedup(baseline_of(outcome.finalists).compared / best.compared)} the baseline"
    ]


def _trials_line(outcome: StudyOutcome) -> Text:
    counts = outcome.trials
    summary = ", ".join(f"{counts[state]} {state}" for state in counts if counts[state]) or "none"
    if counts.get("failed"):
        summary += f"; why they failed: autotune trials {outcome.name} --batch {outcome.batch} --failed"
    return _whole(f"trials: {summary}")


def _split_line(outcome: StudyOutcome) -> list[str]:
    total = sum(outcome.split.values())
    if not total:
        return []
    parts = ", ".join(
        f"{name} {words.seconds(value)} ({100 * value / total:.0f}%)" for name, value in outcome.split.items()
    )
    return [f"took {words.seconds(outcome.seconds)}: {parts}"]
