"""What is asked of a drawn model beside itself, and all keys that follow: Asked, Keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from autotune.records.canonical import digest
from autotune.records.device import Toolchain
from autotune.records.identity import ArtifactKey, Conditions, Identity, PlanKey
from autotune.records.objective import Objective

if TYPE_CHECKING:
    from autotune.model.capture import Captured


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request apart from its model."""

    objective: Objective = field(default_factory=Objective)
    serve_as: str = "any"
    device_class: str = "toy-2c/avx2"
    toolchain: Mapping[str, str] = field(default_factory=lambda: {"torch": "2.13.0", "compiler": "13.2"})
    measuring: str = "rules"
    tune_kernels: bool = True
    kernels: str = ""
    space: str = "space"
    seed: int = 0
    files: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of a model that is asked for: fingerprints, and the projections of its identity."""

    structure: str
    weights: str
    form: str
    study: str
    family: str
    trial: str
    plan: PlanKey
    artifact: ArtifactKey

    def differing(self, other: "Keys") -> set[str]:
        """Name the keys that are not equal."""
        return {each.name for each in fields(Keys) if getattr(self, each.name) != getattr(other, each.name)}


KEYS = tuple(each.name for each in fields(Keys))


def keys_of(captured: "Captured", asked: Asked, inputs: Any) -> Keys:
    """Return the keys of a captured model; ``inputs`` is plain data that says how its inputs are made."""
    toolchain = Toolchain.of(asked.toolchain)
    workload = captured.workload
    conditions = Conditions(
        form=captured.form.digest, inputs=digest([inputs, asked.files]), toolchain=toolchain.digest,
        measuring=asked.measuring, tune_kernels=asked.tune_kernels,
    )  # fmt: skip
    identity = Identity(
        name=workload.name, structure=workload.structure, weights=workload.weights, device_class=asked.device_class,
        objective=asked.objective, serve_as=asked.serve_as, space=asked.space, seed=asked.seed, conditions=conditions,
    )  # fmt: skip
    return Keys(
        structure=workload.structure, weights=workload.weights, form=captured.form.digest, study=identity.study,
        family=identity.family, trial=identity.trial or "", plan=identity.plan,
        artifact=ArtifactKey(weights=workload.weights, toolchain=toolchain, kernels=asked.kernels),
    )  # fmt: skip
