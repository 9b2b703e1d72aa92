"""What is minimised, and what must hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNITS = {
    "latency_p50": "ms",
    "latency_p99": "ms",
    "throughput": "ms/item",
    "memory": "bytes",
    "energy": "J",
}
"""What each objective minimises.

``latency_p50`` and ``latency_p99`` are percentiles of one call as its caller sees it. ``throughput`` is milliseconds an
item with as many requests in flight as it takes (its reciprocal is items a second). ``memory`` is the peak of device
memory, on a CPU of resident memory. ``energy`` is Joule a call, where the device counts its energy.
"""

OBJECTIVES = tuple(UNITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A measure of the user's own on (outputs, references), with the largest or smallest value allowed.

    ``function`` is ``module:callable`` or ``path.py:callable``; it gets two lists, one entry an input, each a dict of
    output name to tensor, and returns a number.
    """

    function: str
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"metric {self.function!r} needs exactly one of at_most and at_least")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What a study minimises, and the accuracy a candidate must keep.

    ``signal_error`` limits ‖y − ref‖ / ‖ref − mean(ref)‖ of every floating output, ``signal_error_by_output`` that of
    single outputs by name; ``integer_agreement`` is the least share of equal elements of an integer output.
    """

    name: str = "latency_p50"
    signal_error: float = 2e-2
    signal_error_by_output: tuple[tuple[str, float], ...] = ()
    integer_agreement: float = 0.99
    metrics: tuple[Metric, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ValueError(f"objective {self.name!r} is not one of {', '.join(OBJECTIVES)}")
        for limit in (self.signal_error, *(value for _, value in self.signal_error_by_output)):
            if not 0 < limit < 1:
                raise ValueError(f"a signal error limit lies between 0 and 1, found {limit!r}")
        if not 0 < self.integer_agreement <= 1:
            raise ValueError(f"integer_agreement lies between 0 and 1, found {self.integer_agreement!r}")
        if list(self.signal_error_by_output) != sorted(self.signal_error_by_output):
            raise ValueError("signal_error_by_output must be sorted")

    @property
    def unit(self) -> str:
        """The unit of what is minimised."""
        return UNITS[self.name]

    def limit_of(self, output: str) -> float:
        """The signal error that the named output may have."""
        return dict(self.signal_error_by_output).get(output, self.signal_error)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "signal_error": self.signal_error,
            "signal_error_by_output": dict(self.signal_error_by_output),
            "integer_agreement": self.integer_agreement,
            "metrics": [{"function": m.function, "at_most": m.at_most, "at_least": m.at_least} for m in self.metrics],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Objective":
        """Read what :meth:`as_dict` wrote."""
        values = dict(data)
        values["signal_error_by_output"] = tuple(sorted(values.get("signal_error_by_output", {}).items()))
        values["metrics"] = tuple(Metric(**metric) for metric in values.get("metrics", ()))
        return cls(**values)

    def serves(self, asked: "Objective") -> bool:
        """Whether a plan found under these constraints answers a caller who asks for ``asked``: never if looser."""
        names = {name for name, _ in self.signal_error_by_output + asked.signal_error_by_output}
        return (
            self.name == asked.name
            and self.signal_error <= asked.signal_error
            and all(self.limit_of(name) <= asked.limit_of(name) for name in names)
            and self.integer_agreement >= asked.integer_agreement
            and set(asked.metrics) <= set(self.metrics)
        )
