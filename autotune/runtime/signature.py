"""The signature of a runner: number, shapes, dtypes and places of its flat inputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotune.errors import ModelError
from autotune.records.workload import TensorSpec

if TYPE_CHECKING:
    import torch


class Signature:
    """The flat inputs that an artifact was built for, and the device that it runs on; every runner checks by it."""

    def __init__(self, specs: Sequence[TensorSpec], device: str) -> None:
        import torch

        self._specs = tuple(specs)
        self._device = torch.device(device)
        self._tensor, self._strided = torch.Tensor, torch.strided
        self._expected = tuple((spec, torch.Size(spec.shape), getattr(torch, spec.dtype)) for spec in specs)

    def check(self, inputs: "Sequence[torch.Tensor]") -> "Sequence[torch.Tensor]":
        """Return the inputs, views that are conjugated or negated written out; raises ModelError if one does not fit.

        A backend would silently broadcast, cast or misread an input of another number, shape, dtype or layout. An input
        may lie on any device that holds its values, see :meth:`place`.
        """
        if len(inputs) != len(self._expected):
            raise self._wrong_number(inputs)
        tensor_type, strided = self._tensor, self._strided
        views = False
        for given, (spec, shape, dtype) in zip(inputs, self._expected, strict=True):
            # is_nested is read before the shape, because a nested tensor refuses to report its shape.
            if (
                not isinstance(given, tensor_type)
                or given.is_nested
                or given.layout is not strided
                or given.dtype is not dtype
                or given.shape != shape
                or given.is_meta
            ):
                raise self._misfit(given, spec)
            views = views or given.is_neg() or given.is_conj()
        return [given.resolve_conj().resolve_neg() for given in inputs] if views else inputs

    def place(self, inputs: "Sequence[torch.Tensor]") -> "list[torch.Tensor]":
        """Check inputs and copy those on another device to the runner's."""
        device = self._device
        return [tensor if tensor.device == device else tensor.to(device) for tensor in self.check(inputs)]

    def _wrong_number(self, inputs: "Sequence[torch.Tensor]") -> ModelError:
        missing = [spec.name for spec in self._specs[len(inputs) :]]
        if missing:
            message = f"the call lacks {'input' if len(missing) == 1 else 'inputs'} {', '.join(missing)}"
        else:
            message = f"the plan takes no input after {self._specs[-1].name}"
        forms = [f"{spec.name} {_form(spec.dtype, spec.shape)}" for spec in self._specs]
        return ModelError(message, found=_listed([self._form_of(given) for given in inputs]), expected=_listed(forms))

    def _misfit(self, given: object, spec: TensorSpec) -> ModelError:
        form, expected = self._form_of(given), _form(spec.dtype, spec.shape)
        if not isinstance(given, self._tensor):
            expected = f"a tensor {expected}"
        elif given.is_meta:
            form, expected = (
                f"{form} on {given.device}",
                f"{expected} on {self._device}, or on a device to copy it from",
            )
        return ModelError(f"input {spec.name} does not fit the plan", found=form, expected=expected)

    def _form_of(self, given: object) -> str:
        if not isinstance(given, self._tensor):
            return f"a value of type {type(given).__name__}"
        dtype = str(given.dtype).removeprefix("torch.")
        if given.is_nested:
            return f"a nested tensor of {dtype}"
        form = _form(dtype, given.shape)
        return form if given.layout is self._strided else f"{form} of layout {given.layout}"


def _form(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype}{list(shape)}"


def _listed(forms: Sequence[str]) -> str:
    return f"{len(forms)} input{'' if len(forms) == 1 else 's'}{': ' if forms else ''}{', '.join(forms)}"
