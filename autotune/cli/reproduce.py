"""``autotune reproduce``."""

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
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="The trial's number, or its uid.")],
    batch: Batch = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Build and measure a trial's configuration again, outside the database, and tell what became of it.

    What the workers print goes to standard error. Exit code 0 where it works, 1 where it fails.
    """
    from autotune.runtime import discovery
    from autotune.study.reproduce import device_of
    from autotune.study.reproduce import reproduce as run

    with open_store(db) as store:
        row, found = find_trial(store, find_studies(store, study, batch), trial)
        device = device_of(row, discovery.devices())
        with nothing_on_stdout():
            reproduction = run(row, found, store, device, sys.stderr)
    if json:
        print_json(reproduction.as_dict())
    else:
        from autotune.report.trials import reproduction_view

        show(reproduction_view(reproduction))
    if reproduction.failure is not None:
        raise typer.Exit(1)


def find_trial(store: "Store", rows: "Sequence[StudyRow]", asked: str) -> "tuple[StudyRow, Trial]":
    """Return the one trial of these studies with a number or uid; RequestError says which there are instead."""
    found = [
        (row, trial)
        for row in rows
        for trial in store.trials.of_study(row.uid)
        if asked in (str(trial.number), trial.uid)
    ]
    if len(found) == 1:
        return found[0]
    there = [f"{trial.uid} (batch {row.batch}, on {row.device_class})" for row, trial in found]
    raise RequestError(
        f"trial {asked} of study {rows[0].name}",
        found=f"{len(found)} of that number: {', '.join(there)}" if found else "no such trial",
        expected="--batch, or the trial's uid" if found else "the number or the uid of one of its trials",
        run=f"autotune trials {rows[0].name} --failed",
    )
