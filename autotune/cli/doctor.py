"""``autotune doctor``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from autotune.cli.output import Db, Json, errors, nothing_on_stdout, print_json, show

if TYPE_CHECKING:
    from autotune.device import Device


def doctor(
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Prove on this one only: cpu, cuda or cuda:N.")
    ] = None,
    db: Db = None,
    json: Json = False,
) -> None:
    """Prove every installed backend on every kind of device here, and say what is missing and how to get it.

    Each backend builds, loads, runs and compares a toy model in a process of its own. Exit code 1 where none works.
    """
    with nothing_on_stdout():
        document = examine(device, db)
    if json:
        print_json(document)
    else:
        from autotune.report.doctor import doctor_view

        show(doctor_view(document))
    if not any(backend["works"] for backend in document["backends"]):
        raise typer.Exit(1)


def examine(asked: str | None, db: str | None) -> dict[str, Any]:
    """Everything that ``doctor --json`` prints."""
    from autotune import registry
    from autotune.execute.proof import Proof, prove
    from autotune.runtime import discovery, toolchain

    there = discovery.devices()
    chosen = [discovery.find(asked)] if asked else _one_of_each(there)

    def tell(proof: Proof) -> None:
        errors().print(f"{proof.backend}: {'works' if proof.works else proof.reason}", markup=False)

    backends = []
    for device in chosen:
        for proof in prove(registry.names(), device, tell):
            backends.append({"device": device.torch_name, "device_class": device.device_class, **proof.as_dict()})
    for name, reason in registry.broken().items():
        missing = {"works": False, "reason": reason, "remedy": "mend or uninstall that package", "seconds": 0.0}
        backends.append({"device": "any", "device_class": "", "backend": name, **missing, "signal_error": None})
    return {
        "devices": [{"device": each.torch_name, **each.as_dict(), "device_class": each.device_class} for each in there],
        "toolchain": toolchain.current(chosen[0]).as_dict(),
        "database": _database(db),
        "backends": backends,
    }


def _one_of_each(devices: "list[Device]") -> "list[Device]":
    """Return the first device of each class: equal ones would only be proved twice."""
    first: dict[str, Device] = {}
    for device in devices:
        first.setdefault(device.device_class, device)
    return list(first.values())


def _database(db: str | None) -> dict[str, str]:
    """Look at the tuning database without making one."""
    from autotune.database.engine import locate
    from autotune.database.store import Store
    from autotune.errors import DatabaseError

    location = locate(db)
    if location.file is not None and not location.file.exists():
        return {"location": location.shown, "state": "not there yet; the first study makes it"}
    try:
        with Store.open(db, create=False) as store:
            return {"location": store.location, "state": f"{len(store.plans())} plans, {len(store.studies())} studies"}
    except DatabaseError as error:
        return {"location": location.shown, "state": f"unusable: {error.found}"}
