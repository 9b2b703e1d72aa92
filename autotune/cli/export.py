"""The command ``autotune export``."""

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.output import Batch, Db, DeviceOption, Json, Structure, device_class, open_store, print_json

BUNDLE = "bundle"


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
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="bundle, or a serving format (serve_as of a study).")
    ] = BUNDLE,
    db: Db = None,
    json: Json = False,
) -> None:
    """Write a plan as a bundle, or as files that a server loads by itself.

    A bundle is a folder that autotune.load_bundle loads on a machine without the database: the artifact, which is
    compiled code, and a manifest with the plan and its evidence. In a format of servers the folder holds the model file
    and plan.json; only a plan that was searched for with serve_as can be written so. Exit code 2 if several plans fit
    the arguments.
    """
    from autotune import registry
    from autotune.cli.plan import find_plans
    from autotune.deploy.bundle import write_bundle
    from autotune.deploy.served_files import write_served
    from autotune.deploy.signing import PrivateKey
    from autotune.errors import RequestError

    formats = (BUNDLE, *registry.serving_formats())
    if format_ not in formats:
        raise RequestError("an export has a format", found=format_, expected=f"one of {', '.join(formats)}")
    if sign is not None and format_ != BUNDLE:
        raise RequestError("a bundle is signed", found=f"--sign with --format {format_}", expected="a bundle")
    key = None if sign is None else PrivateKey(sign)
    with open_store(db) as store:
        fitting = find_plans(store, model, batch, device_class(device), structure)
        if format_ != BUNDLE:
            fitting = [found for found in fitting if found.serve_as == format_] or fitting
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
        if format_ == BUNDLE:
            write_bundle(plans[0], store, out, key=key)
        else:
            write_served(plans[0], store, format_, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if json:
        signed_too = {"signed": key is not None} if format_ == BUNDLE else {}
        print_json({"folder": str(out), "format": format_, "plan": plans[0].uid, "bytes": size, **signed_too})
        return
    signed = ", signed" if key is not None else ""
    typer.echo(f"wrote {out}: plan {plans[0].uid[:8]} ({plans[0].configuration}), {size / 1e6:.1f} MB{signed}")
    if format_ == BUNDLE:
        typer.echo(f"to load it: python -c \"import autotune; print(autotune.load_bundle('{out}'))\"")
    else:
        files = ", ".join(sorted(path.name for path in out.iterdir()))
        typer.echo(f"files: {files}; plan.json has the order of inputs and outputs")
