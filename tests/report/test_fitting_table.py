"""Tables in terminals of any width: what is printed fits, and no figure is cut."""

import io
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from autotune.execute.proof import Proof
from autotune.records.device import Toolchain
from autotune.report.doctor import doctor_view
from autotune.report.examination import DatabaseState, Examination
from autotune.report.facts import Facts
from autotune.report.fitting_table import FittingTable
from autotune.report.kernels import tuned_view
from autotune.report.outcome import outcome_view, sweep_view
from tests.cli.conftest import autotune, database
from tests.report.test_kernels import H200, RATES, TUNED
from tests.report.test_reports import outcome, undecided

__all__ = ["autotune", "database"]  # fixtures
WIDTHS = (1, 20, 40, 80, 120, 200)
FIGURE = re.compile(r"\d+\.\d+(?:e[+-]\d+)?")
figures = st.from_regex(r"[0-9]{1,6}\.[0-9]{1,4}", fullmatch=True)
words = st.text(st.sampled_from("ab =_,/é日"), max_size=60)


def lines(renderable, width, *, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="autotune-readable")
    Console(file=file, width=width, highlight=False, emoji=False).print(renderable, crop=False)
    file.seek(0)
    return file.read().splitlines()


@given(st.lists(st.tuples(words, figures, figures), min_size=1, max_size=4), st.integers(8, 200))
@settings(max_examples=150, deadline=None)
def test_no_figure_is_cut_whatever_the_width_and_every_line_fits(rows, width):
    table = FittingTable(title="Title", title_justify="left")
    table.add_column("what", overflow="fold")
    for head in ("latency ms", "build s"):
        table.add_column(head, justify="right", no_wrap=True)
    for what, first, second in rows:
        table.add_row(Text(what), first, second)
    printed = lines(table, max(width, 11))  # the longest figure
    assert all(Text(line).cell_len <= max(width, 11) for line in printed)
    found = re.findall(r"\d+\.\d+", " ".join(printed))
    assert sorted(found) == sorted(figure for _, *both in rows for figure in both)


def test_a_table_with_room_is_as_wide_as_its_content():
    table = FittingTable()
    table.add_column("a", overflow="fold")
    table.add_row("word " * 10)
    assert {Text(line.rstrip()).cell_len for line in lines(table, 200)} == {len("word " * 10) + 4}


@pytest.mark.parametrize("width", [20, 200])
def test_title_and_caption_are_there_at_every_width(width):
    table = FittingTable(title="all of it", caption="and 6 more")
    for head in ("configuration", "latency ms"):
        table.add_column(head)
    table.add_row("eager", "1.000")
    printed = lines(table, width)
    assert "all of it" in printed[0] and "and 6 more" in printed[-1]


def test_columns_stay_apart_where_characters_get_longer():
    table = FittingTable()
    for head in ("from → to", "2×"):
        table.add_column(head)
    table.add_row("1.0 → 2.0", Text("3×…"))
    printed = lines(table, 60, encoding="ascii")
    assert len({len(line) for line in printed}) == 1 and "1.0 -> 2.0" in printed[3] and "3x..." in printed[3]


def doctor():
    proof = Proof(
        device="cuda:0", device_class=H200.device_class, backend="inductor", found=True, proved=True, works=False,
        reason="build: error: no g++ " * 4, remedy="apt-get install g++ (or name a compiler in CXX)", seconds=12.25,
    )  # fmt: skip
    database = DatabaseState(location="/data/autotune.db", state="3 plans, 1 studies")
    toolchain = Toolchain.of({"torch": "2.13.0"})
    return Examination(proved=True, devices=[H200], toolchain=toolchain, database=database, proofs=[proof])


def facts():
    rows = Facts()
    rows.add_row("a name of some length", "1.2345 ms, and a text that is longer than most terminals are wide " * 2)
    return rows


VIEWS = {
    "outcome": lambda: outcome_view(outcome(), "/data/autotune.db"),
    "undecided": lambda: outcome_view(undecided(plan=None), "/data/autotune.db"),
    "sweep": lambda: sweep_view([undecided(plan=None)]),
    "doctor": lambda: doctor_view(doctor()),
    "quick doctor": lambda: doctor_view(replace(doctor(), proved=False)),
    "kernels": lambda: tuned_view(TUNED, H200, RATES),
    "facts": facts,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_view_keeps_its_figures_at_every_width(view, width):
    wide = lines(VIEWS[view](), 1000)
    narrow = lines(VIEWS[view](), width)
    if width >= 20:
        missing = set(FIGURE.findall(" ".join(wide))) - set(FIGURE.findall(" ".join(narrow)))
        assert not missing
        whole = ("stored in", "run again", "trials:")  # lines with a command are never broken
        assert all(len(line.rstrip()) <= width for line in narrow if not line.startswith(whole))


COMMANDS = ["plan list", "plan show resnet50", "trials resnet50", "compare resnet50", "explain resnet50"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", ["20", "40", "80"])
def test_commands_follow_columns(autotune, database, monkeypatch, command, columns):
    wide = autotune(*command.split(), "--db", database).stdout
    monkeypatch.setenv("COLUMNS", columns)
    narrow = autotune(*command.split(), "--db", database).stdout
    assert max(len(line.rstrip()) for line in narrow.splitlines()) <= int(columns)
    decimals = re.compile(r"\d+\.\d{3,}|\d+\.\d+×|\d\.\de-\d+")
    assert set(decimals.findall(wide)) == set(decimals.findall(narrow))


@pytest.mark.parametrize("columns", ["", "0", "-5", "many", "99999999"])
def test_columns_that_are_no_width_are_ignored(autotune, database, monkeypatch, columns):
    wide = autotune("plan", "list", "--db", database).stdout
    monkeypatch.setenv("COLUMNS", columns)
    assert autotune("plan", "list", "--db", database).stdout == wide


def test_a_table_without_rows_is_its_heads():
    table = FittingTable(title="none yet")
    table.add_column("problem", overflow="fold")
    table.add_column("us", justify="right")
    for width in (20, 80):
        console = Console(file=io.StringIO(), width=width)
        console.print(table)
        assert "none yet" in console.file.getvalue()


def test_brackets_of_a_name_are_no_markup_and_control_characters_are_shown():
    table = FittingTable(title="[b]of[/b] x")
    table.add_column("[red]name")
    table.add_row("a[/b] \x1b[31mred :smile:")
    shown = "\n".join(lines(table, 80))
    assert "[b]of[/b] x" in shown and "[red]name" in shown
    assert "a[/b] \\x1b[31mred :smile:" in shown
