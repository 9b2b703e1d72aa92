"""The promoted winner of a study, with its evidence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from autotune.records.configuration import Configuration
from autotune.records.device import Device, Toolchain
from autotune.records.evidence import PlanEvidence
from autotune.records.identity import ArtifactKey, PlanKey
from autotune.records.objective import Objective
from autotune.records.plain import values_in

PlanStatus = Literal["promoted", "tie", "baseline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Configuration, artifact and evidence, and the conditions that the plan is valid for.

    It is found by its ``key``: structure, form of the answer, device class, objective (constraints included) and
    serving format; its artifact serves only models with the same ``weights`` under the same ``toolchain`` entries of
    its backend, and has the tuned ``kernels`` of this digest in it. ``fingerprint`` is the version of the fingerprints
    that it was recorded by; version 1 knew no ``form``.
    ``speedup`` is baseline over plan from the same finals, exactly 1.0 if the baseline won. ``evidence`` may be handed
    over as plain data.
    """

    uid: str
    name: str
    batch: int
    structure: str
    weights: str
    device: Device
    toolchain: Toolchain
    objective: Objective
    serve_as: str
    configuration: Configuration
    status: PlanStatus
    artifact: str | None
    latency_ms: float
    interval_ms: tuple[float, float]
    baseline_latency_ms: float
    speedup: float
    signal_error: float
    evidence: PlanEvidence = field(default_factory=lambda: PlanEvidence.from_dict({}), repr=False)
    created: str = ""
    form: str = ""
    kernels: str = ""
    fingerprint: int = 1
    schema: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.evidence, PlanEvidence):
            object.__setattr__(self, "evidence", PlanEvidence.from_dict(self.evidence))
        if self.status not in get_args(PlanStatus):
            raise ValueError(f"plan status {self.status!r} is not one of {get_args(PlanStatus)}")
        for value in (self.latency_ms, self.baseline_latency_ms, self.speedup, *self.interval_ms):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"plan {self.name}: latencies and speedup are positive numbers, found {value!r}")
        if self.status == "baseline" and self.speedup != 1.0:
            raise ValueError(f"plan {self.name}: a baseline plan has a speedup of exactly 1.0, found {self.speedup!r}")

    @property
    def key(self) -> PlanKey:
        """The key that it is found by."""
        return PlanKey(
            structure=self.structure,
            form=self.form,
            device_class=self.device.device_class,
            objective=self.objective,
            serve_as=self.serve_as,
        )

    @property
    def artifact_key(self) -> ArtifactKey:
        """Everything that its artifact was built from."""
        return ArtifactKey(weights=self.weights, toolchain=self.toolchain, kernels=self.kernels)

    @property
    def measured_under(self) -> Toolchain:
        """All versions that its finals were measured under; older evidence has none, then those that it depends on."""
        versions = self.evidence.toolchain
        return self.toolchain if versions is None else Toolchain.of(versions)

    @property
    def flags(self) -> tuple[str, ...]:
        """The conditions that disturbed its rounds in the finals, as in :mod:`autotune.measure.flags`."""
        winner = self.evidence.winner
        return () if winner is None else winner.flags

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "uid": self.uid,
            "name": self.name,
            "batch": self.batch,
            "structure": self.structure,
            "weights": self.weights,
            "device": self.device.as_dict(),
            "device_class": self.device.device_class,
            "toolchain": self.toolchain.as_dict(),
            "objective": self.objective.as_dict(),
            "serve_as": self.serve_as,
            "backend": self.configuration.backend,
            "configuration": self.configuration.as_dict(),
            "status": self.status,
            "artifact": self.artifact,
            "latency_ms": self.latency_ms,
            "interval_ms": list(self.interval_ms),
            "baseline_latency_ms": self.baseline_latency_ms,
            "speedup": self.speedup,
            "signal_error": self.signal_error,
            "flags": list(self.flags),
            "evidence": self.evidence.as_dict(),
            "created": self.created,
            "form": self.form,
            "kernels": self.kernels,
            "fingerprint": self.fingerprint,
            "schema": self.schema,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Plan":
        """Read what :meth:`as_dict` wrote."""
        values = values_in(data)
        for derived in ("backend", "device_class", "flags"):
            values.pop(derived, None)
        values["device"] = Device.from_dict(values["device"])
        values["toolchain"] = Toolchain.of(values["toolchain"])
        values["objective"] = Objective.from_dict(values["objective"])
        values["configuration"] = Configuration.from_dict(values["configuration"])
        values["interval_ms"] = tuple(values["interval_ms"])
        return cls(**values)
