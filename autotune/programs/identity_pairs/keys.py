"""All keys that follow from a captured model and a request for it: Keys."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from autotune.programs.identity_pairs.request import Request
from autotune.records.canonical import digest
from autotune.records.device import Toolchain
from autotune.records.identity import ArtifactKey, Conditions, Identity, PlanKey

if TYPE_CHECKING:
    from autotune.model.capture import Captured


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The fingerprints of a model, and the projections of its identity."""

    structure: str
    weights: str
    form: str
    study: str
    family: str
    trial: str
    plan: PlanKey
    artifact: ArtifactKey

    def differing(self, other: "Keys") -> set[str]:
        """Return the names of the keys that are not equal."""
        return {name for name in KEYS if getattr(self, name) != getattr(other, name)}


KEYS = tuple(key.name for key in fields(Keys))


def keys_of(captured: "Captured", request: Request, inputs: str) -> Keys:
    """Return the keys of a captured model; ``inputs`` is a digest of the way in which its inputs are made."""
    toolchain = Toolchain.of(request.toolchain)
    workload = captured.workload
    conditions = Conditions(
        form=captured.form.digest,
        inputs=digest([inputs, request.files]),
        toolchain=toolchain.digest,
        measuring=request.measuring,
        tune_kernels=request.tune_kernels,
    )
    identity = Identity(
        name=workload.name,
        structure=workload.structure,
        weights=workload.weights,
        device_class=request.device_class,
        objective=request.objective,
        serve_as=request.serve_as,
        space=request.space,
        seed=request.seed,
        conditions=conditions,
    )
    return Keys(
        structure=workload.structure,
        weights=workload.weights,
        form=captured.form.digest,
        study=identity.study,
        family=identity.family,
        trial=identity.trial or "",
        plan=identity.plan,
        artifact=ArtifactKey(weights=workload.weights, toolchain=toolchain, kernels=request.kernels),
    )
