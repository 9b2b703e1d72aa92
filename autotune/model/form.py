"""The form of a model's answer: how its flat tensors are put together again, without any pytree of another library."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.errors import ModelError
from autotune.records.canonical import digest

Node = dict[str, Any]
"""Plain data: ``kind`` is tensor, constant, number, dtype, size, tuple, list, dict or object.

A dict and an object keep their parts as pairs, in the model's order. An object names its class and says ``how`` one is
made of its parts (see :data:`_MAKERS`).
"""

Classes = Mapping[str, type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How one answer is put together: ``node`` is plain data, ``classes`` are those that it names, as far as known.

    ``classes`` come from a model at hand; a form that was read from a file has none of them. ``inputs`` are the names
    of the model's inputs in the order in which its graph takes them: a caller names them, and the graph does not.
    """

    node: Node
    classes: Classes = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of everything that a caller can tell apart, except where a class is defined.

        A study imports the file of a model under another module name than its user does, so of a class its own name
        counts, with its parts.
        """
        return digest([_identity(self.node), list(self.inputs)] if self.inputs else _identity(self.node))

    @property
    def names(self) -> tuple[str, ...]:
        """One name a flat tensor: the path to it, such as ``logits`` or ``hidden.0``; ``output`` for a lone tensor."""
        found = dict(_paths(self.node, ()))
        names: list[str] = []
        for index in range(len(found)):
            name = ".".join(found[index]) or "output"
            while name in names:  # the parts "a.b" and "b" of "a" have one path
                name = f"{name}_"
            names.append(name)
        return tuple(names)

    def unflatten(self, tensors: Sequence[Any]) -> Any:
        """Put an answer together; an object whose class is not loaded becomes an :class:`Output`."""
        return _made(self.node, tensors, self.classes)


class Output(dict[Any, Any]):
    """An answer with named parts, reached by key, by attribute or, as tuples are, by position."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no {name!r}; it has {', '.join(map(str, self))}") from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | slice) and key not in self.keys():
            return tuple(self.values())[key]
        return super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        """The parts in order."""
        return tuple(self.values())


def flatten(answer: Any) -> tuple[list[Any], Form]:
    """Split an answer into its tensors and the form that puts them together again.

    Accepts a tensor, tuples, lists, dicts, named tuples, torch's named return types, dataclasses and dict-like output
    objects, nested at will, with plain constants beside the tensors. Raises ModelError for anything else, and for an
    object that cannot be made again just as it is.
    """
    return _flattened(answer, check=True)


def _flattened(answer: Any, *, check: bool) -> tuple[list[Any], Form]:
    tensors: list[Any] = []
    classes: dict[str, type] = {}
    try:
        node = _describe(answer, "", tensors, classes, check)
    except RecursionError as error:
        raise ModelError("the model's answer contains itself", expected="parts that end in tensors") from error
    return tensors, Form(node=node, classes=classes)


def _describe(value: Any, path: str, tensors: list[Any], classes: dict[str, type], check: bool) -> Node:
    import torch

    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"kind": "tensor", "index": len(tensors) - 1}
    if value is None or type(value) in (str, int, bool):
        return {"kind": "constant", "value": value}
    if type(value) is float:
        return {"kind": "number", "value": repr(value)}  # JSON has no infinity
    if isinstance(value, torch.dtype):
        return {"kind": "dtype", "value": str(value).removeprefix("torch.")}
    if type(value) is torch.Size:
        return {"kind": "size", "value": list(value)}

    def part(name: Any, item: Any) -> Node:
        return _describe(item, f"{path}.{name}" if path else str(name), tensors, classes, check)

    if type(value) in (tuple, list):
        kind = "tuple" if type(value) is tuple else "list"
        return {"kind": kind, "items": [part(index, item) for index, item in enumerate(value)]}
    if type(value) is dict:
        return {"kind": "dict", "items": [[_key(key, path), part(key, item)] for key, item in value.items()]}
    found = _parts(value)
    if found is None:
        raise ModelError(
            f"the model's answer has a part that is not made of tensors: {path or 'the whole answer'}",
            found=f"{type(value).__module__}.{type(value).__qualname__}",
            expected="tensors in tuples, lists, dicts, named tuples, dataclasses or dict-like objects",
        )
    pairs, ways = found
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    classes[name] = type(value)
    items = [[_key(key, path), part(key, item)] for key, item in pairs]
    node = {"kind": "object", "class": name, "how": ways[0], "items": items}
    return {**node, "how": _way(value, pairs, ways, path)} if check else node


def _parts(value: Any) -> "tuple[list[tuple[Any, Any]], tuple[str, ...]] | None":
    """Return the named parts of an object and the ways to make such a one, the likeliest first; ``None`` if unknown."""
    kind = type(value)
    if isinstance(value, tuple):
        names = getattr(kind, "_fields", None) or getattr(kind, "__match_args__", None)
        if names and len(names) == len(value):
            return list(zip(names, value, strict=True)), ("fields", "sequence")
        return list(enumerate(value)), ("fields", "sequence")
    if isinstance(value, list):
        return list(enumerate(value)), ("sequence",)
    if dataclasses.is_dataclass(kind):
        names = [each.name for each in dataclasses.fields(kind) if hasattr(value, each.name)]
        more = [name for name in getattr(value, "__dict__", {}) if name not in names]
        pairs = [(name, getattr(value, name)) for name in [*names, *more]]
        return pairs, ("keywords",) if isinstance(value, Mapping) else ("state", "keywords")
    if isinstance(value, Mapping):
        return list(value.items()), ("pairs", "keywords", "mapping")
    return None


def _way(value: Any, pairs: list[tuple[Any, Any]], ways: tuple[str, ...], path: str) -> str:
    """Return the first way that makes the very same object again; raises ModelError if none does."""
    reasons = []
    for way in ways:
        try:
            again = _MAKERS[way](type(value), pairs)
        except Exception as error:  # a constructor of the user's own may raise anything
            reasons.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        if type(again) is type(value) and _is_same(_parts(again), pairs):
            return way
        reasons.append("it comes out with other parts")
    raise ModelError(
        f"the model's answer cannot be put together again: {path or 'the whole answer'}",
        found=f"{type(value).__module__}.{type(value).__qualname__}: {'; '.join(dict.fromkeys(reasons))}",
        expected="a dataclass, named tuple or dict-like class that can be made from its parts",
        run="the model with an answer of plain tuples or dicts",
    )


def _is_same(found: "tuple[list[tuple[Any, Any]], tuple[str, ...]] | None", pairs: list[tuple[Any, Any]]) -> bool:
    if found is None or [key for key, _ in found[0]] != [key for key, _ in pairs]:
        return False
    return all(one is other or _alike(one, other) for (_, one), (_, other) in zip(found[0], pairs, strict=True))


def _alike(one: Any, other: Any) -> bool:
    """Return whether two parts hold the very same tensors in the same form, if they are not one object."""
    try:
        (here, here_form), (there, there_form) = (_flattened(value, check=False) for value in (one, other))
    except ModelError:
        return False
    return here_form.node == there_form.node and all(a is b for a, b in zip(here, there, strict=True))


def _by_fields(kind: Any, pairs: Sequence[tuple[Any, Any]]) -> Any:
    if kind.__module__ == "torch.return_types":
        return kind([item for _, item in pairs])
    return tuple.__new__(kind, [item for _, item in pairs])


def _by_state(kind: Any, pairs: Sequence[tuple[Any, Any]]) -> Any:
    """As copying and unpickling do: no constructor runs, so fields that it does not take are set too."""
    made: Any = object.__new__(kind)
    for name, item in pairs:
        object.__setattr__(made, name, item)
    return made


_MAKERS: Mapping[str, Callable[[Any, Sequence[tuple[Any, Any]]], Any]] = {
    "fields": _by_fields,
    "sequence": lambda kind, pairs: kind([item for _, item in pairs]),
    "state": _by_state,
    "keywords": lambda kind, pairs: kind(**dict(pairs)),
    "pairs": lambda kind, pairs: kind(pairs),
    "mapping": lambda kind, pairs: kind(dict(pairs)),
}
"""How an object is made of its class and its named parts."""


def _key(key: Any, path: str) -> Any:
    if key is None or type(key) in (str, int, bool):
        return key
    raise ModelError(
        f"the model's answer has a key that is neither text nor a whole number, in {path or 'the whole answer'}",
        found=f"{type(key).__name__} {key!r}",
        expected="keys of text or whole numbers",
    )


def _made(node: Node, tensors: Sequence[Any], classes: Classes) -> Any:
    import torch

    kind = node["kind"]
    if kind == "tensor":
        return tensors[node["index"]]
    if kind == "constant":
        return node["value"]
    if kind == "number":
        return float(node["value"])
    if kind == "dtype":
        return getattr(torch, node["value"])
    if kind == "size":
        return torch.Size(node["value"])
    if kind in ("tuple", "list"):
        items = [_made(item, tensors, classes) for item in node["items"]]
        return tuple(items) if kind == "tuple" else items
    pairs = [(key, _made(item, tensors, classes)) for key, item in node["items"]]
    if kind == "dict":
        return dict(pairs)
    found = classes.get(node["class"]) or _loaded_class(node["class"])
    return Output(pairs) if found is None else _MAKERS[node["how"]](found, pairs)


def _loaded_class(path: str) -> "type | None":
    """Return the class if its module is already imported; a stored name never causes an import."""
    module, _, name = path.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    plain = isinstance(found, type) and (
        dataclasses.is_dataclass(found) or issubclass(found, dict | tuple | list | Mapping)
    )
    return found if plain else None


def _identity(node: Node) -> Any:
    kind = node["kind"]
    if kind in ("tuple", "list"):
        return [kind, [_identity(item) for item in node["items"]]]
    if kind in ("dict", "object"):
        named = node["class"].rpartition(":")[2].rpartition(".")[2] if kind == "object" else ""
        return [kind, named, [[type(key).__name__, key, _identity(item)] for key, item in node["items"]]]
    value = node.get("value")
    return [kind, type(value).__name__, value]


def _paths(node: Node, path: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    if node["kind"] == "tensor":
        yield node["index"], path
    elif node["kind"] in ("tuple", "list"):
        for position, item in enumerate(node["items"]):
            yield from _paths(item, (*path, str(position)))
    elif node["kind"] in ("dict", "object"):
        for name, item in node["items"]:
            yield from _paths(item, (*path, str(name)))
