"""A file of prices that the user owns: read_prices, Prices.

::

    currency = "EUR"
    electricity_per_kwh = 0.25        # optional; for the energy that a device measures

    [devices."nvidia-h200"]           # a part of an SKU's name
    per_hour = 3.90

No price is known to autotune itself, and none is ever guessed.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.comparison.selection import nearest
from autotune.errors import RequestError
from autotune.records.device import slug

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = 'currency = "EUR" and, for each SKU, [devices."nvidia-h200"] with per_hour = 3.90'


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices per hour by a part of an SKU's name, in one currency; ``electricity_per_kwh`` is ``None`` if unknown."""

    currency: str
    per_hour: Mapping[str, float]
    electricity_per_kwh: float | None = None
    path: str = ""

    def of(self, device_class: str) -> float | None:
        """Return the price per hour of a device class; ``None`` if the file has none.

        The longest name that fits counts. RequestError if two of that length fit.
        """
        name = self.name_for(device_class)
        return None if name is None else self.per_hour[name]

    def name_for(self, device_class: str) -> str | None:
        """Return the name in the file that a device class is priced by."""
        sku = device_class.split("/", 1)[0]
        fitting = [name for name in self.per_hour if name in (device_class, sku) or slug(name) in sku]
        if not fitting:
            return None
        longest = max(map(len, fitting))
        best = [name for name in fitting if len(name) == longest]
        if len(best) > 1:
            raise _refused(self.path, f"two prices for {sku}: {' and '.join(sorted(best))}", "one price for each SKU")
        return best[0]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "currency": self.currency, "electricity_per_kwh": self.electricity_per_kwh, "per_hour": dict(self.per_hour),
            "path": self.path,
        }  # fmt: skip


def read_prices(path: Path) -> Prices:
    """Read a file of prices; RequestError says which entry cannot be used."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(str(path), error.strerror or str(error), f"a TOML file: {EXAMPLE}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _refused(str(path), str(error), f"a TOML file: {EXAMPLE}") from error
    place = str(path)
    _refuse_unknown(place, "the file", data, ("currency", "electricity_per_kwh", "devices"))
    currency = data.get("currency")
    if not isinstance(currency, str) or not currency.strip():
        raise _refused(place, f"currency {currency!r}", 'the currency of all prices, such as currency = "EUR"')
    devices = data.get("devices")
    if not isinstance(devices, dict) or not devices:
        raise _refused(place, "no devices", EXAMPLE)
    return Prices(
        currency=currency.strip(),
        per_hour={name: _device_price(place, name, entry, currency.strip()) for name, entry in devices.items()},
        electricity_per_kwh=_electricity(place, data),
        path=place,
    )


def unknown_names(prices: Prices, device_classes: Sequence[str]) -> dict[str, str]:
    """Return the names of a file that fit no device class, each with the nearest SKUs."""
    skus = {name.split("/", 1)[0] for name in device_classes}
    used = {prices.name_for(name) for name in device_classes}
    return {name: nearest(slug(name), skus) for name in prices.per_hour if name not in used}


def _device_price(place: str, name: str, entry: object, currency: str) -> float:
    if not slug(name):
        raise _refused(place, f"a device {name!r}", "a part of an SKU's name")
    if not isinstance(entry, dict):
        raise _refused(place, f"devices.{name} = {entry!r}", f'[devices."{name}"] with per_hour = 3.90')
    _refuse_unknown(place, f"devices.{name}", entry, ("per_hour", "currency"))
    own = entry.get("currency", currency)
    if own != currency:
        raise _refused(
            place, f"{name} is priced in {own}, the file in {currency}",
            "one currency for all devices: no rate of exchange is known here",
        )  # fmt: skip
    if "per_hour" not in entry:
        raise _refused(place, f"devices.{name} has no per_hour", "its price for an hour of use")
    return _price(place, f"devices.{name}.per_hour", entry["per_hour"])


def _electricity(place: str, data: Mapping[str, object]) -> float | None:
    if "electricity_per_kwh" not in data:
        return None
    return _price(place, "electricity_per_kwh", data["electricity_per_kwh"])


def _price(place: str, key: str, value: object) -> float:
    number = positive_number(value)
    if number is None:
        raise _refused(place, f"{key} = {value!r}", "a number above 0")
    return number


def positive_number(value: object) -> float | None:
    """Return a value of a TOML file as a number above 0; ``None`` for another value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        return None
    return float(value)


def _refuse_unknown(place: str, where: str, entry: Mapping[str, object], known: Sequence[str]) -> None:
    unknown = sorted(set(entry) - set(known))
    if unknown:
        raise _refused(place, f"{', '.join(unknown)} in {where}", f"only {', '.join(known)}")


def _refused(path: str, found: str, expected: str) -> RequestError:
    return RequestError(
        f"the prices in {path} cannot be used", found=found, expected=expected, run=f"autotune prices check {path}"
    )
