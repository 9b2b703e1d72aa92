"""The command ``autotune trials``."""

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
    """List the trials of a study; without --batch, those of all its batches."""
    with open_store(db) as store:
        by_study = [(row, store.trials.of_study(row.uid, failed=failed)) for row in find_studies(store, study, batch)]
        commands = reproducing(by_study, store.location if db else None)
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
                for row, trials_of_row in by_study
                for trial in trials_of_row
            ]
        )
        return
    from autotune.report.trials import trials_table

    for row, trials_of_row in by_study:
        show(trials_table(row.name, row.batch, row.device_class, trials_of_row, with_log=failed, commands=commands))


def reproducing(by_study: "list[tuple[StudyRow, list[Trial]]]", location: str | None) -> dict[str, str]:
    """Return the command that reproduces each failed trial, by the trial's uid.

    A study of a model that was given in Python has none.
    """
    batches = Counter(row.batch for row, _ in by_study)
    commands = {}
    for row, trials_of_row in by_study:
        for trial in trials_of_row:
            if trial.state == "failed" and row.can_be_reproduced:
                # A number means several trials if the name and batch have several studies.
                name = str(trial.number) if batches[row.batch] == 1 else trial.uid
                words = ["autotune", "reproduce", row.name, name, "--batch", str(row.batch)]
                commands[trial.uid] = shlex.join([*words, *(["--db", location] if location else [])])
    return commands


def find_studies(store: "Store", name: str, batch: int | None) -> "Sequence[StudyRow]":
    """Return the studies of a name; RequestError if there is none, with the studies that are there instead."""
    rows = store.studies.list(name=name, batch=batch)
    if rows:
        return rows
    from autotune.errors import RequestError

    others = sorted({f"{row.name} at batch {row.batch}" for row in store.studies.list()})
    raise RequestError(
        f"no study {name}{f' at batch {batch}' if batch else ''} in {store.location}",
        found=", ".join(others[:12]) or "no study at all",
        expected="the name of a study in this database",
        run="autotune tune STUDY_FILE",
    )
