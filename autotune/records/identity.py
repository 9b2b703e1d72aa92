"""The identity of requests, studies, trials, plans and artifacts, and the keys that follow from it.

Whatever decides an answer or a timing stands in :class:`Identity` and its :class:`Conditions`; each key is a named
projection of it:

======================  ===========================================================================================
key                     use
======================  ===========================================================================================
``Identity.study``      the database: one row a study, "cached" only if this is equal
``Identity.family``     the same study for other weights or another toolchain, whose plan is rebuilt, not searched
``Identity.trial``      reuse of a trial by another study, beside its workload, configuration, toolchain and kernels
``Identity.plan``       the look-up of a plan, by :class:`PlanKey`: never by the inputs
``ArtifactKey``         whether a plan's artifact serves, or has to be built again
======================  ===========================================================================================

A model that cannot be described is refused when it is captured; nothing is ever left out of a key.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from autotune.records.canonical import canonical, digest
from autotune.records.device import Toolchain
from autotune.records.objective import Objective
from autotune.records.plain import values_in

FINGERPRINT = 2
"""The version of the fingerprints that this version of autotune makes.

Version 1 left graphs within graphs out of the structure, and kept neither the form of an answer nor the inputs of a
study. A structure without inner graphs has the same fingerprint in both.
"""


def objective_content(objective: Objective) -> dict[str, object]:
    """Return an objective such that equal demands have equal canonical JSON: numbers as floats, metrics sorted."""

    def floats(value: object) -> object:
        if isinstance(value, dict):
            return {key: floats(item) for key, item in value.items()}
        return float(value) if isinstance(value, int) else value

    content = {key: floats(value) for key, value in objective.as_dict().items() if key != "metrics"}
    content["metrics"] = sorted((floats(metric.as_dict()) for metric in objective.metrics), key=canonical)
    return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """The conditions of a study's answers and timings, beside its model, device, objective, space and seed.

    ``form`` is the digest of the form of the answer, ``inputs`` of how every input is made, with the content of each
    file that is read. ``toolchain`` is the digest of the entries that the participating backends declare, ``measuring``
    of the rules by which candidates are timed. Without ``tune_kernels`` kernels are used as the database has them.
    The code of metrics stands in the objective.
    """

    form: str
    inputs: str
    toolchain: str
    measuring: str
    tune_kernels: bool = True
    fingerprint: int = FINGERPRINT

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Conditions | None":
        """Read what :meth:`as_dict` wrote; ``None`` for the empty record of a study that kept none."""
        return cls(**values_in(data)) if data else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanKey:
    """The key by which a plan is found. ``form`` is empty if the plan was recorded without it (by fingerprint 1)."""

    structure: str
    form: str
    device_class: str
    objective: Objective
    serve_as: str

    def serves(self, requested: "PlanKey") -> bool:
        """Return whether a plan of this key serves a caller of another: a stricter plan serves a looser caller.

        The form of the answer may differ, because it is that of the caller's model (see :func:`autotune.deploy.load`).
        """
        return (
            self.structure == requested.structure
            and self.device_class == requested.device_class
            and requested.serve_as in ("any", self.serve_as)
            and self.objective.serves(requested.objective)
        )

    def differences(self, requested: "PlanKey") -> Iterator[tuple[str, str, str]]:
        """Yield (part, value asked for, value of this key) for each part because of which it does not serve."""
        if self.structure != requested.structure:
            yield "structure", requested.structure[:12], self.structure[:12]
        if self.device_class != requested.device_class:
            yield "device class", requested.device_class, self.device_class
        if requested.serve_as not in ("any", self.serve_as):
            yield "serving format", requested.serve_as, self.serve_as
        if self.objective.name != requested.objective.name:
            yield "objective", requested.objective.name, self.objective.name
        for name, wanted, own in self.objective.looser_than(requested.objective):
            yield f"constraint {name}", wanted, own


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactKey:
    """The key by which an artifact serves: the weights in it, its toolchain, and the kernels that its build was handed.

    ``toolchain`` holds the entries that its backend declares, ``kernels`` the digest of the tuned kernels (empty if it
    has none of them).
    """

    weights: str
    toolchain: Toolchain
    kernels: str = ""

    def differences(self, requested: "ArtifactKey") -> Iterator[tuple[str, str, str]]:
        """Yield (part, value asked for, value of this key) for each part that differs."""
        if self.weights != requested.weights:
            yield "weights", requested.weights[:12], self.weights[:12]
        wanted, own = requested.toolchain.as_dict(), self.toolchain.as_dict()
        for name in sorted(set(wanted) | set(own)):
            if wanted.get(name) != own.get(name):
                yield f"toolchain {name}", wanted.get(name, "none"), own.get(name, "none")
        if self.kernels != requested.kernels:
            yield "kernels", requested.kernels[:12] or "none", self.kernels[:12] or "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that decides the result of a study; ``conditions`` is ``None`` if fingerprint 1 recorded it."""

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
        """The digest of the rules that a trial was judged and timed under; ``None`` if unknown: then nothing is reused.

        Another study takes a trial over only if this is equal, and so are the structure, the weights, the device class,
        the configuration, the backend's toolchain entries and the kernels that were handed to the build.
        """
        if self.conditions is None:
            return None
        gate = {key: value for key, value in objective_content(self.objective).items() if key != "name"}
        return digest([gate, self.conditions.inputs, self.conditions.measuring, self.conditions.fingerprint])

    @property
    def plan(self) -> PlanKey:
        """The key by which a plan of this study is found."""
        return PlanKey(
            structure=self.structure,
            form=self.conditions.form if self.conditions else "",
            device_class=self.device_class,
            objective=self.objective,
            serve_as=self.serve_as,
        )

    def _content(self, weights: str, conditions: Mapping[str, object] | None) -> list[object]:
        content: list[object] = [
            self.name, self.structure, weights, self.device_class, objective_content(self.objective), self.serve_as,
            self.space, self.seed,
        ]  # fmt: skip
        return content if conditions is None else [*content, conditions]
