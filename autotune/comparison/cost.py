"""The cost of a million items, and the price at which one device costs as much as another."""

from collections.abc import Mapping

from autotune.comparison.figures import Figure
from autotune.comparison.prices import Prices

MILLION = 1_000_000
SECONDS_PER_HOUR = 3600
JOULES_PER_KWH = 3.6e6


def cost_figure(figures: Mapping[str, Figure], device_class: str, prices: Prices | None) -> Figure:
    """Return the cost of a million items at a plan's throughput, in the currency of the prices.

    The device's energy is added if it was measured and the price of electricity is known; the note says if not.
    """
    if prices is None:
        return Figure(note="not known: no file of prices was given (--prices)")
    per_hour = prices.of(device_class)
    if per_hour is None:
        return Figure(note=f"not known: no price for {device_class.split('/', 1)[0]}")
    throughput, energy = figures["throughput"], figures["energy"]
    if throughput.value is None:
        return Figure(note=f"not known: the throughput is {throughput.note}")
    hire = throughput.inverse(MILLION / SECONDS_PER_HOUR * per_hour)
    return _with_energy(hire, throughput.note, energy, prices)


def _with_energy(hire: Figure, basis: str, energy: Figure, prices: Prices) -> Figure:
    if prices.electricity_per_kwh is None or energy.value is None or hire.value is None:
        missing = energy.note if prices.electricity_per_kwh is not None else "its price is not given"
        return Figure(value=hire.value, interval=hire.interval, note=f"{basis}; without electricity: {missing}")
    factor = MILLION / JOULES_PER_KWH * prices.electricity_per_kwh
    low, high = (hire_end + factor * energy_end for hire_end, energy_end in zip(hire.ends, energy.ends, strict=True))
    return Figure(value=hire.value + factor * energy.value, interval=(low, high), note=f"{basis}; with electricity")


def break_even(throughput: Figure, own: Figure, other: Figure, per_hour: float) -> float | None:
    """Return the price per hour at which a device costs as much as another one, at its present throughput.

    ``own`` and ``other`` are the costs of a million items, ``per_hour`` is the present price of the device, so that its
    electricity stays as it is. ``None`` if a figure is unknown, or if the electricity alone costs as much.
    """
    if throughput.value is None or own.value is None or other.value is None:
        return None
    hours = MILLION / throughput.value / SECONDS_PER_HOUR
    price = per_hour + (other.value - own.value) / hours
    return price if price > 0 else None
