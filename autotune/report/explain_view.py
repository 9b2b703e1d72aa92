"""The explanation of a plan for people, on one screen."""

from collections.abc import Callable, Sequence
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.report import words
from autotune.report.explanation import Explanation, GraphExplanation, OtherFinalist, TorchEntry
from autotune.report.facts import Facts
from autotune.report.fitting_table import FittingTable
from autotune.report.kernels import problem_words
from autotune.report.places import places_words

MOST_ROWS, MOST_OTHERS, MOST_HEAVY = 8, 4, 3
"""The most rows of a table, other finalists and heaviest kernels that are shown; the plain data has all."""


def explanation_view(explained: Explanation, title: str = "") -> RenderableType:
    """Show an explanation; a long table ends after a few rows with the number of the others.

    The default ``title`` is the plan's name and batch.
    """
    configuration = Configuration.from_dict(explained["configuration"])
    facts = Facts()
    facts.add_row("plan", f"{configuration.backend}: {words.knobs(configuration)}")
    latencies = (
        f"{words.milliseconds(explained['baseline_latency_ms'])} ms to {words.milliseconds(explained['latency_ms'])} ms"
    )
    facts.add_row("latency", f"{latencies}, {words.speedup(explained['speedup'])} ({explained['status']})")
    facts.add_row("kernels a call", _before_and_after(explained, "kernels_per_call", lambda figure: f"{figure:.0f}"))
    facts.add_row("SM efficiency", _before_and_after(explained, "sm_efficiency", lambda figure: f"{figure:.0%}"))
    heaviest = explained["after"].get("heaviest", []) if explained["after"] else []
    if heaviest:
        shares = [f"{kernel['name']} {kernel['share']:.0%}" for kernel in heaviest[:MOST_HEAVY]]
        facts.add_row("heaviest", ", ".join(shares))
    counts = ", ".join(f"{count} {state}" for state, count in explained["trials"].items())
    facts.add_row("trials", counts or "not in this database")
    title = title or f"{explained['name']}, batch {explained['batch']}"
    parts: list[RenderableType] = [Text(title, style="bold underline"), facts]
    graph = explained["graph"]
    if graph is None:
        facts.add_row("graph", f"{configuration.backend} does not describe its graph, or the artifact is not here")
    else:
        facts.add_row("graph", f"{graph['nodes_before']} nodes to {graph['nodes_after']}")
        if graph["written"]:
            facts.add_row("Triton kernels", ", ".join(f"{count} {name}" for name, count in graph["written"].items()))
        parts += _graph_tables(graph)
    parts.append(_others_table(explained["others"]))
    if explained["refused"]:
        see = f"autotune trials {explained['name']} --batch {explained['batch']} --failed"
        count = len(explained["refused"])
        refused = "1 candidate was refused" if count == 1 else f"{count} candidates were refused"
        parts.append(Text(f"{refused}; the reasons, and how to reproduce them: {see}"))
    return Group(*parts, Text(""))


def _before_and_after(
    explained: Explanation, name: Literal["kernels_per_call", "sm_efficiency"], write: Callable[[float], str]
) -> str:
    """Return a figure of the baseline and of the plan; the reason if neither has it."""
    ends = [figures.get(name) if figures else None for figures in (explained["before"], explained["after"])]
    if all(end is None for end in ends):
        return "not measured" + (f": {explained['not_measured']}" if explained["not_measured"] else "")
    return " to ".join("not measured" if end is None else write(end) for end in ends)


def _graph_tables(graph: GraphExplanation) -> list[RenderableType]:
    tables: list[RenderableType] = [_fusions_table(graph)]
    if graph["kernels"]:
        tables += [_kernels_table(graph), *_rest(graph["kernels"])]
    if graph["left"]:
        tables += [_left_table(graph["left"]), *_rest(graph["left"])]
    return tables


def _fusions_table(graph: GraphExplanation) -> RenderableType:
    """Show each fusion that matched, with its places."""
    matched = {name: count for name, count in graph["fusions"].items() if count}
    table = FittingTable(title="Fusions", title_justify="left")
    table.add_column("fusion", no_wrap=True)
    table.add_column("matches", justify="right", no_wrap=True)
    table.add_column("places", overflow="fold")
    for name, count in matched.items():
        table.add_row(name, str(count), places_words(graph["places"].get(name, ())) or "not recorded")
    return table if matched else Text("no fusion is in this plan")


def _kernels_table(graph: GraphExplanation) -> RenderableType:
    """Show one row for each distinct problem and kernel, the largest saving first."""
    total_us = graph["saved_us_per_call"]
    saved = "no library call is on record" if total_us is None else f"{total_us:.1f} µs saved in a call"
    table = FittingTable(title=f"GEMMs in µs, compared with the best library call: {saved}", title_justify="left")
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("m×n×k, epilogue, places", overflow="fold")
    table.add_column("chosen kernel", overflow="fold")
    for column in ("its µs", "library", "saved", "a call"):
        table.add_column(column, justify="right", no_wrap=True)
    for gemm in graph["kernels"][:MOST_ROWS]:
        table.add_row(
            str(gemm["times"]),
            _with_places(problem_words(GemmProblem.from_dict(gemm["problem"])), gemm["places"]),
            gemm["kernel"],
            _us(gemm["median_us"]), _us(gemm["library_us"]),
            "–" if gemm["saved_us"] is None else f"{gemm['saved_us']:.2f}, {gemm['saved_share']:.0%}",
            _us(gemm["saved_us_per_call"]),
        )  # fmt: skip
    return table


def _left_table(left: Sequence[TorchEntry]) -> RenderableType:
    """Show the operators without a kernel of ours, with the reason."""
    table = FittingTable(title="Computed by torch's own operators", title_justify="left")
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("operator, places", overflow="fold")
    table.add_column("reason", overflow="fold")
    for entry in left[:MOST_ROWS]:
        table.add_row(str(entry["times"]), _with_places(entry["what"], entry["places"]), entry["why"])
    return table


def _with_places(text: str, paths: Sequence[str]) -> Text:
    places = places_words(paths)
    return Text.assemble(text, (f"\n{places}" if places else "", "dim"))


def _rest(rows: Sequence[object]) -> list[RenderableType]:
    """Return the line below a table that does not show all its rows."""
    left = len(rows) - MOST_ROWS
    return [Text(f"and {left} more: --json has them all")] if left > 0 else []


def _others_table(others: Sequence[OtherFinalist]) -> RenderableType:
    table = FittingTable(title="Other finalists", title_justify="left")
    table.add_column("configuration", overflow="fold")
    table.add_column("latency ms [95% interval]", justify="right", no_wrap=True)
    for finalist in others[:MOST_OTHERS]:
        configuration = Configuration.from_dict(finalist["configuration"])
        table.add_row(
            f"{configuration.backend}: {words.knobs(configuration)}",
            words.latency(finalist["latency_ms"], finalist["interval_ms"]),
        )
    if len(others) > MOST_OTHERS:
        table.caption = f"and {len(others) - MOST_OTHERS} more: --json has them all"
    return table if others else Text("no finals are on record with this plan")


def _us(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
