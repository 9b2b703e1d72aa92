"""Why a plan is fast, for people to read on one screen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.report import words
from autotune.report.facts import Facts
from autotune.report.fitting_table import FittingTable
from autotune.report.kernels import problem_words
from autotune.report.places import places_words

MOST_ROWS, MOST_OTHERS, MOST_HEAVY = 8, 4, 3
"""Rows of a table, rivals in the finals and heaviest kernels that are shown; all are in the plain data."""


def explanation_view(found: Mapping[str, Any], title: str = "") -> RenderableType:
    """What :func:`autotune.report.explain.explanation` gives; tables end after a few rows with what is left.

    The ``title`` is the plan's name and batch unless another is given.
    """
    configuration = Configuration.from_dict(found["configuration"])
    facts = Facts()
    facts.add_row("plan", f"{configuration.backend}: {words.knobs(configuration)}")
    latencies = f"{words.milliseconds(found['baseline_latency_ms'])} ms to {words.milliseconds(found['latency_ms'])} ms"
    facts.add_row("latency", f"{latencies}, {words.speedup(found['speedup'])} ({found['status']})")
    facts.add_row("kernels a call", _before_and_after(found, "kernels_per_call", lambda figure: f"{figure:.0f}"))
    facts.add_row("SM efficiency", _before_and_after(found, "sm_efficiency", lambda figure: f"{figure:.0%}"))
    heaviest = (found["after"] or {}).get("heaviest", ())
    if heaviest:
        facts.add_row("heaviest", ", ".join(f"{one['name']} {one['share']:.0%}" for one in heaviest[:MOST_HEAVY]))
    counts = ", ".join(f"{count} {state}" for state, count in found["trials"].items())
    facts.add_row("trials", counts or "not in this database")
    title = title or f"{found['name']}, batch {found['batch']}"
    parts: list[RenderableType] = [Text(title, style="bold underline"), facts]
    graph = found["graph"]
    if graph is None:
        facts.add_row("graph", f"{configuration.backend} tells nothing of its graph, or the artifact is not here")
    else:
        facts.add_row("graph", f"{graph['nodes_before']} nodes to {graph['nodes_after']}")
        if graph["written"]:
            facts.add_row("Triton kernels", ", ".join(f"{count} {name}" for name, count in graph["written"].items()))
        parts += _graph_tables(graph)
    parts.append(_others_table(found["others"]))
    if found["refused"]:
        see = f"autotune trials {found['name']} --batch {found['batch']} --failed"
        parts.append(Text(f"{len(found['refused'])} candidates were refused; why, and how to see it again: {see}"))
    return Group(*parts, Text(""))


def _before_and_after(found: Mapping[str, Any], name: str, write: Callable[[float], str]) -> str:
    """A figure of the baseline and of the plan, with the reason where neither has it."""
    ends = [(found[which] or {}).get(name) for which in ("before", "after")]
    if all(end is None for end in ends):
        return "not measured" + (f": {found['not_measured']}" if found["not_measured"] else "")
    return " to ".join("not measured" if end is None else write(end) for end in ends)


def _graph_tables(graph: Mapping[str, Any]) -> list[RenderableType]:
    tables: list[RenderableType] = [_fusions_table(graph)]
    if graph["kernels"]:
        tables += [_kernels_table(graph), *_rest(graph["kernels"])]
    if graph["left"]:
        tables += [_left_table(graph["left"]), *_rest(graph["left"])]
    return tables


def _fusions_table(graph: Mapping[str, Any]) -> RenderableType:
    """Each fusion that matched, with where."""
    matched = {name: count for name, count in graph["fusions"].items() if count}
    table = FittingTable(title="Fusions", title_justify="left")
    table.add_column("fusion", no_wrap=True)
    table.add_column("matches", justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    for name, count in matched.items():
        table.add_row(name, str(count), places_words(graph["places"].get(name, ())) or "not recorded")
    return table if matched else Text("no fusion is in this plan")


def _kernels_table(graph: Mapping[str, Any]) -> RenderableType:
    """One row for each distinct problem and kernel, what saves most first."""
    total_us = graph["saved_us_per_call"]
    saved = "no library call is known" if total_us is None else f"{total_us:.1f} µs saved in a call"
    table = FittingTable(title=f"GEMMs in µs, against the best library call known: {saved}", title_justify="left")
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("m×n×k, epilogue, where", overflow="fold")
    table.add_column("chosen kernel", overflow="fold")
    for column in ("its µs", "library", "saved", "a call"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in graph["kernels"][:MOST_ROWS]:
        where = places_words(one["places"])
        what = problem_words(GemmProblem.from_dict(one["problem"]))
        table.add_row(
            str(one["times"]),
            Text.assemble(what, (f"\n{where}" if where else "", "dim")),
            one["kernel"],
            _us(one["median_us"]), _us(one["library_us"]),
            "–" if one["saved_us"] is None else f"{one['saved_us']:.2f}, {one['saved_share']:.0%}",
            _us(one["saved_us_per_call"]),
        )  # fmt: skip
    return table


def _left_table(left: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Operators without a kernel of ours, with the reason."""
    table = FittingTable(title="Computed by torch's own operators", title_justify="left")
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("operator, where", overflow="fold")
    table.add_column("why", overflow="fold")
    for one in left[:MOST_ROWS]:
        where = places_words(one["places"])
        table.add_row(str(one["times"]), Text.assemble(one["what"], (f"\n{where}" if where else "", "dim")), one["why"])
    return table


def _rest(rows: Sequence[object]) -> list[RenderableType]:
    """What follows a table that does not show all its rows."""
    left = len(rows) - MOST_ROWS
    return [Text(f"and {left} more: --json has them all")] if left > 0 else []


def _others_table(others: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = FittingTable(title="What it was held against in the finals", title_justify="left")
    table.add_column("configuration", overflow="fold")
    table.add_column("latency ms [95% interval]", justify="right", no_wrap=True)
    for one in others[:MOST_OTHERS]:
        configuration = Configuration.from_dict(one["configuration"])
        table.add_row(
            f"{configuration.backend}: {words.knobs(configuration)}",
            words.latency(one["latency_ms"], one["interval_ms"]),
        )
    if len(others) > MOST_OTHERS:
        table.caption = f"and {len(others) - MOST_OTHERS} more: --json has them all"
    return table if others else Text("no finals are on record with this plan")


def _us(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
