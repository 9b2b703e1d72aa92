"""The result of one kernel on one problem."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from autotune.records.configuration import Configuration
from autotune.records.kernel_problem import GemmProblem
from autotune.records.plain import values_in
from autotune.records.trial import Failure

KernelState = Literal["complete", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTrial:
    """One kernel compiled, checked and timed on one problem, with a cold L2 cache before every call.

    Every model with the same problem uses it again, on the same device class (SKU, MIG profile, power limit) and under
    the same ``toolchain`` (the digest of the versions that kernels depend on). ``configuration`` names the kind of
    kernel as its backend and everything that is set at build and at launch. ``samples_us`` are microseconds of single
    calls on the device's clock, in their order; ``error`` is the largest error of an element, relative to the sum of
    the sizes of its terms, against a reference in fp64. ``made`` holds what the compiler reports of the kernel
    (registers, spilled_bytes, shared_bytes, stages, compile_s), if the kind of kernel reports it; ``conditions`` are
    those of the samples.
    """

    problem: GemmProblem
    device_class: str
    toolchain: str
    configuration: Configuration
    state: KernelState
    samples_us: tuple[float, ...] = ()
    error: float | None = None
    made: Mapping[str, float] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None

    def __post_init__(self) -> None:
        if self.state not in get_args(KernelState):
            raise ValueError(f"state {self.state!r} is not one of {get_args(KernelState)}")
        if (self.failure is not None) != (self.state == "failed"):
            raise ValueError(f"a kernel trial that is {self.state} {'has' if self.failure else 'lacks'} a failure")
        if self.state == "complete" and not self.samples_us:
            raise ValueError("a complete kernel trial needs samples")
        for sample in self.samples_us:
            if not (math.isfinite(sample) and sample > 0):
                raise ValueError(f"a sample is a positive number of microseconds, found {sample!r}")

    @property
    def median_us(self) -> float | None:
        """The median of the samples; ``None`` if it failed before it was timed."""
        return statistics.median(self.samples_us) if self.samples_us else None

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        data = asdict(self)
        data["problem"] = self.problem.as_dict()
        data["configuration"] = self.configuration.as_dict()
        data["samples_us"] = list(self.samples_us)
        data["made"], data["conditions"] = dict(self.made), dict(self.conditions)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "KernelTrial":
        """Read what :meth:`as_dict` wrote, also after a trip through JSON."""
        values = values_in(data)
        values["problem"] = GemmProblem.from_dict(values["problem"])
        values["configuration"] = Configuration.from_dict(values["configuration"])
        values["samples_us"] = tuple(values["samples_us"])
        values["failure"] = Failure(**values["failure"]) if values.get("failure") else None
        return cls(**values)
