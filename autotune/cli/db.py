"""The commands ``autotune db``: maintenance of the tuning database."""

import time
from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.output import Db, Json, open_store, print_json, show

app = typer.Typer(help="Maintain the tuning database.", no_args_is_help=True)


@app.command("upgrade")
def upgrade(db: Db = None, json: Json = False) -> None:
    """Upgrade the database to the schema of this version, or create it."""
    with open_store(db, create=True) as store:
        _say({"database": store.location}, f"{store.location} has the newest schema", json=json)


@app.command("export")
def export(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names of studies.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")],
    artifacts: Annotated[
        bool, typer.Option("--artifacts/--no-artifacts", help="Also export the artifacts of plans.")
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
    """Add the content of a file that another machine exported; the same trial is never added twice."""
    from autotune.database.exchange import merge_file
    from autotune.errors import RequestError

    if not file.is_file():  # refused before an empty database is created
        raise RequestError(f"cannot merge {file}", found="no such file", expected="a file of autotune db export")
    with open_store(db, create=True) as store:
        counts, location = merge_file(store, file), store.location
    _say({"file": str(file), "database": location, **counts}, f"merged {file}: {_merged_in_words(counts)}", json=json)


@app.command("check")
def check(db: Db = None, json: Json = False) -> None:
    """Read every row and every byte of every artifact, and list all that is damaged, missing or no longer needed.

    Exit code 1 if it lists anything.
    """
    from autotune.database.check import check as check_store

    with open_store(db) as store:
        findings, location = check_store(store, time.time()), store.location
    if json:
        print_json({"database": location, "findings": [finding.as_dict() for finding in findings]})
    elif findings:
        from autotune.report.check import findings_table

        show(findings_table(findings, location))
    else:
        show(f"{location} and its artifacts are sound")
    if findings:
        raise typer.Exit(1)


@app.command("gc")
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be deleted.")] = False,
    db: Db = None,
    json: Json = False,
) -> None:
    """Delete artifacts that no plan or trial needs, and files that killed processes left behind.

    Files of the last day stay, so that it can run beside a study.
    """
    from autotune.database.check import collect_garbage

    with open_store(db) as store:
        unneeded, root = collect_garbage(store, time.time(), dry_run=dry_run), store.artifacts.root
    document: dict[str, object] = {
        "artifact_store": str(root),
        "deleted": not dry_run,
        "artifacts": list(unneeded.artifacts),
        "blobs": [path.name for path in unneeded.blobs],
        "leftovers": [str(path.relative_to(root)) for path in unneeded.leftovers],
        "size_bytes": unneeded.size_bytes,
    }
    counts = f"{len(unneeded.artifacts)} artifacts, {len(unneeded.blobs)} blobs and {len(unneeded.leftovers)} leftovers"
    done = "would delete" if dry_run else "deleted"
    _say(document, f"{done} {counts} ({unneeded.size_bytes / 2**20:.1f} MiB) in {root}", json=json)


def _say(document: dict[str, object], text: str, *, json: bool) -> None:
    if json:
        print_json(document)
    else:
        show(text)


def _in_words(written: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in written.items())


def _merged_in_words(counts: dict[str, dict[str, int]]) -> str:
    return ", ".join(
        f"{count['added']} {kind} added ({count['known']} already there)" for kind, count in counts.items()
    )
