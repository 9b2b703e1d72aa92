"""The command ``autotune doctor``."""

from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.output import Db, Json, errors, nothing_on_stdout, print_json, show

if TYPE_CHECKING:
    from autotune.execute.proof import Proof
    from autotune.records.device import Device
    from autotune.report.examination import DatabaseState, Examination


def doctor(
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="Prove on this device only: cpu, cuda or cuda:N.")
    ] = None,
    db: Db = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only look up what is installed; nothing is built or proved.")
    ] = False,
    json: Json = False,
) -> None:
    """Prove every installed backend on every kind of device of this machine, and report missing parts with remedies.

    Each backend builds, loads, runs and compares a toy model in a process of its own, several side by side. Exit code 1
    if none works; with --quick, if none is available.
    """
    with nothing_on_stdout():
        examination = examine(device, db, quick=quick)
    if json:
        print_json(examination.as_dict())
    else:
        from autotune.report.doctor import doctor_view

        show(doctor_view(examination))
    if not examination.usable:
        raise typer.Exit(1)


def examine(name: str | None, db: str | None, *, quick: bool = False) -> "Examination":
    """Examine a device by its name, by default one of each device class; ``quick`` proves nothing."""
    from autotune import registry
    from autotune.execute.proof import Proof, look, prove
    from autotune.report.examination import Examination
    from autotune.runtime import discovery, toolchain

    devices = discovery.devices()
    chosen = [discovery.find(name)] if name else _first_of_each_class(devices)

    def say(text: str) -> None:
        errors().print(text, markup=False, soft_wrap=True)

    if quick:
        proofs = look(registry.names(), chosen)
    else:
        proofs = prove(
            registry.names(), chosen, host=discovery.cpu(), on_proof=lambda proof: say(_line(proof)), tell=say
        )
    broken = [
        Proof(
            device="any", device_class="", backend=name, found=False, proved=False, works=False, reason=reason,
            remedy="repair or uninstall that package",
        )
        for name, reason in registry.broken().items()
    ]  # fmt: skip
    return Examination(
        proved=not quick,
        devices=devices,
        toolchain=toolchain.current(chosen[0]),
        database=_database(db),
        proofs=(*proofs, *broken),
    )


def _line(proof: "Proof") -> str:
    """Return the line that reports the end of a proof."""
    title = f"{proof.backend} on {proof.device}"
    if proof.works:
        return f"{title}: works ({proof.seconds:.1f} s)"
    return f"{title}: does not work: {proof.reason}" + (f" ({proof.seconds:.1f} s)" if proof.proved else "")


def _first_of_each_class(devices: "list[Device]") -> "list[Device]":
    """Return the first device of each class: the others are equal and need no proof."""
    first: dict[str, Device] = {}
    for device in devices:
        first.setdefault(device.device_class, device)
    return list(first.values())


def _database(db: str | None) -> "DatabaseState":
    """Return the state of the tuning database; none is created."""
    from autotune.database.location import locate
    from autotune.database.store import Store
    from autotune.errors import DatabaseError
    from autotune.report.examination import DatabaseState

    location = locate(db)
    if location.file is not None and not location.file.exists():
        return DatabaseState(location=location.shown, state="does not exist yet; the first study creates it")
    try:
        with Store.open(db, create=False) as store:
            plans, studies = len(store.plans.list()), len(store.studies.list())
            contents = f"{plans} plan{'' if plans == 1 else 's'}, {studies} stud{'y' if studies == 1 else 'ies'}"
            return DatabaseState(location=store.location, state=contents)
    except DatabaseError as error:
        return DatabaseState(location=location.shown, state=f"unusable: {error.found}")
