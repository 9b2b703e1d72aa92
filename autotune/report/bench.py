"""What ``autotune bench`` found, as a table."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.measure.flags import explain
from autotune.report import distinction, words
from autotune.report.facts import Facts
from autotune.study.bench import BenchOutcome


def bench_view(outcome: BenchOutcome, parts: Sequence[str] = ()) -> RenderableType:
    """One plan timed again: stored and fresh latency, the change with its interval, and what disturbed it.

    ``parts`` distinguish it from others that are shown with it, see :func:`autotune.report.distinction.differing`.
    """
    plan, drift = outcome.plan, outcome.drift
    facts = Facts()
    facts.add_row("plan", f"{plan.configuration.backend}: {words.knobs(plan.configuration)}")
    facts.add_row(
        "stored", f"{words.milliseconds(drift.stored_ms)} ms, measured {plan.created or 'at an unknown time'}"
    )
    facts.add_row("fresh", f"{words.milliseconds(drift.fresh_ms)} ms in {len(outcome.fresh.samples_ms)} rounds")
    facts.add_row("percentiles", words.percentiles(outcome.percentiles))
    facts.add_row("verdict", f"{drift.headline}: {drift.reason}")
    for flag in outcome.flags:
        facts.add_row(flag, explain(flag))
    return Group(Text(distinction.named(plan, parts), style="bold underline"), facts, Text(""))
