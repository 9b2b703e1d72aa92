"""The form of a model's answer: how its flat tensors are put together again, without any pytree of another library."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from autotune.errors import ModelError
from autotune.records.canonical import digest

if TYPE_CHECKING:
    import torch

Node = dict[str, object]
"""Plain data: ``kind`` is tensor, constant, number, dtype, size, tuple, list, dict or object.

A dict and an object keep their parts as pairs, in the model's order. An object names its class, and ``how`` names the
way to make one of its parts (see :data:`_MAKERS`).
"""

Pairs = Sequence[tuple[object, object]]
"""The named parts of an object."""

Classes = Mapping[str, type]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The structure of one answer: ``node`` is plain data, ``classes`` are the loaded ones among those that it names.

    ``classes`` come from a loaded model; a form that was read from a file has none. ``inputs`` are the names of the
    model's inputs in the order in which its graph takes them: a caller names them, and the graph does not.
    """

    node: Node
    classes: Classes = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """The digest of everything that a caller can distinguish, except the module of a class.

        A study imports the file of a model under another module name than its user does, so only the own name of a
        class counts, with its parts.
        """
        return digest([_identity(self.node), list(self.inputs)] if self.inputs else _identity(self.node))

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each flat tensor: its path, such as ``logits`` or ``hidden.0``; ``output`` for a lone tensor."""
        paths = dict(_paths(self.node, ()))
        names: list[str] = []
        for index in range(len(paths)):
            name = ".".join(paths[index]) or "output"
            while name in names:  # the parts "a.b" and "b" of "a" have one path
                name = f"{name}_"
            names.append(name)
        return tuple(names)

    def unflatten(self, tensors: Sequence[object]) -> Any:
        """Put an answer together; an object whose class is not loaded becomes an :class:`Output`."""
        return _put_together(self.node, tensors, self.classes)


class Output(dict[Any, Any]):
    """An answer with named parts, reached by key, by attribute or, as tuples are, by position."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no {name!r}; it has {', '.join(map(str, self))}") from None

    def __getitem__(self, key: object) -> Any:
        if isinstance(key, int | slice) and key not in self.keys():
            return tuple(self.values())[key]
        return super().__getitem__(key)

    def to_tuple(self) -> tuple[object, ...]:
        """The parts in order."""
        return tuple(self.values())


def flatten(answer: object) -> "tuple[list[torch.Tensor], Form]":
    """Split an answer into its tensors and the form that puts them together again.

    Accepts a tensor, tuples, lists, dicts, named tuples, torch's named return types, dataclasses and dict-like output
    objects, nested at will, with plain constants beside the tensors. Raises ModelError for anything else, and for an
    object that cannot be made again just as it is.
    """
    return _flattened(answer, check=True)


def _flattened(answer: object, *, check: bool) -> "tuple[list[torch.Tensor], Form]":
    tensors: list[torch.Tensor] = []
    classes: dict[str, type] = {}
    try:
        node = _describe(answer, "", tensors, classes, check)
    except RecursionError as error:
        raise ModelError("the model's answer contains itself", expected="parts that end in tensors") from error
    return tensors, Form(node=node, classes=classes)


def _describe(value: object, path: str, tensors: "list[torch.Tensor]", classes: dict[str, type], check: bool) -> Node:
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

    def part(name: object, item: object) -> Node:
        return _describe(item, f"{path}.{name}" if path else str(name), tensors, classes, check)

    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        kind = "tuple" if type(value) is tuple else "list"
        return {"kind": kind, "items": [part(index, item) for index, item in enumerate(value)]}
    if type(value) is dict:
        return {"kind": "dict", "items": [[_key(key, path), part(key, item)] for key, item in value.items()]}
    parts = _parts(value)
    if parts is None:
        raise ModelError(
            f"the model's answer has a part that is not made of tensors: {path or 'the whole answer'}",
            found=f"{type(value).__module__}.{type(value).__qualname__}",
            expected="tensors in tuples, lists, dicts, named tuples, dataclasses or dict-like objects",
        )
    pairs, ways = parts
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    classes[name] = type(value)
    items = [[_key(key, path), part(key, item)] for key, item in pairs]
    how = _way(value, pairs, ways, path) if check else ways[0]
    return {"kind": "object", "class": name, "how": how, "items": items}


def _parts(value: object) -> tuple[Pairs, tuple[str, ...]] | None:
    """Return the named parts of an object and the ways to make one, the likeliest first; ``None`` if unknown."""
    kind = type(value)
    if isinstance(value, tuple):
        names = getattr(kind, "_fields", None) or getattr(kind, "__match_args__", None)
        if names and len(names) == len(value):
            return list(zip(names, value, strict=True)), ("fields", "sequence")
        return list(enumerate(value)), ("fields", "sequence")
    if isinstance(value, list):
        return list(enumerate(value)), ("sequence",)
    if dataclasses.is_dataclass(kind):
        names = [entry.name for entry in dataclasses.fields(kind) if hasattr(value, entry.name)]
        more = [name for name in getattr(value, "__dict__", {}) if name not in names]
        pairs = [(name, getattr(value, name)) for name in [*names, *more]]
        return pairs, ("keywords",) if isinstance(value, Mapping) else ("state", "keywords")
    if isinstance(value, Mapping):
        return list(value.items()), ("pairs", "keywords", "mapping")
    return None


def _way(value: object, pairs: Pairs, ways: tuple[str, ...], path: str) -> str:
    """Return the first way that makes the same object again; raises ModelError if none does."""
    reasons = []
    for way in ways:
        try:
            again = _MAKERS[way](type(value), pairs)
        except Exception as error:  # a constructor of the user's own may raise anything
            reasons.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        if type(again) is type(value) and _is_same(_parts(again), pairs):
            return way
        reasons.append("the new object has other parts")
    raise ModelError(
        f"the model's answer cannot be put together again: {path or 'the whole answer'}",
        found=f"{type(value).__module__}.{type(value).__qualname__}: {'; '.join(dict.fromkeys(reasons))}",
        expected="a dataclass, named tuple or dict-like class that can be made from its parts",
        run="the model with an answer of plain tuples or dicts",
    )


def _is_same(parts: tuple[Pairs, tuple[str, ...]] | None, pairs: Pairs) -> bool:
    if parts is None or [key for key, _ in parts[0]] != [key for key, _ in pairs]:
        return False
    return all(part is other or _alike(part, other) for (_, part), (_, other) in zip(parts[0], pairs, strict=True))


def _alike(part: object, other: object) -> bool:
    """Return whether two parts hold the same tensor objects in the same form."""
    try:
        (here, here_form), (there, there_form) = (_flattened(value, check=False) for value in (part, other))
    except ModelError:
        return False
    return here_form.node == there_form.node and all(a is b for a, b in zip(here, there, strict=True))


def _by_fields(kind: Callable[..., object], pairs: Pairs) -> object:
    items = [item for _, item in pairs]
    if kind.__module__ == "torch.return_types":
        return kind(items)
    return tuple.__new__(cast("type[tuple[object, ...]]", kind), items)


def _by_state(kind: Callable[..., object], pairs: Pairs) -> object:
    """Make an object as copying and unpickling do: no constructor runs, so fields that it does not take are set too."""
    copy: object = object.__new__(cast("type", kind))
    for name, item in pairs:
        object.__setattr__(copy, str(name), item)
    return copy


_MAKERS: Mapping[str, Callable[[Callable[..., object], Pairs], object]] = {
    "fields": _by_fields,
    "sequence": lambda kind, pairs: kind([item for _, item in pairs]),
    "state": _by_state,
    "keywords": lambda kind, pairs: kind(**cast("dict[str, object]", dict(pairs))),
    "pairs": lambda kind, pairs: kind(pairs),
    "mapping": lambda kind, pairs: kind(dict(pairs)),
}
"""The ways to make an object of its class and its named parts."""


def _key(key: object, path: str) -> object:
    if key is None or type(key) in (str, int, bool):
        return key
    raise ModelError(
        f"the model's answer has a key that is neither text nor a whole number, in {path or 'the whole answer'}",
        found=f"{type(key).__name__} {key!r}",
        expected="keys of text or whole numbers",
    )


def _items(node: Node) -> list[Node]:
    """Return the parts of a tuple's or a list's node."""
    return cast("list[Node]", node["items"])


def _named_items(node: Node) -> list[tuple[object, Node]]:
    """Return the named parts of a dict's or an object's node."""
    return cast("list[tuple[object, Node]]", node["items"])


def _put_together(node: Node, tensors: Sequence[object], classes: Classes) -> object:
    import torch

    kind = node["kind"]
    if kind == "tensor":
        return tensors[cast("int", node["index"])]
    if kind == "constant":
        return node["value"]
    if kind == "number":
        return float(str(node["value"]))
    if kind == "dtype":
        return getattr(torch, str(node["value"]))
    if kind == "size":
        return torch.Size(cast("list[int]", node["value"]))
    if kind in ("tuple", "list"):
        items = [_put_together(item, tensors, classes) for item in _items(node)]
        return tuple(items) if kind == "tuple" else items
    pairs = [(key, _put_together(item, tensors, classes)) for key, item in _named_items(node)]
    if kind == "dict":
        return dict(pairs)
    name = str(node["class"])
    own = classes.get(name) or _loaded_class(name)
    return Output(pairs) if own is None else _MAKERS[str(node["how"])](own, pairs)


def _loaded_class(path: str) -> "type | None":
    """Return the class if its module is already imported; a stored name never causes an import."""
    module, _, name = path.partition(":")
    value: object = sys.modules.get(module)
    for part in name.split("."):
        value = getattr(value, part, None)
    if not isinstance(value, type):
        return None
    plain = dataclasses.is_dataclass(value) or issubclass(value, dict | tuple | list | Mapping)
    return value if plain else None


def _identity(node: Node) -> object:
    kind = node["kind"]
    if kind in ("tuple", "list"):
        return [kind, [_identity(item) for item in _items(node)]]
    if kind in ("dict", "object"):
        named = str(node["class"]).rpartition(":")[2].rpartition(".")[2] if kind == "object" else ""
        return [kind, named, [[type(key).__name__, key, _identity(item)] for key, item in _named_items(node)]]
    value = node.get("value")
    return [kind, type(value).__name__, value]


def _paths(node: Node, path: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    if node["kind"] == "tensor":
        yield cast("int", node["index"]), path
    elif node["kind"] in ("tuple", "list"):
        for position, item in enumerate(_items(node)):
            yield from _paths(item, (*path, str(position)))
    elif node["kind"] in ("dict", "object"):
        for name, item in _named_items(node):
            yield from _paths(item, (*path, str(name)))
