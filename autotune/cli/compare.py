"""The command ``autotune compare``."""

from typing import Annotated

import typer

from autotune.cli.output import Batch, Db, Json, device_class, open_store, print_json, show
from autotune.cli.plan import find_plans


def compare(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The name of a study; without it, all studies.")
    ] = None,
    devices: Annotated[
        str | None, typer.Option("--devices", metavar="A,B", help="Parts of SKU names; cpu is the CPU of this machine.")
    ] = None,
    batch: Batch = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Compare devices: for each model and batch one row per device class, with baseline, plan and speedup.

    Plans with other constraints, another serving format or another structure of the model have rows of their own.
    """
    from autotune.report.compare import compare_table, rows_by_device

    requested = [device_class(part.strip()) for part in devices.split(",") if part.strip()] if devices else [None]
    with open_store(db) as store:
        plans = []
        for device in requested:
            if model is not None:
                plans += find_plans(store, model, batch, device)
            else:
                plans += store.plans.list(batch=batch, device=device)
        rows = rows_by_device(plans)
    if json:
        print_json(rows)
    else:
        show(compare_table(rows))
