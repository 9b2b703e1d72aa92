"""The command ``autotune reproduce``."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.output import Batch, Db, Json, nothing_on_stdout, open_store, print_json, show
from autotune.cli.trials import find_studies
from autotune.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from autotune.database.rows import StudyRow
    from autotune.database.store import Store
    from autotune.records.trial import Trial


def reproduce(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The name of the study.")],
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="The number of the trial, or its uid.")],
    batch: Batch = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Build and measure a trial's configuration again, outside the database, and compare the result with the trial.

    The output of the workers goes to standard error. Exit code 0 if it works, 1 if it fails.
    """
    from autotune.runtime import discovery
    from autotune.study.reproduce import device_of
    from autotune.study.reproduce import reproduce as run

    with open_store(db) as store:
        row, record = find_trial(store, find_studies(store, study, batch), trial)
        device = device_of(row, discovery.devices())
        with nothing_on_stdout():
            reproduction = run(row, record, store, device, sys.stderr)
    if json:
        print_json(reproduction.as_dict())
    else:
        from autotune.report.trials import reproduction_view

        show(reproduction_view(reproduction))
    if reproduction.failure is not None:
        raise typer.Exit(1)


def find_trial(store: "Store", rows: "Sequence[StudyRow]", name: str) -> "tuple[StudyRow, Trial]":
    """Return the only trial of these studies with a number or uid; RequestError if none or several have it."""
    matches = [
        (row, trial)
        for row in rows
        for trial in store.trials.of_study(row.uid)
        if name in (str(trial.number), trial.uid)
    ]
    if len(matches) == 1:
        return matches[0]
    described = [f"{trial.uid} (batch {row.batch}, on {row.device_class})" for row, trial in matches]
    raise RequestError(
        f"trial {name} of study {rows[0].name}",
        found=f"{len(matches)} trials of that number: {', '.join(described)}" if matches else "no such trial",
        expected="--batch, or the uid of a trial" if matches else "the number or the uid of one of its trials",
        run=f"autotune trials {rows[0].name} --failed",
    )
