"""What makes two requests, studies, trials, plans or artifacts the same.

Whatever decides an answer or a timing stands in :class:`Identity` and its :class:`Conditions`; each key is a named
projection of it:

======================  ===========================================================================================
key                     who uses it
======================  ===========================================================================================
``Identity.study``      the database: one row a study, "cached" only if this is equal
``Identity.family``     the same study for other weights or another toolchain, whose plan is rebuilt, not searched
``Identity.trial``      reuse of a trial by another study, beside its workload, configuration, toolchain and kernels
``Identity.plan``       the look-up of a plan, by :class:`PlanKey`: never by the inputs
``ArtifactKey``         whether a plan's artifact serves, or has to be built again
======================  ===========================================================================================

What cannot be described is refused when a model is captured; it is never left out of a key.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from autotune.records.canonical import canonical, digest
from autotune.records.device import Toolchain
from autotune.records.objective import Objective

FINGERPRINT = 2
"""The version of the fingerprints that this version of autotune makes.

Version 1 left graphs within graphs out of the structure, and kept neither the form of an answer nor the inputs of a
study. A structure without inner graphs has the same fingerprint in both.
"""


def objective_content(objective: Objective) -> dict[str, Any]:
    """Return an objective such that equal demands have equal canonical JSON: numbers as floats, metrics sorted."""

    def floats(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: floats(item) for key, item in value.items()}
        return float(value) if isinstance(value, int) else value

    content: dict[str, Any] = floats({key: value for key, value in objective.as_dict().items() if key != "metrics"})
    content["metrics"] = sorted((floats(metric) for metric in objective.as_dict()["metrics"]), key=canonical)
    return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a study's answers and timings depend on beside its model, device, objective, space and seed.

    ``form`` is the digest of the form of the answer, ``inputs`` of how every input is made, with the content of each
    file that is read. ``toolchain`` is the digest of the entries that the participating backends declare, ``measuring``
    of the rules by which candidates are timed. Without ``tune_kernels`` kernels are taken as the database knows them.
    The code of metrics stands in the objective.
    """

    form: str
    inputs: str
    toolchain: str
    measuring: str
    tune_kernels: bool = True
    fingerprint: int = FINGERPRINT

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Conditions | None":
        """Read what :meth:`as_dict` wrote; ``None`` for the empty record of a study that kept none."""
        return cls(**data) if data else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """What a plan is found by. ``form`` is empty if the plan was recorded without it (by fingerprint 1)."""

    structure: str
    form: str
    device_class: str
    objective: Objective
    serve_as: str

    def serves(self, asked: "PlanKey") -> bool:
        """Whether a plan of this key answers a caller who asks for another: a stricter plan serves a looser caller.

        The form of the answer may differ: it is the caller's model that gives it (see :func:`autotune.deploy.load`).
        """
        return (
            self.structure == asked.structure
            and self.device_class == asked.device_class
            and asked.serve_as in ("any", self.serve_as)
            and self.objective.serves(asked.objective)
        )

    def differences(self, asked: "PlanKey") -> Iterator[tuple[str, str, str]]:
        """Yield (part, what was asked, what this key has) for each part for whose sake it does not serve."""
        if self.structure != asked.structure:
            yield "structure", asked.structure[:12], self.structure[:12]
        if self.device_class != asked.device_class:
            yield "device class", asked.device_class, self.device_class
        if asked.serve_as not in ("any", self.serve_as):
            yield "serving format", asked.serve_as, self.serve_as
        if self.objective.name != asked.objective.name:
            yield "objective", asked.objective.name, self.objective.name
        for name, wanted, found in self.objective.looser_than(asked.objective):
            yield f"constraint {name}", wanted, found


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactKey:
    """What decides whether an artifact serves: the weights in it, what built it, and the kernels that it was handed.

    ``toolchain`` holds the entries that its backend declares, ``kernels`` the digest of the tuned kernels (empty if it
    has none of them).
    """

    weights: str
    toolchain: Toolchain
    kernels: str = ""

    def differences(self, asked: "ArtifactKey") -> Iterator[tuple[str, str, str]]:
        """Yield (part, what was asked, what this key has) for each part that differs."""
        if self.weights != asked.weights:
            yield "weights", asked.weights[:12], self.weights[:12]
        wanted, found = asked.toolchain.as_dict(), self.toolchain.as_dict()
        for name in sorted(set(wanted) | set(found)):
            if wanted.get(name) != found.get(name):
                yield f"toolchain {name}", wanted.get(name, "none"), found.get(name, "none")
        if self.kernels != asked.kernels:
            yield "kernels", asked.kernels[:12] or "none", self.kernels[:12] or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that decides what a study finds; ``conditions`` is ``None`` for one recorded by fingerprint 1."""

    name: str
    structure: str
    weights: str
    device_class: str
    objective: Objective
    serve_as: str
    space: str
    seed: int
    conditions: Conditions | None = None

    @property
    def study(self) -> str:
        """The digest of all of it: two requests with the same one are one study, and its plan is "cached"."""
        return digest(self._content(self.weights, self.conditions.as_dict() if self.conditions else None))

    @property
    def family(self) -> str:
        """The digest of all but weights, toolchain and form: such a study's plan is rebuilt instead of searched."""
        rest = {} if self.conditions is None else self.conditions.as_dict()
        return digest(self._content("", {k: v for k, v in rest.items() if k not in ("form", "toolchain")}))

    @property
    def trial(self) -> str | None:
        """The digest of what a trial was judged and timed under; ``None`` if that is unknown, and nothing is reused.

        Another study takes a trial over only if this is equal, and so are the structure, the weights, the device class,
        the configuration, the backend's toolchain entries and the kernels that were handed to the build.
        """
        if self.conditions is None:
            return None
        gate = {key: value for key, value in objective_content(self.objective).items() if key != "name"}
        return digest([gate, self.conditions.inputs, self.conditions.measuring, self.conditions.fingerprint])

    @property
    def plan(self) -> PlanKey:
        """What a plan of this study is found by."""
        return PlanKey(
            structure=self.structure,
            form=self.conditions.form if self.conditions else "",
            device_class=self.device_class,
            objective=self.objective,
            serve_as=self.serve_as,
        )

    def _content(self, weights: str, conditions: Any) -> list[Any]:
        content = [
            self.name, self.structure, weights, self.device_class, objective_content(self.objective), self.serve_as,
            self.space, self.seed,
        ]  # fmt: skip
        return content if conditions is None else [*content, conditions]
