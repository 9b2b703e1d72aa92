"""What a program that runs checks consists of, apart from its checks: options, rows, document, table, exit code."""

import argparse
import json
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autotune.programs.outcome import Outcome

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
_FILE_WIDTH = 120

Subject = TypeVar("Subject")


def add_options(parser: argparse.ArgumentParser, checks: Mapping[str, Any], kind: str) -> None:
    """Add the options that every such program has; ``kind`` is what it calls one of its checks."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the environment, the raw figures and all else")
    parser.add_argument("--quick", action="store_true", help="a short form that shows that everything runs")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument(
        "--only", type=partial(names_among, checks, kind), default=tuple(checks), metavar="NAME,...",
        help=f"some of {', '.join(checks)}",
    )  # fmt: skip


def names_among(checks: Mapping[str, Any], kind: str, text: str) -> tuple[str, ...]:
    """Read names with commas between them, into the order in which they run."""
    asked = {name.strip() for name in text.split(",")}
    unknown = sorted(asked - set(checks))
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {kind} {', '.join(unknown)}; there are {', '.join(checks)}")
    return tuple(name for name in checks if name in asked)


def positive(text: str) -> int:
    """Read a positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def run_checks(
    checks: Mapping[str, Callable[[Subject], list[Outcome]]],
    names: Iterable[str],
    subject: Subject,
    progress: "Console | None" = None,
) -> list[dict[str, Any]]:
    """Run checks by name on their subject and return all rows."""
    rows: list[dict[str, Any]] = []
    for name in names:
        if progress is not None:
            progress.print(f"{name} ...", markup=False)
        rows += run_check(name, checks[name], subject)
    return rows


def run_check(name: str, check: Callable[[Subject], list[Outcome]], subject: Subject) -> list[dict[str, Any]]:
    """Run one check and return its rows; the seconds of the whole check stand in the first of them."""
    started = time.monotonic()
    try:
        outcomes = check(subject)
    except Exception as error:  # the program's border: a check that breaks off has failed, and the others still run
        found = f"broke off: {type(error).__name__}: {error}"
        outcomes = [Outcome(check=name, figure=found, limit="runs to its end", passed=False)]
    if not outcomes:
        outcomes = [Outcome(check=name, figure="no outcome", limit="at least one", passed=False)]
    seconds = [round(time.monotonic() - started, 2), *[None] * (len(outcomes) - 1)]
    return [
        {"group": name, **outcome.as_dict(), "seconds": spent} for outcome, spent in zip(outcomes, seconds, strict=True)
    ]


def document_of(
    command: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    environment: Mapping[str, Any],
    *,
    quick: bool,
    seed: int,
    seconds: float,
    **more: Any,
) -> dict[str, Any]:
    """Return everything that the JSON file holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": shlex.join(command),
        "quick": quick,
        "seed": seed,
        **more,
        "environment": dict(environment),
        "seconds": round(seconds, 2),
        "passed": all(row["passed"] for row in rows),
        "checks": list(rows),
    }


def tell(document: Mapping[str, Any], file: Path | None) -> int:
    """Print the table, write the file where one is asked for, and return the program's exit code."""
    from rich.console import Console

    console = Console()
    show(console if console.is_terminal else Console(width=_FILE_WIDTH), document)
    if file is not None:
        file.write_text(as_json(document))
    return 0 if document["passed"] else 1


def as_json(document: Mapping[str, Any]) -> str:
    """Write the document with one line for each key, and one for each check: long lists do not fill a column."""
    checks = ",\n    ".join(json.dumps(check) for check in document["checks"])
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "checks"]
    return "{\n" + ",\n".join([*lines, f'  "checks": [\n    {checks}\n  ]']) + "\n}\n"


def show(console: "Console", document: Mapping[str, Any]) -> None:
    """Print a document as a table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    around = document["environment"]
    table = Table(box=box.SIMPLE_HEAD, title=f"{around['device']}: {around['device_name']}", title_justify="left")
    for heading in ("check", "figure", "limit", "verdict"):
        table.add_column(heading, overflow="fold")
    table.add_column("seconds", justify="right")
    for row in document["checks"]:
        verdict = Text("pass", style="green") if row["passed"] else Text("FAIL", style="bold red")
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        table.add_row(Text(row["check"]), Text(row["figure"]), Text(row["limit"]), verdict, seconds)
    console.print(table)
    failed = sum(not row["passed"] for row in document["checks"])
    said = f"{failed} of {len(document['checks'])} failed" if failed else f"all {len(document['checks'])} passed"
    console.print(f"{said} in {document['seconds']:.0f} s: {document['command']}", markup=False, highlight=False)
