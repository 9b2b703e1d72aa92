"""A caller's module, random state and process, restored after a block, also after an error."""

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from autotune.model.process_settings import settings_kept
from autotune.model.tensors import is_lazy

if TYPE_CHECKING:
    import torch

    Container = list[Any] | dict[Any, Any] | set[Any]

DEPTH, MOST_ENTRIES = 3, 1000
"""The depth to which containers and plain objects of a module are restored, and the entries of one that are visited."""

OWN = ("_parameters", "_buffers", "training")
"""Entries of a module's ``__dict__`` that are kept by other means than as attributes."""


@contextlib.contextmanager
def random_state() -> Iterator[None]:
    """Put the random state of torch (of every GPU that is in use, too), Python and NumPy back at the end."""
    import torch

    numpy = sys.modules.get("numpy")
    before = random.getstate(), torch.get_rng_state(), numpy.random.get_state() if numpy is not None else None
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        if numpy is not None:
            numpy.random.set_state(before[2])
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)


@contextlib.contextmanager
def process_state() -> Iterator[None]:
    """Put the random state, and the settings of the process (see :func:`settings_kept`), back at the end."""
    with random_state(), settings_kept():
        yield


@contextlib.contextmanager
def untouched(module: "torch.nn.Module") -> Iterator[None]:
    """Put a module's flags, buffers, hooks and attributes, and the state of the process, back at the end."""
    kept = [_Kept.of(part) for part in module.modules()]
    with process_state():
        try:
            yield
        finally:
            for part in kept:
                part.restore()


@dataclass(frozen=True, slots=True)
class _Kept:
    """One part of a module: its class, training flag, tensors with copies of the values of buffers, and attributes."""

    part: "torch.nn.Module"
    kind: type
    training: bool
    parameters: "dict[str, torch.Tensor | None]"
    needs_grad: dict[str, bool]
    buffers: "dict[str, torch.Tensor | None]"
    values: "dict[str, torch.Tensor]"
    attributes: dict[str, object]
    containers: "list[tuple[Container, Container]]"

    @classmethod
    def of(cls, part: "torch.nn.Module") -> "_Kept":
        import torch

        attributes = {name: value for name, value in vars(part).items() if name not in OWN}
        return cls(
            part,
            type(part),
            part.training,
            dict(part._parameters),
            {name: parameter.requires_grad for name, parameter in part._parameters.items() if parameter is not None},
            dict(part._buffers),
            {
                name: value.detach().clone()
                for name, value in (*part._buffers.items(), *attributes.items())
                if isinstance(value, torch.Tensor) and copies(value)
            },
            attributes,
            [
                (inner, inner.copy())
                for name, value in attributes.items()
                for inner in _containers(value, registry=name == "_modules" or name.endswith("_hooks"))
            ],
        )  # fmt: skip

    def restore(self) -> None:
        import torch

        part = self.part
        if type(part) is not self.kind:
            part.__class__ = self.kind
        part.training = self.training
        for name in [name for name in vars(part) if name not in OWN and name not in self.attributes]:
            del part.__dict__[name]
        part.__dict__.update(self.attributes)
        for container, content in self.containers:
            _refill(container, content)
        _refill(part._parameters, self.parameters)
        _refill(part._buffers, self.buffers)
        for name, needs_grad in self.needs_grad.items():
            parameter = part._parameters[name]
            if parameter is not None and parameter.requires_grad != needs_grad:
                parameter.requires_grad_(needs_grad)
        for name, value in self.values.items():
            now = self.buffers[name] if name in self.buffers else self.attributes[name]
            if isinstance(now, torch.Tensor) and not same_values(now, value):
                now.data.copy_(value)


def _containers(value: object, *, registry: bool = False, depth: int = 0) -> "Iterator[Container]":
    """Yield the parts of an attribute that may be changed in place: registries, lists, dicts, sets, plain objects."""
    if registry:
        yield cast("Container", value)
        return
    if depth == DEPTH:
        return
    inside: Iterable[object]
    if type(value) in (list, dict, set):
        container = cast("Container", value)
        yield container
        inside = container.values() if isinstance(container, dict) else container
    elif type(value) is tuple:
        inside = value
    elif is_plain_object(value):
        yield vars(value)
        inside = list(vars(value).values())
    else:
        return
    for inner in list(inside)[:MOST_ENTRIES]:
        yield from _containers(inner, depth=depth + 1)


def is_plain_object(value: object) -> bool:
    """Return whether a value is an object of a user's own class that keeps its state in attributes."""
    import torch

    kind = type(value)
    of_library = kind.__module__.partition(".")[0] in ("torch", "builtins", "numpy", "functools", "threading", "types")
    return hasattr(value, "__dict__") and not of_library and not isinstance(value, torch.nn.Module | type)


def _refill(container: "Container", content: "Container") -> None:
    """Restore the content of a container in place, because others may hold the container too."""
    if _identical(container, content):
        return
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)


def _identical(container: "Container", other: "Container") -> bool:
    """Return whether two containers hold the same objects in the same order, of dicts keys and values."""
    if len(container) != len(other) or any(a is not b for a, b in zip(container, other, strict=True)):
        return False
    if not isinstance(container, dict) or not isinstance(other, dict):
        return True
    return all(container[key] is other[key] for key in other)


def copies(tensor: "torch.Tensor") -> bool:
    """Return whether the values of a tensor can be copied and compared: it has values, and is not nested."""
    return not is_lazy(tensor) and not tensor.is_nested and tensor.device.type != "meta"


def same_values(one: "torch.Tensor", other: "torch.Tensor") -> bool:
    """Return whether two tensors are equal bit by bit: NaN equals itself, and 0.0 does not equal -0.0."""
    import torch

    if one is other:
        return True
    if one.is_nested or other.is_nested:
        return False
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout:
        return False
    if one.layout is not torch.strided or one.is_quantized:
        return bool(torch.equal(one, other) if one.is_quantized else torch.equal(one.to_dense(), other.to_dense()))
    if not one.numel():
        return True
    bits = [t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
    return bool(torch.equal(*bits))
