"""The result of ``autotune doctor`` for people."""

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.report import words
from autotune.report.examination import Examination
from autotune.report.fitting_table import FittingTable


def doctor_view(examination: Examination) -> RenderableType:
    """Show devices, versions, the database, and one row per backend and device with the reason and the remedy."""
    devices = FittingTable(title="Devices", title_justify="left")
    for column in ("device", "name", "device class"):
        devices.add_column(column, overflow="fold")
    for device in examination.devices:
        devices.add_row(device.torch_name, device.name, device.device_class)
    versions = ", ".join(f"{name} {version}" for name, version in examination.toolchain.versions)
    state = f"{examination.database.location} ({examination.database.state})"
    return Group(devices, _backends_table(examination), Text(f"toolchain: {versions}"), Text(f"database: {state}"))


def _backends_table(examination: Examination) -> FittingTable:
    proved = examination.proved
    method = "each proved on a toy model in a process of its own"
    if not proved:
        method = "looked up only: nothing was built or proved; autotune doctor without --quick proves them"
    table = FittingTable(title=f"Backends, {method}", title_justify="left")
    for column in ("backend", "device", "works" if proved else "available"):
        table.add_column(column, no_wrap=True)
    if proved:
        table.add_column("took", justify="right", no_wrap=True)
    table.add_column("reason → remedy", overflow="fold")
    for proof in examination.proofs:
        good = proof.works if proved else proof.found
        mark = Text("yes", style="green") if good else Text("no", style="red")
        advice = proof.reason + (f"\n→ {proof.remedy}" if proof.remedy else "")
        duration = (words.seconds(proof.seconds) if proof.seconds else "–",) if proved else ()
        table.add_row(proof.backend, proof.device, mark, *duration, Text(advice))
    return table
