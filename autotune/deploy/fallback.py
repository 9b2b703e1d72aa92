"""The caller's own model in place of a plan: FallbackModel."""

import logging
from typing import TYPE_CHECKING, Any

from autotune.deploy.model import OptimizedModel, closed
from autotune.errors import ArtifactError, AutotuneError, DatabaseError, PlanNotFoundError, RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from autotune.records.plan import Plan

MISSES = (PlanNotFoundError, DatabaseError, ArtifactError)
"""The errors that are a miss: no plan answers, the database cannot be read, or an artifact is of no use."""

log = logging.getLogger("autotune")


class FallbackModel(OptimizedModel):
    """Runs the caller's own module without gradients, because no plan can be used.

    Tensors among the arguments of a call are copied to the module's device if they lie on another one. ``miss`` is the
    error that says why there is no plan, and reading ``plan`` raises it.
    """

    def __init__(self, module: "torch.nn.Module", miss: AutotuneError) -> None:
        tensors = (*module.parameters(), *module.buffers())
        self.miss: AutotuneError = miss
        self.seconds: Mapping[str, float] = {}
        self.signature = "none"
        self._module: torch.nn.Module | None = module
        self._place = tensors[0].device if tensors else None

    @property
    def plan(self) -> "Plan":
        """Raise the error that says why there is no plan."""
        raise self.miss

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Answer one call by the module."""
        import torch

        module = self._module or closed
        with torch.no_grad():
            return module(*map(self._placed, args), **{name: self._placed(value) for name, value in kwargs.items()})

    def flat(self, inputs: "Mapping[str, torch.Tensor]") -> "tuple[torch.Tensor, ...]":
        """Return the flat tensors of the answer to one call by named inputs."""
        from autotune.model.form import flatten

        return tuple(flatten(self(**inputs))[0])

    def close(self) -> None:
        """Let go of the module; a call afterwards raises ArtifactError."""
        self._module = None

    def _placed(self, value: object) -> object:
        import torch

        if self._place is None or not isinstance(value, torch.Tensor) or value.device == self._place:
            return value
        return value.to(self._place)

    def __repr__(self) -> str:
        return f"<FallbackModel {type(self._module).__name__}: {self.miss.asked}>"


def fall_back(module: "torch.nn.Module | None", miss: AutotuneError, subject: str | None) -> FallbackModel:
    """Return the caller's module in place of a plan, with a warning; raises RequestError if there is no module."""
    subject = subject or type(module).__name__
    if module is None:
        raise RequestError(
            f"on_miss='fallback' runs the caller's own model, and {subject} was asked for without it",
            found=str(miss).replace("\n", "\n    "), expected="the model",
            run="autotune.load(model, inputs, on_miss='fallback'), or load_bundle(..., model=model)",
        ) from miss  # fmt: skip
    log.warning("%s: the model itself is used, because no plan can be: %s", subject, miss)
    return FallbackModel(module, miss)
