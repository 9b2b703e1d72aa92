"""The command ``autotune export``."""

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.output import Batch, Db, DeviceOption, Json, Structure, device_class, open_store, print_json


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of the study.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write; it must not exist.")],
    batch: Batch = None,
    device: DeviceOption = None,
    structure: Structure = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Write a plan as a bundle: a folder that autotune.load_bundle loads on a machine without the database.

    The bundle holds the artifact, which is compiled code, and a manifest with the plan and its evidence. Exit code 2 if
    several plans fit the arguments.
    """
    from autotune.cli.plan import find_plans
    from autotune.deploy.bundle import write_bundle
    from autotune.errors import RequestError

    with open_store(db) as store:
        plans = find_plans(store, model, batch, device_class(device), structure)
        if len(plans) > 1:
            shown = (
                f"plan {plan.uid[:8]}: batch {plan.batch}, {plan.device.sku}, structure {plan.structure[:8]}, "
                f"{plan.objective.name}, served as {plan.serve_as}"
                for plan in plans
            )
            raise RequestError(
                f"one plan of {model} is exported", found="\n    ".join(shown),
                expected="--batch, --device or --structure that leave one of them",
            )  # fmt: skip
        write_bundle(plans[0], store, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if json:
        print_json({"bundle": str(out), "plan": plans[0].uid, "bytes": size})
        return
    typer.echo(f"wrote {out}: plan {plans[0].uid[:8]} ({plans[0].configuration}), {size / 1e6:.1f} MB")
    typer.echo(f"to load it: python -c \"import autotune; print(autotune.load_bundle('{out}'))\"")
