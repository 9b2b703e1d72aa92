"""The commands ``autotune plan list``, ``autotune plan show`` and ``autotune plan check``."""

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.output import (
    Batch,
    BundleFolder,
    Db,
    DeviceOption,
    Json,
    On,
    RequireSignature,
    Structure,
    device_class,
    open_plans,
    print_json,
    show,
)

if TYPE_CHECKING:
    from autotune.database.reading import PlanReader
    from autotune.database.store import Store
    from autotune.records.plan import Plan

app = typer.Typer(help="List and show stored plans, and check bundles.", no_args_is_help=True)


@app.command("list")
def list_plans(batch: Batch = None, device: DeviceOption = None, db: Db = None, json: Json = False) -> None:
    """List the stored plans."""
    with open_plans(db) as store:
        plans = store.plans.list(batch=batch, device=device_class(device))
        if json:
            print_json([{key: value for key, value in plan.as_dict().items() if key != "evidence"} for plan in plans])
            return
        from autotune.report.plans import plans_table

        show(plans_table(plans, store.location))


@app.command("show")
def show_plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of the study.")],
    batch: Batch = None,
    device: DeviceOption = None,
    structure: Structure = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Show a plan with its device, toolchain, artifact and evidence; without --batch, the plans of all batches.

    If a batch and a device have several plans, such as those of two structures, all are shown. With --json one plan is
    one object; several plans are a list.
    """
    with open_plans(db) as store:
        plans = find_plans(store, model, batch, device_class(device), structure)
        if json:
            documents = [plan.as_dict() for plan in plans]
            print_json(documents[0] if len(documents) == 1 else documents)
            return
        from autotune.errors import ArtifactError
        from autotune.report.distinction import differing
        from autotune.report.plans import plan_view

        parts = differing(plans)
        for plan in plans:
            try:
                here = None if plan.artifact is None else store.artifacts.has(plan.artifact)
            except ArtifactError:
                here = None
            show(plan_view(plan, store.location, artifact_here=here, parts=parts))


@app.command("check")
def check_bundle(
    bundle: BundleFolder,
    on: On = None,
    require_signature: RequireSignature = None,
    json: Json = False,
) -> None:
    """Say whether the plan of a bundle runs here, by its records alone: nothing of its artifact is loaded.

    Exit code 1 if it must be built again here, or cannot run at all.
    """
    from autotune.deploy.portability import portability

    portable = portability(bundle, device=on, require_signature=require_signature)
    if json:
        print_json(portable.as_dict())
    else:
        typer.echo(str(portable))
    if not portable.runs:
        raise typer.Exit(1)


def find_plans(
    store: "Store | PlanReader", model: str, batch: int | None, device: str | None, structure: str | None = None
) -> "list[Plan]":
    """Return all plans that fit the arguments; if there is none, PlanNotFoundError with the plans that are there.

    ``structure`` is the beginning of the structure's digest.
    """
    from autotune.errors import PlanNotFoundError

    plans = store.plans.list(name=model, batch=batch, device=device)
    chosen = [plan for plan in plans if plan.structure.startswith((structure or "").lower())]
    if chosen:
        return chosen
    if plans:
        raise PlanNotFoundError(
            f"no plan for {model} of structure {structure} in {store.location}",
            found=f"plans of structure {', '.join(sorted({plan.structure[:8] for plan in plans}))}",
            expected="the beginning of one of these",
            run=f"autotune plan show {model}",
        )
    state = _study_without_plan(store, model, batch) if not store.plans.list(name=model) else ""
    if state:
        raise PlanNotFoundError(
            f"no plan for {model}{f' at batch {batch}' if batch else ''} in {store.location}",
            found=state, expected="a study whose finals decided",
            run="its autotune tune command again, which continues the study",
        )  # fmt: skip
    others = sorted({f"{plan.name} at batch {plan.batch} on {plan.device.sku}" for plan in store.plans.list()})
    same_name = [other for other in others if other.startswith(f"{model} at ")]
    on_device = f" on {device}" if device else ""
    raise PlanNotFoundError(
        f"no plan for {model}{f' at batch {batch}' if batch else ''}{on_device} in {store.location}",
        found=", ".join((same_name or others)[:12]) or "no plan at all",
        expected="a batch and a device of one of these" if same_name else "the name of a study that was tuned",
        run=f"autotune tune studies/{model}/study.yaml" if not others else f"autotune plan list --db {store.location}",
    )


def _study_without_plan(store: "Store | PlanReader", model: str, batch: int | None) -> str:
    """Describe the state of the newest study of a name that has no plan; empty if there is no such study."""
    from autotune.database.store import Store

    with contextlib.ExitStack() as opened:
        full = store if isinstance(store, Store) else opened.enter_context(Store.open(store.location, create=False))
        studies = full.studies.list(model, batch)
    if not studies:
        return ""
    newest = studies[-1]
    if undecided := newest.timings.get("undecided"):
        return f"a study whose finals could not decide: {undecided}"
    if newest.state == "running":
        return "a study that has not ended"
    return "a study that has ended, and whose plan a later study of the same model under another name has replaced"
