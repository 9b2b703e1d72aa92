"""The command ``autotune``: its subcommands, and the exit codes of its errors.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.
"""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import typer.core

from autotune import standard_streams
from autotune.cli import (
    bench,
    compare,
    db,
    doctor,
    explain,
    export,
    kernels,
    optimize_file,
    plan,
    reproduce,
    roofs,
    serve_check,
    trials,
    tune,
)
from autotune.cli.version import version_text
from autotune.errors import AutotuneError

if TYPE_CHECKING:
    from typer._click import Context  # of the click that typer brings

INTERRUPTED = 130


class Commands(typer.core.TyperGroup):
    """The subcommands; an error that autotune raises on purpose becomes its message and its exit code."""

    def invoke(self, ctx: "Context") -> object:
        """Run a subcommand."""
        try:
            return super().invoke(ctx)
        except AutotuneError as error:
            sys.stderr.write(f"error: {error}\n")
            raise typer.Exit(error.exit_code) from None
        except UnicodeEncodeError as error:  # a name or a path on the command line; printing never raises it
            sys.stderr.write(
                f"error: a name or a path cannot be encoded: {error.object!r}\n  found: the encoding {error.encoding}\n"
                "  expected: UTF-8, and a locale that has it, such as LC_ALL=C.UTF-8\n"
            )
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            sys.stderr.write("interrupted; finished work is kept, and the same command continues it\n")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    name="autotune",
    cls=Commands,
    help="Find, prove and remember the fastest way to run a model on a device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("tune")(tune.tune)
app.add_typer(plan.app, name="plan")
app.command("trials")(trials.trials)
app.command("reproduce")(reproduce.reproduce)
app.command("bench")(bench.bench)
app.command("compare")(compare.compare)
app.add_typer(compare.app, name="prices")
app.add_typer(roofs.app, name="roofs")
app.command("explain")(explain.explain)
app.command("export")(export.export)
app.command("restore")(optimize_file.restore)
app.command("serve-check")(serve_check.check)
app.add_typer(kernels.app, name="kernels")
app.add_typer(db.app, name="db")
app.command("doctor")(doctor.doctor)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(version_text(Path(__file__).parents[2]))
        raise typer.Exit()


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also show the log of the library.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version, and in a git checkout the commit."
        ),
    ] = False,
) -> None:
    """Find, prove and remember the fastest way to run a model on a device."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(name)s: %(message)s" if verbose else "%(levelname)s: %(message)s",
        force=True,
    )


def main() -> NoReturn:
    """Run the command line of this process."""
    standard_streams.run(lambda: app(prog_name="autotune"))


if __name__ == "__main__":
    main()
