"""The command ``autotune explain``."""

from typing import Annotated

import typer

from autotune.cli.output import Batch, Db, DeviceOption, Json, Structure, device_class, open_store, print_json, show
from autotune.cli.plan import find_plans


def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of the study.")],
    batch: Batch = None,
    device: DeviceOption = None,
    structure: Structure = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Explain a plan: its kernels before and after, its fusions, and for each GEMM the tile and the time it saved.

    Without --batch, the plans of all batches. If several plans have the name, all are explained. With --json one plan
    is one object; several plans are a list.
    """
    from autotune.report.distinction import differing, named
    from autotune.report.explain import explanation
    from autotune.report.explain_view import explanation_view

    with open_store(db) as store:
        plans = find_plans(store, model, batch, device_class(device), structure)
        explanations = [explanation(plan, store) for plan in plans]
    if json:
        print_json(explanations[0] if len(explanations) == 1 else explanations)
        return
    parts = differing(plans)
    for plan, explained in zip(plans, explanations, strict=True):
        show(explanation_view(explained, named(plan, parts)))
