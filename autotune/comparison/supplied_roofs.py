"""A file of roofs that the user supplies for devices without measurements: read_supplied_roofs, SuppliedRoofs.

::

    [devices."nvidia-a100"]           # an SKU's name, or a part of it
    bandwidth_gb_s = 1555
    tflops = { fp32 = 19.5, fp16 = 312 }
    launch_us = 6.0

Nothing is known of a device but what the file says, and no measured figure is ever replaced by one of it.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from autotune.comparison.prices import positive_number
from autotune.comparison.roofline import Ceilings
from autotune.errors import RequestError
from autotune.records.device import slug
from autotune.records.roofs import PRECISIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = '[devices."nvidia-a100"] with bandwidth_gb_s = 1555, tflops = {fp16 = 312} and launch_us = 6'
KEYS = ("bandwidth_gb_s", "tflops", "launch_us")


@dataclass(frozen=True, slots=True, kw_only=True)
class SuppliedRoofs:
    """Rates by the name of an SKU as a slug."""

    by_sku: Mapping[str, Ceilings]
    path: str = ""

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        devices = {sku: {name: asdict(ceilings)[name] for name in KEYS} for sku, ceilings in self.by_sku.items()}
        return {"path": self.path, "devices": devices}


def read_supplied_roofs(path: Path) -> SuppliedRoofs:
    """Read a file of roofs; RequestError says which entry cannot be used."""
    place = str(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(place, error.strerror or str(error), f"a TOML file: {EXAMPLE}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _refused(place, str(error), f"a TOML file: {EXAMPLE}") from error
    _refuse_unknown(place, "the file", data, ("devices",))
    devices = data.get("devices")
    if not isinstance(devices, dict) or not devices:
        raise _refused(place, "no devices", EXAMPLE)
    by_sku: dict[str, Ceilings] = {}
    for name, entry in devices.items():
        sku = slug(name)
        if not sku or sku in by_sku:
            raise _refused(place, f"a device {name!r}", "the name of an SKU, and one entry for each")
        by_sku[sku] = _ceilings(place, f"devices.{name}", entry)
    return SuppliedRoofs(by_sku=by_sku, path=place)


def _ceilings(place: str, where: str, entry: object) -> Ceilings:
    if not isinstance(entry, dict):
        raise _refused(place, f"{where} = {entry!r}", EXAMPLE)
    _refuse_unknown(place, where, entry, KEYS)
    missing = [key for key in KEYS if key not in entry]
    if missing:
        raise _refused(place, f"{where} has no {', '.join(missing)}", f"all of {', '.join(KEYS)}")
    rates = entry["tflops"]
    if not isinstance(rates, dict) or not rates:
        raise _refused(place, f"{where}.tflops = {rates!r}", "a rate for each precision, such as {fp16 = 312}")
    _refuse_unknown(place, f"{where}.tflops", rates, PRECISIONS)
    return Ceilings(
        bandwidth_gb_s=_number(place, f"{where}.bandwidth_gb_s", entry["bandwidth_gb_s"]),
        tflops={name: _number(place, f"{where}.tflops.{name}", rate) for name, rate in rates.items()},
        launch_us=_number(place, f"{where}.launch_us", entry["launch_us"]),
    )


def _number(place: str, key: str, value: object) -> float:
    number = positive_number(value)
    if number is None:
        raise _refused(place, f"{key} = {value!r}", "a number above 0")
    return number


def _refuse_unknown(place: str, where: str, entry: Mapping[str, object], accepted: Sequence[str]) -> None:
    unknown = sorted(set(entry) - set(accepted))
    if unknown:
        raise _refused(place, f"{', '.join(unknown)} in {where}", f"only {', '.join(accepted)}")


def _refused(path: str, found: str, expected: str) -> RequestError:
    return RequestError(f"the roofs in {path} cannot be used", found=found, expected=expected)
