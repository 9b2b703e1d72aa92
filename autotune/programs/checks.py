"""Named checks of a program: the options that choose among them, and how they run on their subject."""

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from autotune.programs.check_result import CheckResult
from autotune.programs.document import Row
from autotune.programs.frame import add_seed, say

Subject = TypeVar("Subject")


def add_checks(parser: argparse.ArgumentParser, names: Iterable[str], kind: str) -> None:
    """Add ``--quick``, ``--seed`` and ``--only``; ``kind`` is the program's word for one of its checks."""
    every = tuple(names)
    parser.add_argument("--quick", action="store_true", help="a short form that shows that everything runs")
    add_seed(parser)
    parser.add_argument(
        "--only", type=partial(names_among, every, kind), default=every, metavar="NAME,...",
        help=f"some of {', '.join(every)}",
    )  # fmt: skip


def names_among(every: tuple[str, ...], kind: str, text: str) -> tuple[str, ...]:
    """Read names with commas between them, into the order in which the checks run."""
    requested = {name.strip() for name in text.split(",")}
    unknown = sorted(requested - set(every))
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {kind} {', '.join(unknown)}; there are {', '.join(every)}")
    return tuple(name for name in every if name in requested)


def run_checks(
    checks: Mapping[str, Callable[[Subject], list[CheckResult]]], names: Iterable[str], subject: Subject
) -> list[Row]:
    """Run checks by name on their subject, and return all rows."""
    rows: list[Row] = []
    for name in names:
        say(f"{name} ...")
        rows += run_check(name, checks[name], subject)
    return rows


def run_check(name: str, check: Callable[[Subject], list[CheckResult]], subject: Subject) -> list[Row]:
    """Run one check and return its rows; the first of them holds the seconds of the whole check."""
    started = time.monotonic()
    try:
        results = check(subject)
    except Exception as error:  # the program's border: a check that breaks off has failed, and the others still run
        figure = f"broke off: {type(error).__name__}: {error}"
        results = [CheckResult(check=name, figure=figure, limit="runs to its end", passed=False)]
    if not results:
        results = [CheckResult(check=name, figure="no result", limit="at least one", passed=False)]
    seconds = [round(time.monotonic() - started, 2), *[None] * (len(results) - 1)]
    return [Row(group=name, result=result, seconds=spent) for result, spent in zip(results, seconds, strict=True)]
