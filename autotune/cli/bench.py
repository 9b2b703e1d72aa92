"""The command ``autotune bench``."""

from typing import Annotated

import typer

from autotune.cli.output import (
    Batch,
    Db,
    DeviceOption,
    Json,
    Structure,
    device_class,
    errors,
    nothing_on_stdout,
    open_store,
    print_json,
    show,
)
from autotune.cli.plan import find_plans


def bench(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of the study whose plan is timed.")],
    batch: Batch = None,
    device: DeviceOption = None,
    on: Annotated[
        str, typer.Option("--on", metavar="DEVICE", help="The device to time it on: auto, cpu, cuda or cuda:N.")
    ] = "auto",
    structure: Structure = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Time a stored plan again and report whether its stored latency holds or has drifted.

    If several plans have the name, all are timed. With --json one plan is one object; several plans are a list.
    """
    from autotune.report.bench import bench_view
    from autotune.report.distinction import differing, named
    from autotune.runtime.discovery import find
    from autotune.study.bench import bench_plan

    def report(text: str) -> None:
        errors().print(text, markup=False, soft_wrap=True)

    here = find(on)
    with open_store(db) as store:
        plans = find_plans(store, model, batch, device_class(device) or here.device_class, structure)
        parts = differing(plans)
        outcomes = []
        for plan in plans:
            if not json:
                errors().print(f"timing {named(plan, parts)} on {here.name}", markup=False)
            with nothing_on_stdout():
                outcomes.append(bench_plan(plan, store, here, report))
    if json:
        documents = [outcome.as_dict() for outcome in outcomes]
        print_json(documents[0] if len(documents) == 1 else documents)
        return
    for outcome in outcomes:
        show(bench_view(outcome, parts))
