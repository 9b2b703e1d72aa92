"""``autotune compare``."""

from typing import Annotated

import typer

from autotune.cli.output import Batch, Db, Json, device_class, open_store, print_json, show
from autotune.cli.plan import find_plans


def compare(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="The name of a study; all without.")] = None,
    devices: Annotated[
        str | None, typer.Option("--devices", metavar="A,B", help="Parts of SKUs; cpu is this machine's.")
    ] = None,
    batch: Batch = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Compare devices: for each model and batch, one row a device class with baseline, plan and speedup.

    Other constraints, another serving format or another structure of the model make a row of their own.
    """
    from autotune.report.compare import compare_table, rows_by_device

    asked = [device_class(part.strip()) for part in devices.split(",") if part.strip()] if devices else [None]
    with open_store(db) as store:
        found = []
        for device in asked:
            if model is not None:
                found += find_plans(store, model, batch, device)
            else:
                found += store.plans.list(batch=batch, device=device)
        rows = rows_by_device(found)
    if json:
        print_json(rows)
    else:
        show(compare_table(rows))
