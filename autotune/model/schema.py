"""How a model's own arguments map to flat tensors with names."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.errors import ModelError
from autotune.model.tensors import why_not


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSchema:
    """Names of the flat input tensors, in the order of the forward's parameters."""

    names: tuple[str, ...]

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Order a call's arguments as flat tensors; ``None`` counts as not given.

        Positional arguments take the names in order. Raises ModelError if a name is unknown, missing or given twice.
        """
        given = dict(zip(self.names, args, strict=False))
        twice = sorted(set(given) & set(kwargs))
        rest = {name: value for name, value in kwargs.items() if value is not None}
        unknown = sorted(set(rest) - set(self.names))
        missing = [name for name in self.names if name not in given and name not in rest]
        if len(args) > len(self.names) or twice or unknown or missing:
            wrong = [
                *(f"{name} twice" for name in twice), *(f"unknown {name}" for name in unknown),
                *(f"no {name}" for name in missing),
            ]  # fmt: skip
            raise ModelError(
                "the call does not fit the inputs that the plan was made for",
                found=f"{len(args)} positional, keywords {sorted(kwargs)}{': ' if wrong else ''}{', '.join(wrong)}",
                expected=", ".join(self.names),
            )
        given.update(rest)
        return tuple(given[name] for name in self.names)


def bind(forward: Callable[..., Any], inputs: Any) -> dict[str, Any]:
    """Name the inputs that a caller gave as a tensor, a tuple or a dict by the parameters of ``forward``, in its order.

    Whatever else ``forward`` takes by keyword comes last, by name. Raises ModelError if they do not fit the signature,
    or an input is no dense tensor.
    """
    args, kwargs = _arguments(forward, inputs)
    signature = signature_of(forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(
            "the inputs do not fit the model", found=str(error), expected=f"arguments of forward{signature}"
        ) from error
    named: dict[str, Any] = {}
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


def positional_only(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the parameters that ``forward`` takes by position alone."""
    parameters = signature_of(forward).parameters.values()
    return tuple(each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_ONLY)


def signature_of(forward: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a forward; raises ModelError if Python cannot read it."""
    try:
        return inspect.signature(forward)
    except (TypeError, ValueError) as error:
        raise ModelError(
            "the parameters of the model's forward cannot be read", found=str(error),
            expected="a torch.nn.Module with a forward written in Python",
        ) from error  # fmt: skip


def _arguments(forward: Callable[..., Any], inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call; a dict may also name parameters that are taken by position alone."""
    if not isinstance(inputs, Mapping):
        return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}
    wrong = [name for name in inputs if not isinstance(name, str)]
    if wrong:
        raise ModelError("inputs are named by text", found=repr(wrong[0]), expected="names of forward's parameters")
    first = [name for name in positional_only(forward) if name in inputs]
    return tuple(inputs[name] for name in first), {k: v for k, v in inputs.items() if k not in first}
