"""The cost of a serving format, beside today's way and the best plan without it: served_lines."""

from autotune.records.plan import Plan
from autotune.report import words


def served_lines(plan: Plan, unconstrained: Plan | None) -> list[str]:
    """Return the lines of a plan for a serving format; none for a plan that may have any.

    ``unconstrained`` is the fastest stored plan for the same model, device and objective in any format.
    """
    if plan.serve_as == "any":
        return []
    return [*todays_lines(plan), _unconstrained_line(plan, unconstrained)]


def todays_lines(plan: Plan) -> list[str]:
    """Return a line on today's way in the finals of a plan for a serving format; none for any other plan."""
    own = plan.evidence.finalist_of(plan.configuration)
    todays = [finalist for finalist in plan.evidence.finalists if finalist.is_unserved]
    if own is None or not todays:
        return []
    best = min(todays, key=lambda finalist: finalist.compared)
    unit = "ms" if plan.evidence.objective is None else plan.evidence.objective.unit
    ratio = best.compared / own.compared
    than = f"{words.speedup(ratio)} as fast" if ratio >= 1 else f"slower: the plan is {words.speedup(ratio)} as fast"
    return [
        f"today: {best.backend} ({words.knobs(best.configuration)}), which is no {plan.serve_as} file, takes "
        f"{words.figure(best.compared, unit)}; the plan is {than}"
    ]


def _unconstrained_line(plan: Plan, unconstrained: Plan | None) -> str:
    if unconstrained is None or unconstrained.serve_as != "any":
        return f"without serve_as {plan.serve_as}: unknown; the same study with serve_as: any measures it"
    ratio = plan.latency_ms / unconstrained.latency_ms
    return (
        f"without serve_as {plan.serve_as}: {unconstrained.configuration.backend} "
        f"({words.knobs(unconstrained.configuration)}) takes {words.milliseconds(unconstrained.latency_ms)} ms, "
        f"{words.speedup(ratio)} as fast as this plan; it was measured in other finals (plan {unconstrained.uid[:8]})"
    )
