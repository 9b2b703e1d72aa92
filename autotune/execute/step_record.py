"""Requests and answers of steps as typed records, and as plain data at the border between two processes: StepRecord."""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from autotune.errors import WorkerError

if TYPE_CHECKING:
    from typing import Self

KEY = "schema"
"""Names the version in plain data."""

T = TypeVar("T")


class StepRecord:
    """The base of the frozen dataclasses that are the requests, the orders and the answers of steps.

    A field is text, a number, a truth value, a path, plain data (``object``), a record of autotune, a tuple of these or
    a mapping from text to them. ``schema`` is raised when a field is added, goes, or changes its meaning: coordinator
    and worker must have the same one.
    """

    __slots__ = ()
    schema: ClassVar[int] = 1

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        values = {name: _plain(getattr(self, name)) for name in _fields_of(type(self))}
        return {KEY: self.schema, **values}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "Self":
        """Read what :meth:`as_dict` wrote; ``ValueError`` if a field is missing, unknown or of another type.

        Raises WorkerError if the data is of another schema.
        """
        schema = data.get(KEY, 1)
        if schema != cls.schema:
            raise WorkerError(
                f"a coordinator and its worker do not agree on {cls.__name__}", found=f"schema {schema!r}",
                expected=f"schema {cls.schema}", run="the same version of autotune in both processes",
            )  # fmt: skip
        own = _fields_of(cls)
        unknown = sorted(data.keys() - own.keys() - {KEY})
        missing = [name for name, field in own.items() if name not in data and _is_required(field)]
        if unknown or missing:
            raise ValueError(f"{cls.__name__}: unknown fields: {unknown}, missing fields: {missing}")
        types_of = _types_of(cls)
        values = {name: _typed(types_of[name], data[name], f"{cls.__name__}.{name}") for name in own if name in data}
        return cls(**values)


def _fields_of(kind: type) -> "Mapping[str, Field[object]]":
    return {field.name: field for field in fields(kind)}


def _types_of(kind: type) -> Mapping[str, object]:
    return get_type_hints(kind)


def _is_required(field: "Field[object]") -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _plain(value: object) -> object:
    """Return a value of a field as plain data."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value


def _typed(kind: object, value: object, name: str) -> object:
    """Return plain data as a value of a type; ``ValueError`` if it is none."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is object:
        return value
    if origin in (Union, types.UnionType):
        (own,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _typed(own, value, name)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name}: expected one of {arguments}, found {value!r}")
        return value
    if origin is tuple:
        _check(value, (list, tuple), name)
        return tuple(_typed(arguments[0], item, name) for item in cast("Sequence[object]", value))
    if origin is not None and issubclass(origin, Mapping):
        _check(value, (Mapping,), name)
        items = cast("Mapping[str, object]", value).items()
        return {key: _typed(arguments[1], item, name) for key, item in items}
    return _instance(cast("type[object]", kind), value, name)


def _instance(kind: type[T], value: object, name: str) -> T:
    """Return plain data as an instance of a class."""
    if kind in _NUMBERS_AND_TEXT:
        _check(value, _NUMBERS_AND_TEXT[kind], name)
        return kind(value)  # type: ignore[call-arg]
    if isinstance(value, kind):
        return value
    _check(value, (Mapping,), name)
    data = cast("Mapping[str, object]", value)
    from_dict: Callable[[Mapping[str, object]], T] | None = getattr(kind, "from_dict", None)
    if from_dict is not None:
        return from_dict(data)
    return kind(**{key: tuple(item) if isinstance(item, list) else item for key, item in data.items()})


_NUMBERS_AND_TEXT: Mapping[type, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    bool: (bool,),
    float: (int, float),
    Path: (str, Path),
}
"""Classes of text, numbers, truth values and paths, with the types of plain data that they are read from."""


def _check(value: object, kinds: tuple[type, ...], name: str) -> None:
    """Raise ``ValueError`` if a value is of none of some types; a truth value is no number."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name}: expected {expected}, found {value!r}")
