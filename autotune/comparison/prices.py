"""A file of prices that the user owns: read_prices, Prices.

::

    currency = "EUR"
    electricity_per_kwh = 0.25        # optional; for the energy that a device measures

    [devices."nvidia-h200"]           # a part of an SKU's name
    per_hour = 3.90

No price is known to autotune itself, and none is ever guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.comparison.own_file import OwnFile
from autotune.comparison.selection import nearest
from autotune.records.device import names_sku, slug

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

        The name with most letters counts if several fit. RequestError if two of that length fit.
        """
        name = self.name_for(device_class)
        return None if name is None else self.per_hour[name]

    def name_for(self, device_class: str) -> str | None:
        """Return the name in the file that a device class is priced by."""
        sku = device_class.split("/", 1)[0]
        fitting = [name for name in self.per_hour if name in (device_class, sku) or names_sku(name, sku)]
        if not fitting:
            return None
        longest = max(map(len, fitting))
        best = [name for name in fitting if len(name) == longest]
        if len(best) > 1:
            raise _file(Path(self.path)).refused(
                f"two prices for {sku}: {' and '.join(sorted(best))}", "one price for each SKU"
            )
        return best[0]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "currency": self.currency, "electricity_per_kwh": self.electricity_per_kwh, "per_hour": dict(self.per_hour),
            "path": self.path,
        }  # fmt: skip


def read_prices(path: Path) -> Prices:
    """Read a file of prices; RequestError says which entry cannot be used."""
    file = _file(path)
    data = file.read(("currency", "electricity_per_kwh", "devices"))
    currency = data.get("currency")
    if not isinstance(currency, str) or not currency.strip():
        raise file.refused(f"currency {currency!r}", 'the currency of all prices, such as currency = "EUR"')
    currency = currency.strip()
    electricity = data.get("electricity_per_kwh")
    return Prices(
        currency=currency,
        per_hour={name: _device_price(file, name, entry, currency) for name, entry in file.devices(data).items()},
        electricity_per_kwh=None if electricity is None else file.positive("electricity_per_kwh", electricity),
        path=str(path),
    )


def unknown_names(prices: Prices, device_classes: Sequence[str]) -> dict[str, str]:
    """Return the names of a file that price no device class, each with the reason."""
    skus = {name.split("/", 1)[0] for name in device_classes}
    used = {prices.name_for(name) for name in device_classes}
    unknown = {}
    for name in prices.per_hour:
        fitting = sorted(sku for sku in skus if names_sku(name, sku))
        if name in used:
            continue
        if fitting:
            longer = " and ".join(sorted({str(prices.name_for(sku)) for sku in fitting}))
            unknown[name] = f"fits {', '.join(fitting)}, and so does the longer name {longer}, which counts"
        else:
            unknown[name] = f"fits no device of the database; there are: {nearest(slug(name), skus) or 'none'}"
    return unknown


def _file(path: Path) -> OwnFile:
    return OwnFile(
        path=path, what="the prices", example=EXAMPLE, run=f"autotune prices check {path}, once it is corrected"
    )


def _device_price(file: OwnFile, name: str, entry: Mapping[str, object], currency: str) -> float:
    if not slug(name):
        raise file.refused(f"a device {name!r}", "a part of an SKU's name")
    file.refuse_others(f"devices.{name}", entry, ("per_hour", "currency"))
    own = entry.get("currency", currency)
    if own != currency:
        raise file.refused(
            f"{name} is priced in {own}, the file in {currency}",
            "one currency for all devices: no rate of exchange is known here",
        )
    if "per_hour" not in entry:
        raise file.refused(f"devices.{name} has no per_hour", "its price for an hour of use")
    return file.positive(f"devices.{name}.per_hour", entry["per_hour"])
