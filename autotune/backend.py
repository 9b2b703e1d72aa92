"""The seam every backend stands on: Backend and Runner."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from autotune.kernel import KnownKernels
from autotune.records.configuration import Configuration
from autotune.records.device import Device
from autotune.records.search_space import SearchSpace
from autotune.records.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """Whether a backend works on a device, or the reason why not and the command that mends it."""

    works: bool
    reason: str = ""
    remedy: str = ""


class SourceModel(Protocol):
    """What a build gets: the captured model, tensors in and tensors out.

    ``program`` takes the flat input tensors and returns a tuple of flat output tensors, in the dtypes of the original.
    """

    workload: Workload
    factory: str | None

    @property
    def known_kernels(self) -> KnownKernels | None:
        """The measured kernels that a build may choose from; ``None`` if it was handed none."""
        ...

    def program(self, precision: str, device: Device) -> "ExportedProgram":
        """The captured graph computing in ``precision`` (fp32, tf32, bf16, fp16) with its weights on the device."""
        ...

    def example_inputs(self, device: Device) -> "tuple[torch.Tensor, ...]":
        """One set of flat inputs on the device."""
        ...

    def save_module(self, folder: Path) -> None:
        """Write what rebuilds the user's own module (factory and weights); only where ``factory`` is not ``None``."""
        ...


@runtime_checkable
class Runner(Protocol):
    """A loaded artifact: the very same code for the trial and for deployment.

    Flat tensors in, flat tensors out, in the dtypes of the original model and on its device; inputs are copied in where
    needed, and refused by :class:`autotune.runtime.signature.Signature` if they do not fit; outputs are fresh; safe to
    call from several threads.
    """

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Answer one call; exactly this is what a trial times."""
        ...

    def close(self) -> None:
        """Give back what the runner holds."""
        ...


class Backend(Protocol):
    """One way to run a model. Stateless; imports its library only inside the methods that need it."""

    name: str
    toolchain: tuple[str, ...]
    build_uses_device: bool

    def probe(self, device: Device) -> Availability:
        """Whether it works here, without building anything; must not import torch or its own library."""
        ...

    def space(self, device: Device, workload: Workload | None, *, has_factory: bool) -> SearchSpace:
        """What may be varied on the device for a workload (``None``: for any)."""
        ...

    def build(self, model: SourceModel, configuration: Configuration, device: Device, folder: Path) -> None:
        """Write an artifact into an empty folder; runs in a build worker, and whatever it raises is a failed trial."""
        ...

    def times_kernels_at_build(self, configuration: Configuration) -> bool:
        """Whether the build chooses among kernels by timing them, for which it needs the device for itself."""
        ...

    def times_kernels_at_load(self, configuration: Configuration) -> bool:
        """Whether loading chooses among kernels by timing them, for which it needs the device for itself."""
        ...

    def load(self, folder: Path, device: Device) -> Runner:
        """Turn an artifact into a runner; needs no compiler, no model code and no third-party pytree.

        Beside what the build wrote the folder has the artifact's own description, and the study's example inputs to
        settle the runner on (``read_record`` and ``read_example`` of :mod:`autotune.runtime.artifact`).
        Reads all of it: the folder, which holds what was verified for this load, is deleted afterwards.
        """
        ...
