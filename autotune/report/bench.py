"""The result of ``autotune bench`` for people."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.measure.flags import explain
from autotune.report import distinction, words
from autotune.report.facts import Facts
from autotune.study.bench import BenchOutcome


def bench_view(outcome: BenchOutcome, parts: Sequence[str] = ()) -> RenderableType:
    """Show a plan that was timed again: its stored and its fresh latency, the verdict, and what disturbed the timing.

    ``parts`` distinguish it from other plans that are shown, see :func:`autotune.report.distinction.differing`.
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
