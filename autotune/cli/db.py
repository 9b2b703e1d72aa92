"""``autotune db``: the tuning database itself."""

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.output import Db, Json, open_store, print_json, show

app = typer.Typer(help="The tuning database itself.", no_args_is_help=True)


@app.command("upgrade")
def upgrade(db: Db = None, json: Json = False) -> None:
    """Bring the database to this version's schema, or make it."""
    with open_store(db, create=True) as store:
        _say({"database": store.location}, f"{store.location} has the newest schema", json=json)


@app.command("export")
def export(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names of studies.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")],
    artifacts: Annotated[
        bool, typer.Option("--artifacts/--no-artifacts", help="Whether the artifacts of plans go along.")
    ] = True,
    db: Db = None,
    json: Json = False,
) -> None:
    """Write studies with their trials, measurements and plans to a file for another machine."""
    from autotune.database.exchange import export_studies

    with open_store(db) as store:
        written = export_studies(store, studies, out, artifacts=artifacts)
    _say({"file": str(out), **written}, f"wrote {out}: {_in_words(written)}", json=json)


@app.command("merge")
def merge(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that autotune db export wrote.")],
    db: Db = None,
    json: Json = False,
) -> None:
    """Take in what another machine exported; the same trial never counts twice."""
    from autotune.database.exchange import merge_file
    from autotune.errors import RequestError

    if not file.is_file():  # said before an empty database is made
        raise RequestError(f"cannot merge {file}", found="no such file", expected="what autotune db export wrote")
    with open_store(db, create=True) as store:
        counts, location = merge_file(store, file), store.location
    _say({"file": str(file), "database": location, **counts}, f"merged {file}: {_merged_in_words(counts)}", json=json)


def _say(document: dict[str, object], text: str, *, json: bool) -> None:
    if json:
        print_json(document)
    else:
        show(text)


def _in_words(written: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in written.items())


def _merged_in_words(counts: dict[str, dict[str, int]]) -> str:
    return ", ".join(f"{count['added']} {kind} added ({count['known']} known)" for kind, count in counts.items())
