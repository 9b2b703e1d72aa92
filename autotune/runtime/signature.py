"""What a runner takes: shapes and dtypes of its flat inputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autotune.errors import ModelError
from autotune.workload import TensorSpec

if TYPE_CHECKING:
    import torch


class Signature:
    """The flat inputs that an artifact was built for, on the device that it runs on."""

    def __init__(self, specs: Sequence[TensorSpec], device: str) -> None:
        import torch

        self._specs = tuple(specs)
        self._device = torch.device(device)
        self._expected = tuple((torch.Size(spec.shape), getattr(torch, spec.dtype)) for spec in specs)

    def check(self, inputs: Sequence[Any]) -> None:
        """Refuse inputs of another number, shape or dtype: a graph would broadcast or misread them in silence.

        Raises ModelError.
        """
        if len(inputs) == len(self._expected):
            for tensor, (shape, dtype) in zip(inputs, self._expected, strict=True):
                if tensor.shape != shape or tensor.dtype is not dtype:
                    break
            else:
                return
        raise ModelError(
            "the inputs are not those that the plan was made for",
            found=_describe((_dtype(tensor), tuple(tensor.shape)) for tensor in inputs),
            expected=_describe((f"{spec.name} {spec.dtype}", spec.shape) for spec in self._specs),
        )

    def place(self, inputs: "Sequence[torch.Tensor]") -> "list[torch.Tensor]":
        """Check inputs and copy those that are elsewhere to the device."""
        self.check(inputs)
        return [tensor if tensor.device == self._device else tensor.to(self._device) for tensor in inputs]

    def zeros(self) -> "tuple[torch.Tensor, ...]":
        """Make inputs of zeros on the device; zero is in range for every index and mask."""
        import torch

        return tuple(torch.zeros(shape, dtype=dtype, device=self._device) for shape, dtype in self._expected)


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _describe(tensors: Any) -> str:
    return ", ".join(f"{name}{list(shape)}" for name, shape in tensors) or "none"
