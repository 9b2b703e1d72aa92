"""``autotune doctor``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from autotune.cli.output import Db, Json, errors, nothing_on_stdout, print_json, show

if TYPE_CHECKING:
    from autotune.execute.proof import Proof
    from autotune.records.device import Device


def doctor(
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Prove on this one only: cpu, cuda or cuda:N.")
    ] = None,
    db: Db = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only look what is there: nothing is built, and nothing proved.")
    ] = False,
    json: Json = False,
) -> None:
    """Prove every installed backend on every kind of device here, and say what is missing and how to get it.

    Each backend builds, loads, runs and compares a toy model in a process of its own, several side by side. Exit code 1
    where none works; with --quick, where none is found.
    """
    with nothing_on_stdout():
        document = examine(device, db, quick=quick)
    if json:
        print_json(document)
    else:
        from autotune.report.doctor import doctor_view

        show(doctor_view(document))
    if not any(backend["found" if quick else "works"] for backend in document["backends"]):
        raise typer.Exit(1)


def examine(asked: str | None, db: str | None, *, quick: bool = False) -> dict[str, Any]:
    """Everything that ``doctor --json`` prints."""
    from autotune import registry
    from autotune.execute.proof import Proof, look, prove
    from autotune.runtime import discovery, toolchain

    there = discovery.devices()
    chosen = [discovery.find(asked)] if asked else _one_of_each(there)

    def say(text: str) -> None:
        errors().print(text, markup=False, soft_wrap=True)

    if quick:
        found = look(registry.names(), chosen)
    else:
        found = prove(
            registry.names(), chosen, host=discovery.cpu(), on_proof=lambda proof: say(_line(proof)), tell=say
        )
    broken = [
        Proof(
            device="any", device_class="", backend=name, found=False, proved=False, works=False, reason=reason,
            remedy="mend or uninstall that package",
        )
        for name, reason in registry.broken().items()
    ]  # fmt: skip
    return {
        "proved": not quick,
        "devices": [{"device": each.torch_name, **each.as_dict(), "device_class": each.device_class} for each in there],
        "toolchain": toolchain.current(chosen[0]).as_dict(),
        "database": _database(db),
        "backends": [proof.as_dict() for proof in (*found, *broken)],
    }


def _line(proof: "Proof") -> str:
    """What became of one proof, as it ends."""
    where = f"{proof.backend} on {proof.device}"
    if proof.works:
        return f"{where}: works ({proof.seconds:.1f} s)"
    return f"{where}: does not work: {proof.reason}" + (f" ({proof.seconds:.1f} s)" if proof.proved else "")


def _one_of_each(devices: "list[Device]") -> "list[Device]":
    """Return the first device of each class: equal ones would only be proved twice."""
    first: dict[str, Device] = {}
    for device in devices:
        first.setdefault(device.device_class, device)
    return list(first.values())


def _database(db: str | None) -> dict[str, str]:
    """Look at the tuning database without making one."""
    from autotune.database.location import locate
    from autotune.database.store import Store
    from autotune.errors import DatabaseError

    location = locate(db)
    if location.file is not None and not location.file.exists():
        return {"location": location.shown, "state": "not there yet; the first study makes it"}
    try:
        with Store.open(db, create=False) as store:
            return {
                "location": store.location,
                "state": f"{len(store.plans.list())} plans, {len(store.studies.list())} studies",
            }
    except DatabaseError as error:
        return {"location": location.shown, "state": f"unusable: {error.found}"}
