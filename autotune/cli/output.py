"""What every command shares: where text goes, and which database is meant."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from autotune.database.reading import PlanReader
    from autotune.database.store import Store

WIDE = 200
"""Columns of a table in a pipe or a log."""

Db = Annotated[
    str | None,
    typer.Option("--db", metavar="URL", help="The tuning database: a path or a URL; else AUTOTUNE_DB, else your own."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to standard output, and nothing else there.")
]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", help="Only this batch.")]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="SKU", help="Any part of a SKU that fits one only; cpu is this machine's."),
]

Structure = Annotated[
    str | None,
    typer.Option("--structure", metavar="PREFIX", help="Only plans of the structure whose digest begins so."),
]


def show(renderable: "RenderableType", stream: TextIO | None = None) -> None:
    """Print a table to standard output, or to the stream that is given."""
    console(stream or sys.stdout).print(renderable, crop=False)  # a command to copy may be wider than the terminal


def errors() -> "Console":
    """Return the console on standard error, for progress and messages."""
    return console(sys.stderr)


def print_json(document: Any) -> None:
    """Print one JSON document; NaN and infinity would be a bug and raise ``ValueError``."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def nothing_on_stdout() -> Iterator[None]:
    """Send what libraries print, also from C++, to standard error, so that standard output holds one JSON document."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def open_store(db: str | None, *, create: bool = False) -> "Store":
    """Open the tuning database; a command that only reads never makes one."""
    from autotune.database.store import Store

    return Store.open(db, create=create)


def open_plans(db: str | None) -> "Store | PlanReader":
    """Open the tuning database to read plans: a SQLite file without SQLAlchemy, the slowest import of all."""
    from autotune.database.reading import plan_reader

    return plan_reader(db) or open_store(db)


def device_class(asked: str | None) -> str | None:
    """Turn the words for this machine's devices (cpu, auto, cuda:N) into a device class; others are parts of a SKU."""
    if asked is None or not (asked in ("auto", "cpu", "cuda") or asked.startswith("cuda:")):
        return asked
    from autotune.runtime.discovery import find

    return find(asked).device_class


def console(stream: Any) -> "Console":
    """Return a console as wide as ``COLUMNS`` says, else as the terminal; in a pipe or a log there is room."""
    from rich.console import Console

    from autotune import environment

    width = environment.columns() or (None if stream.isatty() else WIDE)
    return Console(file=stream, width=width, soft_wrap=False, highlight=False, emoji=False)
