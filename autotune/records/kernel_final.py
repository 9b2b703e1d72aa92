"""The result of timing the best kernels of one problem against each other: KernelFinal."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.records.canonical import digest
from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.records.plain import values_in
from autotune.records.schema import refuse_later

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFinalist:
    """One kernel in a final, with the digest of the toolchain of its kind.

    ``rounds_us`` has the microseconds of its calls in each round, on the device's clock, in their order.
    """

    configuration: Configuration
    toolchain: str
    rounds_us: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.rounds_us or not all(self.rounds_us):
            raise ValueError(f"a finalist has calls in every round, found none of {self.configuration}")
        for sample in (sample for block in self.rounds_us for sample in block):
            if not (math.isfinite(sample) and sample > 0):
                raise ValueError(f"a sample is a positive number of microseconds, found {sample!r}")

    @property
    def round_medians_us(self) -> tuple[float, ...]:
        """The median of each round."""
        return tuple(statistics.median(block) for block in self.rounds_us)

    @property
    def median_us(self) -> float:
        """The median of the rounds' medians."""
        return statistics.median(self.round_medians_us)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "configuration": self.configuration.as_dict(), "toolchain": self.toolchain,
            "rounds_us": [list(block) for block in self.rounds_us],
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "KernelFinalist":
        """Read what :meth:`as_dict` wrote."""
        values = values_in(data)
        return cls(
            configuration=Configuration.from_dict(values["configuration"]), toolchain=values["toolchain"],
            rounds_us=tuple(tuple(block) for block in values["rounds_us"]),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFinal:
    """The best kernels of a problem on a device class, timed in rounds in one process.

    In every round each finalist has a block of calls, in random order, with a cold L2 cache before every call. So its
    medians compare with each other. They do not compare with those of kernel trials, each of which was timed alone: the
    lowest of many such medians flatters. ``conditions`` are those of all rounds.
    """

    problem: GemmProblem
    device_class: str
    finalists: tuple[KernelFinalist, ...]
    conditions: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        configurations = {finalist.configuration for finalist in self.finalists}
        if len(configurations) < 2 or len(configurations) < len(self.finalists):
            raise ValueError(f"a final has two kernels or more, each once, found {len(self.finalists)}")
        rounds = {len(finalist.rounds_us) for finalist in self.finalists}
        if len(rounds) > 1:
            raise ValueError(f"all finalists have the same number of rounds, found {sorted(rounds)}")

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: the same in every database."""
        return digest(self.as_dict())

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(self.finalists[0].rounds_us)

    @property
    def ranked(self) -> tuple[KernelFinalist, ...]:
        """The finalists, the fastest first."""
        return tuple(sorted(self.finalists, key=lambda finalist: (finalist.median_us, finalist.configuration.digest)))

    def of(self, configuration: Configuration) -> KernelFinalist | None:
        """Return the finalist with a configuration; ``None`` if it took no part."""
        return next((finalist for finalist in self.finalists if finalist.configuration == configuration), None)

    def ratio(self, left: Configuration, right: Configuration) -> float | None:
        """Return the time of a kernel relative to that of another one; ``None`` unless both took part."""
        over, under = self.of(left), self.of(right)
        return None if over is None or under is None else over.median_us / under.median_us

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "schema": SCHEMA, "problem": self.problem.as_dict(), "device_class": self.device_class,
            "finalists": [finalist.as_dict() for finalist in self.finalists], "conditions": dict(self.conditions),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "KernelFinal":
        """Read what :meth:`as_dict` wrote, also after a trip through JSON; ``ValueError`` for a later schema."""
        refuse_later(data, SCHEMA, what="a final of kernels")
        values = values_in(data)
        return cls(
            problem=GemmProblem.from_dict(values["problem"]), device_class=values["device_class"],
            finalists=tuple(map(KernelFinalist.from_dict, values["finalists"])), conditions=values["conditions"],
        )  # fmt: skip
