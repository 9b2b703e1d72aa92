"""What ``autotune doctor`` found, for people to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.report import words


def doctor_view(document: Mapping[str, Any]) -> RenderableType:
    """Devices, versions, the database, and one row a backend and device with the reason and the remedy."""
    devices = Table(title="Devices", title_justify="left")
    for column in ("device", "name", "device class"):
        devices.add_column(column, overflow="fold")
    for device in document["devices"]:
        devices.add_row(device["device"], device["name"], device["device_class"])
    versions = ", ".join(f"{name} {version}" for name, version in document["toolchain"].items())
    database = document["database"]
    state = f"{database['location']} ({database['state']})"
    return Group(
        devices, _backends_table(document["backends"]), Text(f"toolchain: {versions}"), Text(f"database: {state}")
    )


def _backends_table(backends: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Backends, each proved on a toy model in a process of its own", title_justify="left")
    table.add_column("backend", no_wrap=True)
    table.add_column("device", no_wrap=True)
    table.add_column("works", no_wrap=True)
    table.add_column("took", justify="right", no_wrap=True)
    table.add_column("reason, and what to do", overflow="fold")
    for backend in backends:
        mark = Text("yes", style="green") if backend["works"] else Text("no", style="red")
        advice = backend["reason"] + (f"\n→ {backend['remedy']}" if backend["remedy"] else "")
        took = words.seconds(backend["seconds"]) if backend["seconds"] else "–"
        table.add_row(backend["backend"], backend["device"], mark, took, Text(advice))
    return table
