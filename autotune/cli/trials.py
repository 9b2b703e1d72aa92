"""``autotune trials``."""

from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.output import Batch, Db, Json, open_store, print_json, show

if TYPE_CHECKING:
    from autotune.database.rows import StudyRow
    from autotune.database.store import Store


def trials(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The name of the study.")],
    failed: Annotated[bool, typer.Option("--failed", help="Only trials that failed, with the reason.")] = False,
    batch: Batch = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """List every trial of a study; without --batch, of all its batches."""
    with open_store(db) as store:
        found = [(row, store.trials(row.uid, failed=failed)) for row in find_studies(store, study, batch)]
    if json:
        print_json(
            [
                {"study": row.name, "batch": row.batch, "device_class": row.device_class, **trial.as_dict()}
                for row, rows in found
                for trial in rows
            ]
        )
        return
    from autotune.report.trials import trials_table

    for row, rows in found:
        show(trials_table(row.name, row.batch, row.device_class, rows, with_log=failed))


def find_studies(store: "Store", name: str, batch: int | None) -> "list[StudyRow]":
    """Return the studies of this name; RequestError says which there are instead."""
    rows = store.studies(name=name, batch=batch)
    if rows:
        return rows
    from autotune.errors import RequestError

    there = sorted({f"{row.name} at batch {row.batch}" for row in store.studies()})
    raise RequestError(
        f"no study {name}{f' at batch {batch}' if batch else ''} in {store.location}",
        found=", ".join(there[:12]) or "no study at all",
        expected="the name of a study that was begun",
        run="autotune tune STUDY_FILE",
    )
