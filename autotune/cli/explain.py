"""``autotune explain``."""

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
    """Explain a plan: kernels before and after, what was fused where, which tile each GEMM got and what it saved.

    Without --batch every batch; several plans of the name are all explained. With --json one plan is one object;
    several are a list of them.
    """
    from autotune.report.distinction import differing, named
    from autotune.report.explain import explanation
    from autotune.report.explain_view import explanation_view

    with open_store(db) as store:
        plans = find_plans(store, model, batch, device_class(device), structure)
        found = [explanation(plan, store) for plan in plans]
    if json:
        print_json(found[0] if len(found) == 1 else found)
        return
    parts = differing(plans)
    for plan, one in zip(plans, found, strict=True):
        show(explanation_view(one, named(plan, parts)))
