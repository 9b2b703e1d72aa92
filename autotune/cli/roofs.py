"""The commands ``autotune roofs measure`` and ``autotune roofs list``."""

from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.output import (
    Db,
    DeviceOption,
    Json,
    device_class,
    errors,
    nothing_on_stdout,
    open_store,
    print_json,
    show,
)

if TYPE_CHECKING:
    from autotune.records.roofs import Roofs

app = typer.Typer(no_args_is_help=True, help="Measure the limits of a device, and list those that were measured.")


@app.command("measure")
def measure(
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    db: Db = None,
    json: Json = False,
) -> None:
    """Measure how fast a device copies, multiplies matrices in each precision and launches; at most a minute.

    The database keeps the newest roofs of each device class; autotune compare shows how far plans are from them.
    """
    with nothing_on_stdout():
        roofs = _measure(device, db)
    if json:
        print_json(roofs.as_dict())
    else:
        from autotune.report.roofs import roofs_table

        show(roofs_table([roofs]))


@app.command("list")
def list_roofs(device: DeviceOption = None, db: Db = None, json: Json = False) -> None:
    """List the roofs in the database, each with its 95% interval."""
    with open_store(db) as store:
        rows = store.roofs.list(device_class(device))
    if json:
        print_json([roofs.as_dict() for roofs in rows])
    else:
        from autotune.report.roofs import roofs_table

        show(roofs_table(rows))


def _measure(name: str, db: str | None) -> "Roofs":
    from autotune.execute.roofs import measure_roofs
    from autotune.execute.server import WorkerServer
    from autotune.runtime import discovery
    from autotune.scratch import ScratchFolder
    from autotune.study.study import stoppable

    device = discovery.find(name)

    def say(text: str) -> None:
        errors().print(text, markup=False, soft_wrap=True)

    with (
        open_store(db, create=True) as store,
        ScratchFolder("roofs") as folder,
        WorkerServer(folder, work="autotune roofs measure", tell=say) as server,
        stoppable(server),
    ):
        roofs = measure_roofs(device, server, created=store.transactions.now())
        store.roofs.put(roofs)
    return roofs
