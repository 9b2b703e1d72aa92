"""The output and the options that all commands share, and the database that they open."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from autotune.database.reading import PlanReader
    from autotune.database.store import Store

WIDE = 200
"""The columns of output that goes to a pipe or a log."""

Db = Annotated[
    str | None,
    typer.Option(
        "--db",
        metavar="URL",
        help="The tuning database, a path or a URL; otherwise AUTOTUNE_DB, or SQLite in your data folder.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document to standard output.")]
Batch = Annotated[int | None, typer.Option("--batch", metavar="N", help="Only this batch.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="SKU", help="Words of a SKU name that fit one SKU only; cpu is the CPU of this machine."
    ),
]

Structure = Annotated[
    str | None,
    typer.Option("--structure", metavar="PREFIX", help="Only plans whose structure has a digest with this beginning."),
]
On = Annotated[
    str | None, typer.Option("--on", metavar="DEVICE", help="The device to run it on: auto, cpu, cuda or cuda:N.")
]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that autotune export wrote.")]
RequireSignature = Annotated[
    Path | None,
    typer.Option(
        "--require-signature", metavar="KEY_FILE", help="Refuse the bundle unless this Ed25519 public key signed it."
    ),
]


def show(renderable: "RenderableType", stream: TextIO | None = None) -> None:
    """Print a table or a text to a stream, by default to standard output."""
    console(stream or sys.stdout).print(renderable, crop=False)  # a command to copy may be wider than the terminal


def errors() -> "Console":
    """Return the console on standard error, for progress and messages."""
    return console(sys.stderr)


def print_json(document: object) -> None:
    """Print one JSON document; NaN and infinity are a bug and raise ``ValueError``."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def nothing_on_stdout() -> Iterator[None]:
    """Send the output of libraries, also from C++, to standard error; standard output is for one JSON document."""
    sys.stdout.flush()
    standard_output = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(standard_output, 1)
        os.close(standard_output)


def open_store(db: str | None, *, create: bool = False) -> "Store":
    """Open the tuning database; a command that only reads never creates one."""
    from autotune.database.store import Store

    return Store.open(db, create=create)


def open_plans(db: str | None) -> "Store | PlanReader":
    """Open the tuning database to read plans: a SQLite file without SQLAlchemy, the slowest import of all."""
    from autotune.database.reading import plan_reader

    return plan_reader(db) or open_store(db)


def device_class(name: str | None) -> str | None:
    """Return the device class of a device of this machine (auto, cpu, cuda, cuda:N); other names are parts of a SKU."""
    if name is None:
        return None
    from autotune.runtime.discovery import local

    device = local(name)
    return name if device is None else device.device_class


def console(stream: TextIO) -> "Console":
    """Return a console as wide as ``COLUMNS``, else as the terminal; a pipe or a log has :data:`WIDE` columns."""
    from rich.console import Console

    from autotune import environment

    width = environment.columns() or (None if stream.isatty() else WIDE)
    return Console(file=stream, width=width, soft_wrap=False, highlight=False, emoji=False)
