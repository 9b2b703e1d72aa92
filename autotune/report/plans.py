"""Stored plans for people."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.records.plan import Plan
from autotune.report import distinction, words
from autotune.report.facts import Facts
from autotune.report.fitting_table import FittingTable
from autotune.report.searched import known_at_start
from autotune.report.served import todays_lines


def plans_table(plans: Sequence[Plan], location: str) -> RenderableType:
    """Show one row per plan; structure, weights and others are columns if plans of one name differ in them."""
    if not plans:
        return Text(f"no plan yet in {location}; create one with: autotune tune STUDY_FILE")
    table = FittingTable(title=f"Plans in {location}", title_justify="left")
    parts = distinction.differing(plans)
    for column in ("model", "batch", "device", *parts, "plan", "status"):
        table.add_column(column, overflow="fold", justify="right" if column == "batch" else "left")
    for column in ("baseline ms", "plan ms [95% interval]", "speedup", "signal error"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("measured under", overflow="fold")
    for plan in plans:
        table.add_row(
            plan.name,
            str(plan.batch),
            plan.device.device_class,
            *(distinction.part(plan, name) for name in parts),
            f"{plan.configuration.backend}: {words.knobs(plan.configuration)}",
            plan.status,
            words.milliseconds(plan.baseline_latency_ms),
            words.latency(plan.latency_ms, plan.interval_ms),
            words.speedup(plan.speedup),
            words.signal_error(plan.signal_error),
            ", ".join(plan.flags),
        )
    return table


def plan_view(plan: Plan, location: str, *, artifact_here: bool | None, parts: Sequence[str] = ()) -> RenderableType:
    """Show one plan with its device, toolchain and model, its evidence, and its finals.

    ``artifact_here`` is ``None`` if this user may not read the artifact. ``parts`` distinguish the plan from others
    that are shown, see :func:`autotune.report.distinction.differing`.
    """
    facts = Facts()
    limits = plan.objective
    artifact = "none: the baseline needs no artifact"
    if plan.artifact is not None:
        notes = {False: " (not here: it is rebuilt when the plan is loaded)", None: " (this user may not read it)"}
        artifact = plan.artifact + notes.get(artifact_here, "")
    rows = [
        ("plan", f"{plan.configuration.backend}: {words.knobs(plan.configuration)}"),
        ("status", _status(plan)),
        ("latency", f"{words.latency(plan.latency_ms, plan.interval_ms)} ms (median)"),
        ("baseline", f"{words.milliseconds(plan.baseline_latency_ms)} ms; speedup {words.speedup(plan.speedup)}"),
        *_objective(plan),
        ("signal error", f"{words.signal_error(plan.signal_error)} (limit {limits.signal_error:g})"),
        ("objective", f"{limits.name}, served as {plan.serve_as}"),
        *(("today", line.removeprefix("today: ")) for line in todays_lines(plan)),
        ("constraints", distinction.constraints(limits)),
        ("device", f"{plan.device.name} ({plan.device.device_class})"),
        ("toolchain", ", ".join(f"{name} {version}" for name, version in plan.toolchain.versions)),
        ("structure", plan.structure),
        ("weights", plan.weights),
        ("artifact", artifact),
        ("created", plan.created or "unknown"),
        ("known at the start", known_at_start(plan.evidence.known_at_start)),
        ("stored in", location),
    ]
    for name, value in rows:
        facts.add_row(name, value)
    title = Text(distinction.named(plan, parts), style="bold underline")
    finals = finals_table(plan)
    return Group(title, facts, *([finals] if finals else []), *_carried(plan), Text(""))


def _carried(plan: Plan) -> list[Text]:
    """Return a line for each plan that was carried to its device; only these need the libraries of statistics."""
    if not plan.evidence.carried:
        return []
    from autotune.report.carried import carried_lines

    return [Text(line) for line in carried_lines(plan)]


def _objective(plan: Plan) -> list[tuple[str, str]]:
    """Return the figures of an objective other than the median latency, and the percentiles of the plan."""
    figures = plan.evidence.objective
    rows = []
    if figures is not None and figures.name != "latency_p50":
        text = words.figure_with_interval(figures.value, figures.interval, figures.unit)
        rows.append((figures.name, f"{text}; baseline {words.figure(figures.baseline, figures.unit)}"))
    if figures is not None and figures.concurrency is not None:
        rows.append(("in flight", f"{figures.concurrency} requests of batch {plan.batch}"))
    for finalist in plan.evidence.finalists:
        if finalist.configuration == plan.configuration and finalist.percentiles:
            rows.append(("percentiles", words.percentiles(finalist.percentiles)))
    return rows


def finals_table(plan: Plan) -> RenderableType | None:
    """Show the finalists of the evidence in order of latency; ``None`` if there are none."""
    finalists = plan.evidence.finalists
    if not finalists:
        return None
    table = FittingTable(title="Finals", title_justify="left")
    table.add_column("configuration", overflow="fold")
    for column in ("latency ms [95% interval]", "signal error", "build s", "samples", "measured under"):
        table.add_column(column, justify="right", no_wrap=True)
    for finalist in sorted(finalists, key=lambda finalist: finalist.latency_ms):
        table.add_row(
            f"{finalist.backend}: {words.knobs(finalist.configuration)}",
            words.latency(finalist.latency_ms, finalist.interval_ms),
            words.signal_error(finalist.signal_error),
            "–" if finalist.build_s is None else f"{finalist.build_s:.1f}",
            str(sum(len(block) for block in finalist.samples_ms if block)),
            ", ".join(finalist.flags) or "–",
        )
    return table


def _status(plan: Plan) -> str:
    meaning = {
        "promoted": "promoted: significantly faster than the baseline and every other finalist",
        "tie": "tie: significantly faster than the baseline, but not than every other finalist",
        "baseline": "baseline: nothing was significantly faster than the model as it runs today",
    }
    return meaning[plan.status]
