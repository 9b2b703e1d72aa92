"""``autotune trials``."""

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.output import Batch, Db, Json, open_store, print_json, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autotune.database.rows import StudyRow
    from autotune.database.store import Store
    from autotune.records.trial import Trial


def trials(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The name of the study.")],
    failed: Annotated[bool, typer.Option("--failed", help="Only trials that failed, with the reason.")] = False,
    batch: Batch = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """List every trial of a study; without --batch, of all its batches."""
    with open_store(db) as store:
        found = [(row, store.trials.of_study(row.uid, failed=failed)) for row in find_studies(store, study, batch)]
        commands = reproducing(found, store.location if db else None)
    if json:
        print_json(
            [
                {
                    "study": row.name,
                    "batch": row.batch,
                    "device_class": row.device_class,
                    "structure": row.structure,
                    "weights": row.weights,
                    **trial.as_dict(),
                    "reproduce": commands.get(trial.uid),
                }
                for row, rows in found
                for trial in rows
            ]
        )
        return
    from autotune.report.trials import trials_table

    for row, rows in found:
        show(trials_table(row.name, row.batch, row.device_class, rows, with_log=failed, commands=commands))


def reproducing(found: "list[tuple[StudyRow, list[Trial]]]", location: str | None) -> dict[str, str]:
    """Make the command that reproduces each failed trial, by the trial's uid; some studies do not say how."""
    batches = Counter(row.batch for row, _ in found)
    commands = {}
    for row, rows in found:
        for trial in rows:
            if trial.state == "failed" and row.can_be_reproduced:
                which = str(trial.number) if batches[row.batch] == 1 else trial.uid
                words = ["autotune", "reproduce", row.name, which, "--batch", str(row.batch)]
                commands[trial.uid] = shlex.join([*words, *(["--db", location] if location else [])])
    return commands


def find_studies(store: "Store", name: str, batch: int | None) -> "Sequence[StudyRow]":
    """Return the studies of this name; RequestError says which there are instead."""
    rows = store.studies.list(name=name, batch=batch)
    if rows:
        return rows
    from autotune.errors import RequestError

    there = sorted({f"{row.name} at batch {row.batch}" for row in store.studies.list()})
    raise RequestError(
        f"no study {name}{f' at batch {batch}' if batch else ''} in {store.location}",
        found=", ".join(there[:12]) or "no study at all",
        expected="the name of a study that was begun",
        run="autotune tune STUDY_FILE",
    )
