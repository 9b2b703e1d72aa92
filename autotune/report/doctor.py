"""What ``autotune doctor`` found, for people to read."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from autotune.report import words
from autotune.report.fitting_table import FittingTable


def doctor_view(document: Mapping[str, Any]) -> RenderableType:
    """Devices, versions, the database, and one row a backend and device with the reason and the remedy."""
    devices = FittingTable(title="Devices", title_justify="left")
    for column in ("device", "name", "device class"):
        devices.add_column(column, overflow="fold")
    for device in document["devices"]:
        devices.add_row(device["device"], device["name"], device["device_class"])
    versions = ", ".join(f"{name} {version}" for name, version in document["toolchain"].items())
    database = document["database"]
    state = f"{database['location']} ({database['state']})"
    return Group(devices, _backends_table(document), Text(f"toolchain: {versions}"), Text(f"database: {state}"))


def _backends_table(document: Mapping[str, Any]) -> FittingTable:
    proved = document["proved"]
    how = "each proved on a toy model in a process of its own"
    if not proved:
        how = "only looked for: nothing was built or proved; autotune doctor without --quick proves them"
    table = FittingTable(title=f"Backends, {how}", title_justify="left")
    for column in ("backend", "device", "works" if proved else "found"):
        table.add_column(column, no_wrap=True)
    if proved:
        table.add_column("took", justify="right", no_wrap=True)
    table.add_column("reason, and what to do", overflow="fold")
    for backend in document["backends"]:
        good = backend["works" if proved else "found"]
        mark = Text("yes", style="green") if good else Text("no", style="red")
        advice = backend["reason"] + (f"\n→ {backend['remedy']}" if backend["remedy"] else "")
        took = (words.seconds(backend["seconds"]) if backend["seconds"] else "–",) if proved else ()
        table.add_row(backend["backend"], backend["device"], mark, *took, Text(advice))
    return table
