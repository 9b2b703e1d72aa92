"""How a model's own arguments and answer map to flat tensors, without any pytree of another library."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from autotune.errors import ModelError

Node = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSchema:
    """Names of the flat input tensors, in the order of the forward's parameters."""

    names: tuple[str, ...]

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Order a call's arguments as flat tensors; ``None`` counts as not given.

        Positional arguments take the names in order. Raises ModelError where a name is unknown, missing or given twice.
        """
        given = dict(zip(self.names, args, strict=False))
        twice = sorted(set(given) & set(kwargs))
        rest = {name: value for name, value in kwargs.items() if value is not None}
        unknown = sorted(set(rest) - set(self.names))
        missing = [name for name in self.names if name not in given and name not in rest]
        if len(args) > len(self.names) or twice or unknown or missing:
            raise ModelError(
                "the call does not fit the inputs that the plan was made for",
                found=f"{len(args)} positional, keywords {sorted(kwargs)}",
                expected=", ".join(self.names),
            )
        given.update(rest)
        return tuple(given[name] for name in self.names)


def bind(forward: Callable[..., Any], inputs: Any) -> dict[str, Any]:
    """Name the inputs that a caller gave as a tensor, a tuple or a dict by the parameters of ``forward``.

    Raises ModelError where they do not fit the signature or an input is not a tensor.
    """
    import torch

    args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (_as_tuple(inputs), {})
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
    except TypeError as error:
        raise ModelError(
            "the inputs do not fit the model",
            found=str(error),
            expected=f"arguments of forward{inspect.signature(forward)}",
        ) from error
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = inspect.signature(forward).parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise ModelError("a forward with *args cannot be tuned", found=f"*{name}", expected="named parameters")
        else:
            named[name] = value
    named = {name: value for name, value in named.items() if value is not None}
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"input {name!r} is not a tensor", found=type(value).__name__, expected="a torch.Tensor")
    return named


def flatten_output(value: Any) -> tuple[list[Any], Node]:
    """Split an answer into its tensors and a schema that puts them together again.

    Accepts a tensor, tuples, lists, dicts, named tuples, dataclasses and dict-like output objects, nested at will.
    """
    tensors: list[Any] = []
    return tensors, _describe(value, tensors)


def unflatten_output(schema: Node, tensors: Sequence[Any]) -> Any:
    """Put the answer together again; an output class that is not loaded becomes an :class:`Output`."""
    kind = schema["kind"]
    if kind == "tensor":
        return tensors[schema["index"]]
    if kind == "constant":
        return schema["value"]
    if kind in ("tuple", "list"):
        items = [unflatten_output(item, tensors) for item in schema["items"]]
        return tuple(items) if kind == "tuple" else items
    values = {name: unflatten_output(item, tensors) for name, item in schema["items"].items()}
    if kind == "dict":
        return values
    found = _loaded_class(schema["class"])
    return Output(values) if found is None else found(**values)


def output_names(schema: Node) -> tuple[str, ...]:
    """One name a flat tensor: the path to it, such as ``logits`` or ``hidden.0``; ``output`` for a lone tensor."""
    named = dict(_paths(schema, ()))
    return tuple(".".join(named[index]) or "output" for index in range(len(named)))


class Output(dict[str, Any]):
    """An answer with named parts, reached by key, by attribute or, as tuples are, by position."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no {name!r}; it has {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return tuple(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        """The parts in order."""
        return tuple(self.values())


def _as_tuple(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


def _describe(value: Any, tensors: list[Any]) -> Node:
    import torch

    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"kind": "tensor", "index": len(tensors) - 1}
    if value is None or isinstance(value, str | int | float | bool):
        return {"kind": "constant", "value": value}
    if isinstance(value, Mapping):
        items = {str(key): _describe(item, tensors) for key, item in value.items()}
        return {"kind": "dict", "items": items} if type(value) is dict else _object(value, items)
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", None)
        if names:
            return _object(value, {n: _describe(item, tensors) for n, item in zip(names, value, strict=True)})
        kind = "list" if isinstance(value, list) else "tuple"
        return {"kind": kind, "items": [_describe(item, tensors) for item in value]}
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return _object(value, {name: _describe(part, tensors) for name, part in parts.items() if part is not None})
    raise ModelError(
        "the model's answer has a part that is not made of tensors",
        found=type(value).__name__,
        expected="tensors in tuples, dicts or dataclass-like objects",
    )


def _object(value: Any, items: dict[str, Node]) -> Node:
    return {"kind": "object", "class": f"{type(value).__module__}:{type(value).__qualname__}", "items": items}


def _loaded_class(path: str) -> Any:
    """The class where its module is already imported; a stored name never causes an import."""
    module, _, name = path.partition(":")
    found = getattr(sys.modules.get(module), name, None)
    plain = isinstance(found, type) and (is_dataclass(found) or issubclass(found, dict | tuple))
    return found if plain else None


def _paths(schema: Node, path: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    if schema["kind"] == "tensor":
        yield schema["index"], path
    elif schema["kind"] in ("tuple", "list"):
        for position, item in enumerate(schema["items"]):
            yield from _paths(item, (*path, str(position)))
    elif schema["kind"] != "constant":
        for name, item in schema["items"].items():
            yield from _paths(item, (*path, name))
