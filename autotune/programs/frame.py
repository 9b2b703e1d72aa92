"""The frame of every program: its parser, its run, its report and its exit code.

A program ends with 0 if all its checks passed, with 1 if one failed or work is left, and with 2 if the request was
wrong. Progress and errors go to standard error, the table to standard output.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import AutotuneError
from autotune.programs.catalogue import PROGRAMS, command_of
from autotune.programs.document import Document, Row

JSON_HELP = "write the environment, the raw figures and everything else"
_FILE_WIDTH = 120


def parser_of(name: str, json_help: str = JSON_HELP) -> argparse.ArgumentParser:
    """Return the parser of a program of the catalogue, with the option ``--json``."""
    parser = argparse.ArgumentParser(prog=command_of(name), description=PROGRAMS[name])
    if json_help:
        parser.add_argument("--json", type=Path, metavar="FILE", help=json_help)
    return parser


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add ``--seed``."""
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every random choice (default: 0)")


def add_workers(parser: argparse.ArgumentParser, default: int = 1, note: str = "") -> None:
    """Add ``--workers``, the number of processes side by side."""
    parser.add_argument(
        "--workers", type=positive, default=default, metavar="N", help=f"processes side by side ({default}){note}"
    )


def positive(text: str) -> int:
    """Read a positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def say(text: str) -> None:
    """Write a line of progress on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of a program: its command, its options, and when it began (on the monotonic clock)."""

    command: str
    options: argparse.Namespace
    started_s: float

    def hide(self, secret: str, shown: str) -> None:
        """Replace a secret in the command, which is printed and written to the file."""
        words = [word.replace(secret, shown) for word in shlex.split(self.command)]
        self.command = shlex.join(words)

    def report(
        self,
        rows: Sequence[Row],
        environment: Mapping[str, object],
        *,
        quick: bool = False,
        seed: int = 0,
        text: str = "",
        more: Mapping[str, object] | None = None,
    ) -> int:
        """Print the table, write the file of ``--json``, and return the exit code.

        ``text`` is printed instead of the table, for programs that write Markdown; failed checks then go to standard
        error. ``more`` are the entries of the document that this program alone has.
        """
        document = Document(
            command=self.command,
            rows=tuple(rows),
            environment=environment,
            seconds=time.monotonic() - self.started_s,
            quick=quick,
            seed=seed,
            more=more or {},
        )
        if text:
            sys.stdout.write(text.rstrip("\n") + "\n")
            for result in (row.result for row in rows if not row.result.passed):
                say(f"FAIL {result.check}: {result.figure}; limit: {result.limit}")
        else:
            _print(document)
        if self.options.json is not None:
            self.options.json.write_text(document.as_json())
        return 0 if document.passed else 1


def run_program(
    name: str, parser: argparse.ArgumentParser, body: Callable[[Run], int], arguments: Sequence[str] | None
) -> int:
    """Run the body of a program on its command line (by default this process's), and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    command = shlex.join([*shlex.split(command_of(name)), *words])
    run = Run(command=command, options=options, started_s=time.monotonic())
    try:
        return body(run)
    except AutotuneError as error:
        say(str(error))
        return error.exit_code


def _print(document: Document) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    console.print(document.table())
    console.print(document.summary, markup=False, highlight=False)
