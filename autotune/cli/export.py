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
    plan: Annotated[
        str | None, typer.Option("--plan", metavar="UID", help="The beginning of the uid of a plan, if several fit.")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option("--sign", metavar="KEY_FILE", help="Sign it by this Ed25519 private key (PEM).")
    ] = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Write a plan as a bundle: a folder that autotune.load_bundle loads on a machine without the database.

    The bundle holds the artifact, which is compiled code, and a manifest with the plan and its evidence. Exit code 2 if
    several plans fit the arguments.
    """
    from autotune.cli.plan import find_plans
    from autotune.deploy.bundle import write_bundle
    from autotune.deploy.signing import PrivateKey
    from autotune.errors import RequestError

    key = None if sign is None else PrivateKey(sign)
    with open_store(db) as store:
        fitting = find_plans(store, model, batch, device_class(device), structure)
        plans = [found for found in fitting if found.uid.startswith((plan or "").lower())]
        if len(plans) != 1:
            shown = (
                f"plan {found.uid[:8]}: batch {found.batch}, {found.device.sku}, {found.objective.name}, served as "
                f"{found.serve_as}, structure {found.structure[:8]}, weights {found.weights[:8]}"
                for found in fitting
            )
            raise RequestError(
                f"one plan of {model} is exported", found="\n    ".join(shown),
                expected="--plan with the beginning of one of these uids",
            )  # fmt: skip
        write_bundle(plans[0], store, out, key=key)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if json:
        print_json({"bundle": str(out), "plan": plans[0].uid, "bytes": size, "signed": key is not None})
        return
    signed = ", signed" if key is not None else ""
    typer.echo(f"wrote {out}: plan {plans[0].uid[:8]} ({plans[0].configuration}), {size / 1e6:.1f} MB{signed}")
    typer.echo(f"to load it: python -c \"import autotune; print(autotune.load_bundle('{out}'))\"")
