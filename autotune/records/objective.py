"""The objective of a study: the figure that it minimises, and the constraints that must hold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autotune.errors import RequestError
from autotune.records.plain import values_in

UNITS = {
    "latency_p50": "ms",
    "latency_p99": "ms",
    "throughput": "ms/item",
    "memory": "bytes",
    "energy": "J",
}
"""The unit of the figure that each objective minimises.

``latency_p50`` and ``latency_p99`` are percentiles of one call as its caller sees it. ``throughput`` is milliseconds an
item with as many requests in flight as it takes (its reciprocal is items a second). ``memory`` is the peak of device
memory, on a CPU of resident memory. ``energy`` is Joule a call, if the device counts its energy.
"""

OBJECTIVES = tuple(UNITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A measure of the user's own on (outputs, references), with the largest or smallest value allowed.

    ``function`` is ``module:callable`` or ``path.py:callable``; it gets two lists, one entry an input, each a dict of
    output name to tensor, and returns a number. ``code`` is the digest of its source and of the files that it reads,
    empty if that is unknown: a metric whose code has changed is another metric.
    """

    function: str
    at_most: float | None = None
    at_least: float | None = None
    code: str = ""

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"metric {self.function!r} needs exactly one of at_most and at_least")

    @property
    def name(self) -> str:
        """The callable's own name, without the place it comes from."""
        return self.function.rpartition(":")[2]

    def covers(self, requested: "Metric") -> bool:
        """Return whether passing this metric means passing the other: the same code, and a bound that is as strict.

        The place of the code does not matter if its digest is known.
        """
        same = self.code == requested.code and (self.name if self.code else self.function) == (
            requested.name if requested.code else requested.function
        )
        if self.at_most is not None and requested.at_most is not None:
            return same and self.at_most <= requested.at_most
        if self.at_least is not None and requested.at_least is not None:
            return same and self.at_least >= requested.at_least
        return False

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON; without ``code`` if it is unknown."""
        data: dict[str, object] = {"function": self.function, "at_most": self.at_most, "at_least": self.at_least}
        return {**data, "code": self.code} if self.code else data

    def __str__(self) -> str:
        bound = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"
        return f"{self.name} {bound}{f' (code {self.code[:8]})' if self.code else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The figure that a study minimises, and the accuracy that a candidate must keep.

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
        """The unit of the figure that is minimised."""
        return UNITS[self.name]

    def limit_of(self, output: str) -> float:
        """Return the signal error that the named output may have."""
        return dict(self.signal_error_by_output).get(output, self.signal_error)

    def refuse_other_outputs(self, outputs: Sequence[str]) -> None:
        """Raise RequestError if a limit is for an output that the model does not have."""
        unknown = [name for name, _ in self.signal_error_by_output if name not in outputs]
        if unknown:
            raise RequestError(
                f"constraints limit the signal_error of output {', '.join(unknown)}", found="no such output",
                expected=f"one of {', '.join(outputs)}, or default",
            )  # fmt: skip

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "signal_error": self.signal_error,
            "signal_error_by_output": dict(self.signal_error_by_output),
            "integer_agreement": self.integer_agreement,
            "metrics": [metric.as_dict() for metric in self.metrics],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Objective":
        """Read what :meth:`as_dict` wrote."""
        values = values_in(data)
        values["signal_error_by_output"] = tuple(sorted(values.get("signal_error_by_output", {}).items()))
        values["metrics"] = tuple(Metric(**metric) for metric in values.get("metrics", ()))
        return cls(**values)

    def serves(self, requested: "Objective") -> bool:
        """Return whether a plan that was found under these constraints serves a caller of others: never if looser."""
        return self.name == requested.name and not any(True for _ in self.looser_than(requested))

    def looser_than(self, requested: "Objective") -> Iterator[tuple[str, str, str]]:
        """Yield (constraint, bound asked for, bound here) for each constraint that is looser here."""
        if not self.signal_error <= requested.signal_error:
            yield "signal_error", f"{requested.signal_error:g}", f"{self.signal_error:g}"
        for name in sorted({name for name, _ in self.signal_error_by_output + requested.signal_error_by_output}):
            if not self.limit_of(name) <= requested.limit_of(name):
                yield f"signal_error of {name}", f"{requested.limit_of(name):g}", f"{self.limit_of(name):g}"
        if not self.integer_agreement >= requested.integer_agreement:
            yield "integer_agreement", f"{requested.integer_agreement:g}", f"{self.integer_agreement:g}"
        for metric in requested.metrics:
            if not any(own.covers(metric) for own in self.metrics):
                yield "metrics", str(metric), ", ".join(map(str, self.metrics)) or "none"
