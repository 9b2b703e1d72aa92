"""The mapping of a model's own arguments to flat tensors with names."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autotune.errors import ModelError
from autotune.model.tensors import why_not

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSchema:
    """Names of the flat input tensors, in the order of the forward's parameters.

    ``positions`` are all parameters that the forward takes by position, given or not (empty: the names themselves), and
    ``defaults`` the plain values of parameters that are not among the names. ``by_name`` is true if the positions are
    not known, so that only a single input may be given without its name.
    """

    names: tuple[str, ...]
    positions: tuple[str, ...] = ()
    defaults: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    by_name: bool = False

    @classmethod
    def of(cls, forward: Callable[..., object], names: Sequence[str]) -> "InputSchema":
        """Read the schema from a forward's signature, for the inputs of a plan."""
        parameters = signature_of(forward).parameters.values()
        defaults = {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.name not in names and isinstance(parameter.default, bool | int | float | str)
        }
        return cls(names=tuple(names), positions=by_position(forward), defaults=defaults)

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {"names": list(self.names), "positions": list(self.positions), "defaults": dict(self.defaults)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "InputSchema":
        """Read the output of :meth:`as_dict`."""
        return cls(
            names=tuple(data["names"]), positions=tuple(data["positions"]), defaults=dict(data["defaults"])
        )  # fmt: skip

    def flatten(self, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[Any, ...]:
        """Order a call's arguments as flat tensors; ``None``, and a default that is given, count as not given.

        Positional arguments take the forward's parameters in order. Raises ModelError if an argument is unknown,
        missing, given twice, or one that the plan was made without.
        """
        if args and self.by_name and len(self.names) > 1:
            raise ModelError(
                "the artifact of an earlier version does not know the positions of its inputs",
                found=f"{len(args)} positional arguments", expected=f"keywords: {', '.join(self.names)}",
                run="autotune tune with its study file, which builds it again",
            )  # fmt: skip
        positions = self.positions or self.names
        placed = dict(zip(positions, args, strict=False))
        twice = sorted(set(placed) & set(kwargs))
        given = {name: value for name, value in (placed | dict(kwargs)).items() if not self._is_default(name, value)}
        unknown = sorted(set(given) - set(self.names))
        missing = [name for name in self.names if name not in given]
        if len(args) > len(positions) or twice or unknown or missing:
            wrong = [
                *(f"{name} twice" for name in twice),
                *(f"{name}, which the plan was made without" for name in unknown),
                *(f"no {name}" for name in missing),
            ]  # fmt: skip
            raise ModelError(
                "the call does not fit the inputs that the plan was made for",
                found=f"{len(args)} positional, keywords {sorted(kwargs)}{': ' if wrong else ''}{', '.join(wrong)}",
                expected=", ".join(self.names),
            )
        return tuple(given[name] for name in self.names)

    def _is_default(self, name: str, value: object) -> bool:
        if value is None:
            return True
        default = self.defaults.get(name)
        return default is not None and type(value) is type(default) and value == default


def bind(forward: Callable[..., object], inputs: object) -> "dict[str, torch.Tensor]":
    """Name the inputs that a caller gave as a tensor, a tuple or a dict by the parameters of ``forward``, in its order.

    Further keyword arguments come last, by name. Raises ModelError if they do not fit the signature, or an input is no
    dense tensor.
    """
    args, kwargs = _arguments(forward, inputs)
    signature = signature_of(forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(
            "the inputs do not fit the model", found=str(error), expected=f"arguments of forward{signature}"
        ) from error
    named: dict[str, torch.Tensor] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(sorted(value.items()))
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise ModelError(
                "a forward with *args cannot be tuned", found=f"*{name}", expected="parameters with names",
                run="the model with a forward that names each of its inputs",
            )  # fmt: skip
        else:
            named[name] = value
    named = {name: value for name, value in named.items() if value is not None}
    if not named:
        raise ModelError("the model is given no input", expected=f"arguments of forward{signature}")
    for name, value in named.items():
        if reason := why_not(value):
            raise ModelError(f"input {name!r} cannot be taken", found=reason, expected="a dense torch.Tensor")
    return named


def by_position(forward: Callable[..., object]) -> tuple[str, ...]:
    """Return the names of the parameters that ``forward`` takes by position, in order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = signature_of(forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def positional_only(forward: Callable[..., object]) -> tuple[str, ...]:
    """Return the names of the parameters that ``forward`` takes by position alone."""
    parameters = signature_of(forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.POSITIONAL_ONLY)


def by_keyword(forward: Callable[..., object]) -> tuple[str, ...]:
    """Return the names of the parameters that ``forward`` takes by keyword alone."""
    parameters = signature_of(forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY)


def signature_of(forward: Callable[..., object]) -> inspect.Signature:
    """Return the signature of a forward, compiled or written in Python; raises ModelError if it cannot be read."""
    from autotune.model import torchscript

    compiled = torchscript.signature(forward)
    if compiled is not None:
        return compiled
    try:
        return _of_program(forward, inspect.signature(forward))
    except (TypeError, ValueError) as error:
        raise ModelError(
            "the parameters of the model's forward cannot be read", found=str(error),
            expected="a torch.nn.Module with a forward written in Python",
        ) from error  # fmt: skip


def _of_program(forward: Callable[..., object], signature: inspect.Signature) -> inspect.Signature:
    """Return the signature of an exported program's module, which takes some arguments by keyword alone.

    Its Python code shows them as positional ones.
    """
    info = getattr(getattr(getattr(forward, "__self__", None), "_graph", None), "_codegen", None)
    spec = getattr(getattr(info, "pytree_info", None), "in_spec", None)
    if spec is None or spec.num_children != 2 or spec.child(1).type is not dict:
        return signature
    named = set(spec.child(1).context)
    return signature.replace(
        parameters=[
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) if parameter.name in named else parameter
            for parameter in signature.parameters.values()
        ]
    )


def _arguments(forward: Callable[..., object], inputs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the arguments of a call; a dict may also name parameters that are taken by position alone."""
    if not isinstance(inputs, Mapping):
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}
    wrong = [name for name in inputs if not isinstance(name, str)]
    if wrong:
        raise ModelError("inputs are named by text", found=repr(wrong[0]), expected="names of forward's parameters")
    first = [name for name in positional_only(forward) if name in inputs]
    return tuple(inputs[name] for name in first), {k: v for k, v in inputs.items() if k not in first}
