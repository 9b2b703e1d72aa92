"""The result of one configuration."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from autotune.errors import OutOfMemoryError, WorkError
from autotune.records.configuration import Configuration
from autotune.records.plain import values_in

Stage = Literal["build", "load", "check", "measure"]
FailureKind = Literal["error", "timeout", "crash", "out_of_memory", "inaccurate", "non_finite", "log_flood", "protocol"]
TrialState = Literal["running", "complete", "pruned", "infeasible", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The reason why a trial failed: its stage, the kind of failure, a sentence, and the tail of its log.

    ``figure`` is the value that broke a limit (a signal error, a signal number), if there is one.
    """

    stage: Stage
    kind: FailureKind
    detail: str
    log_tail: str = ""
    figure: float | None = None

    def __post_init__(self) -> None:
        if self.stage not in get_args(Stage):
            raise ValueError(f"stage {self.stage!r} is not one of {get_args(Stage)}")
        if self.kind not in get_args(FailureKind):
            raise ValueError(f"failure kind {self.kind!r} is not one of {get_args(FailureKind)}")

    @property
    def exception(self) -> type[WorkError]:
        """The exception to raise if work cannot continue for this reason."""
        return OutOfMemoryError if self.kind == "out_of_memory" else WorkError

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.stage}: {self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Raw samples with their conditions; every statistic is derived from them.

    ``samples_ms`` are wall-clock milliseconds of single calls, one tuple a block, blocks in the order they ran;
    ``device_samples_ms`` are further calls on the device's own clock, if it has one. ``conditions`` describe how they
    were taken (process, threads, clocks, versions, seed); ``protocol`` names the rules of the measurement, and two
    measurements compare only if it is the same.
    """

    samples_ms: tuple[tuple[float, ...], ...]
    device_samples_ms: tuple[tuple[float, ...], ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    schema: int = 1

    def __post_init__(self) -> None:
        if not self.samples_ms or not all(self.samples_ms):
            raise ValueError("a measurement needs at least one block with at least one sample")
        for block in (*self.samples_ms, *self.device_samples_ms):
            for sample in block:
                if not (math.isfinite(sample) and sample > 0):
                    raise ValueError(f"a sample is a positive number of milliseconds, found {sample!r}")

    @property
    def flat_ms(self) -> tuple[float, ...]:
        """All wall-clock samples in the order they were taken."""
        return tuple(sample for block in self.samples_ms for sample in block)

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "samples_ms": [list(block) for block in self.samples_ms],
            "device_samples_ms": [list(block) for block in self.device_samples_ms],
            "conditions": dict(self.conditions),
            "protocol": dict(self.protocol),
            "schema": self.schema,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Measurement":
        """Read what :meth:`as_dict` wrote."""
        values = values_in(data)
        return cls(
            samples_ms=tuple(tuple(block) for block in values["samples_ms"]),
            device_samples_ms=tuple(tuple(block) for block in values.get("device_samples_ms", ())),
            conditions=values.get("conditions", {}),
            protocol=values.get("protocol", {}),
            schema=values.get("schema", 1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration built, checked and timed in a study.

    ``uid`` is the same wherever the trial travels; ``number`` counts within its study; ``attempt`` counts how often its
    build was begun. ``latency_ms`` is the median of its screening samples (of the undisturbed ones while others use the
    device), ``score`` what the objective minimises in its own unit (``None`` if that is this latency),
    ``signal_error`` the worst over its outputs.
    ``kernels`` is the digest of the tuned kernels that the build was handed, empty if it was handed none. ``reused``
    says that the result came from an earlier study of the same workload, device class and toolchain.
    """

    uid: str
    number: int
    configuration: Configuration
    state: TrialState
    attempt: int = 1
    latency_ms: float | None = None
    score: float | None = None
    signal_error: float | None = None
    build_s: float | None = None
    artifact: str | None = None
    toolchain: str = ""
    kernels: str = ""
    failure: Failure | None = None
    reused: bool = False

    def __post_init__(self) -> None:
        if self.state not in get_args(TrialState):
            raise ValueError(f"trial state {self.state!r} is not one of {get_args(TrialState)}")
        if (self.failure is not None) != (self.state in ("failed", "infeasible")):
            raise ValueError(f"trial {self.number} is {self.state} and {'has' if self.failure else 'lacks'} a failure")
        if self.state == "complete" and not (self.latency_ms is not None and 0 < self.latency_ms < math.inf):
            raise ValueError(f"complete trial {self.number} needs a positive latency, found {self.latency_ms!r}")
        if self.score is not None and not 0 < self.score < math.inf:
            raise ValueError(f"the score of trial {self.number} is a positive number, found {self.score!r}")
        if self.number < 0 or self.attempt < 1:
            raise ValueError("a trial's number starts at 0 and its attempt at 1")

    @property
    def ranked_by(self) -> float | None:
        """The figure by which it is compared with other trials of its study; lower is better."""
        return self.latency_ms if self.score is None else self.score

    @property
    def is_inaccurate(self) -> bool:
        """Whether the gate refused its answers."""
        return self.failure is not None and self.failure.kind in ("inaccurate", "non_finite")

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        data = asdict(self)
        data["configuration"] = self.configuration.as_dict()
        return data
