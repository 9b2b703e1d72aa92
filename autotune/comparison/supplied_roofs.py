"""A file of roofs that the user supplies for devices without measurements: read_supplied_roofs, SuppliedRoofs.

::

    [devices."nvidia-a100"]           # an SKU's name, or a part of it
    bandwidth_gb_s = 1555
    tflops = { fp32 = 19.5, fp16 = 312 }
    launch_us = 6.0

Nothing is known of a device but what the file says, and no measured figure is ever replaced by one of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from autotune.comparison.own_file import OwnFile
from autotune.comparison.roofline import Ceilings
from autotune.records.device import names_sku, slug
from autotune.records.roofs import PRECISIONS

EXAMPLE = '[devices."nvidia-a100"] with bandwidth_gb_s = 1555, tflops = {fp16 = 312} and launch_us = 6'
KEYS = ("bandwidth_gb_s", "tflops", "launch_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuppliedRoofs:
    """Rates by the name of an SKU as a slug."""

    by_sku: Mapping[str, Ceilings]
    path: str = ""

    def named(self, devices: Sequence[str]) -> "SuppliedRoofs":
        """Return the roofs of those SKUs whose names have one of the parts in them; without parts all."""
        if not devices:
            return self
        chosen = [sku for sku in self.by_sku if any(names_sku(part, sku) for part in devices)]
        return replace(self, by_sku={sku: self.by_sku[sku] for sku in chosen})

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        devices = {sku: {name: asdict(ceilings)[name] for name in KEYS} for sku, ceilings in self.by_sku.items()}
        return {"path": self.path, "devices": devices}


def read_supplied_roofs(path: Path) -> SuppliedRoofs:
    """Read a file of roofs; RequestError says which entry cannot be used."""
    file = OwnFile(path=path, what="the roofs", example=EXAMPLE)
    by_sku: dict[str, Ceilings] = {}
    for name, entry in file.devices(file.read(("devices",))).items():
        sku = slug(name)
        if not sku or sku in by_sku:
            raise file.refused(f"a device {name!r}", "the name of an SKU, and one entry for each")
        by_sku[sku] = _ceilings(file, f"devices.{name}", entry)
    return SuppliedRoofs(by_sku=by_sku, path=str(path))


def _ceilings(file: OwnFile, where: str, entry: Mapping[str, object]) -> Ceilings:
    file.refuse_others(where, entry, KEYS)
    missing = [key for key in KEYS if key not in entry]
    if missing:
        raise file.refused(f"{where} has no {', '.join(missing)}", f"all of {', '.join(KEYS)}")
    rates = entry["tflops"]
    if not isinstance(rates, dict) or not rates:
        raise file.refused(f"{where}.tflops = {rates!r}", "a rate for each precision, such as {fp16 = 312}")
    file.refuse_others(f"{where}.tflops", rates, PRECISIONS)
    return Ceilings(
        bandwidth_gb_s=file.positive(f"{where}.bandwidth_gb_s", entry["bandwidth_gb_s"]),
        tflops={name: file.positive(f"{where}.tflops.{name}", rate) for name, rate in rates.items()},
        launch_us=file.positive(f"{where}.launch_us", entry["launch_us"]),
    )
