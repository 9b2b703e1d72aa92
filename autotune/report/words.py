"""Figures and configurations as text for people."""

from collections.abc import Mapping

from autotune.records.configuration import Configuration

REDUCED = ("tf32", "bf16", "fp16")
"""The precisions that compute with fewer bits than the fp32 baseline."""


def milliseconds(value: float) -> str:
    """Write milliseconds in four significant digits, never in powers of ten: ``0.4451``, ``28.93``, ``2300``."""
    digits = 4
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if 0 < abs(value) < 0.1:
        digits = 5
    return f"{value:.{max(0, digits - whole)}f}"


def interval(bounds: "tuple[float, float] | list[float]") -> str:
    """Write both ends of an interval."""
    return f"{milliseconds(bounds[0])} – {milliseconds(bounds[1])}"


def latency(value: float, bounds: "tuple[float, float] | list[float]") -> str:
    """Write a latency with its interval."""
    return f"{milliseconds(value)} [{interval(bounds)}]"


def percentiles(figures: Mapping[str, float | None]) -> str:
    """Write the usual percentiles in milliseconds, and those for which the samples are too few."""
    names = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9"}
    values = [(label, figures.get(key)) for key, label in names.items()]
    backed = [f"{label} {milliseconds(value)}" for label, value in values if value is not None]
    missing = [label for label, value in values if value is None]
    text = f"{', '.join(backed)} ms" if backed else ""
    few = f"too few samples ({figures.get('n')}) for {', '.join(missing)}" if missing else ""
    return "; ".join(filter(None, (text, few)))


def figure(value: float, unit: str) -> str:
    """Write the value of an objective in the unit that people use for it."""
    return " ".join(_in_unit(value, unit))


def figure_with_interval(value: float, bounds: "tuple[float, float] | list[float]", unit: str) -> str:
    """Write the value of an objective with its interval; the smaller end is first, also for throughput."""
    ends = bounds[::-1] if unit == "ms/item" else bounds
    number, label = _in_unit(value, unit)
    return f"{number} [{' – '.join(_in_unit(end, unit)[0] for end in ends)}] {label}"


def _in_unit(value: float, unit: str) -> tuple[str, str]:
    if unit == "ms/item":
        return f"{1e3 / value:,.1f}", "items/s"
    if unit == "bytes":
        return f"{value / 2**20:,.1f}", "MiB"
    return (f"{value:.4g}", "J") if unit == "J" else (milliseconds(value), "ms")


def speedup(value: float) -> str:
    """Write a ratio to the baseline: ``1.25×``."""
    return f"{value:.2f}×"


def seconds(value: float) -> str:
    """Write a duration in seconds, from two minutes on in minutes and seconds."""
    return f"{value:.1f} s" if value < 120 else f"{int(value // 60)} min {int(value % 60)} s"


def signal_error(value: float | None) -> str:
    """Write a signal error in two digits; a dash if there is none."""
    return "–" if value is None else "0" if value == 0 else f"{value:.1e}"


def precision_of(configuration: Configuration) -> str:
    """Return the precision of a configuration."""
    return str(configuration.get("precision", "fp32"))


def is_reduced(configuration: Configuration) -> bool:
    """Return true if a configuration computes with fewer bits than the baseline."""
    return precision_of(configuration) in REDUCED


def knobs(configuration: Configuration) -> str:
    """Write the values of a configuration, precision first, without the backend's name."""
    values = dict(configuration.values)
    first = [str(values.pop("precision"))] if "precision" in values else []
    return ", ".join([*first, *(f"{name}={_plain(value)}" for name, value in values.items())]) or "default values"


def _plain(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
