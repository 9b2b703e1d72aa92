"""The base of records that are stored as JSON and keep what other versions stored beside their fields: StoredRecord."""

import warnings
from collections.abc import Callable, Iterator, KeysView, Mapping
from typing import Any, ClassVar

from autotune.records import schema
from autotune.records.configuration import Configuration
from autotune.records.plain import values_in

Readers = Mapping[str, Callable[[Any], object]]
"""How the plain values of some fields are read."""


class StoredRecord:
    """The base of records that are stored as JSON within a plan; the content and the keys of stored data are kept.

    Schema 1 is the dictionary that version 0.1.0 stored, without a version. ``stored_keys`` are the keys of the data
    that a record was read from, ``None`` for one that was made here; ``beside`` is stored data of no field. So a record
    that is read and written again is the same JSON, also if an older version left keys out. Two records are equal if
    their plain data is.

    The items of the dictionary of version 0.1.0 can still be read by their keys, with a DeprecationWarning.
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]
    schema: ClassVar[int] = 1
    names: ClassVar[tuple[str, ...]] = ()
    """The fields that are stored, in their order."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Fields that are not stored if they are ``None``."""
    stored_keys: tuple[str, ...] | None
    beside: Mapping[str, object]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        if self.stored_keys is not None:
            return {key: _plain(self._value(key)) for key in self.stored_keys}
        values = {name: getattr(self, name) for name in self.names}
        written = {name: value for name, value in values.items() if value is not None or name not in self.optional}
        version = {} if self.schema == 1 else {schema.KEY: self.schema}
        return {name: _plain(value) for name, value in {**written, **self.beside, **version}.items()}

    def _value(self, key: str) -> object:
        return getattr(self, key) if key in self.names else self.beside[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredRecord) and self.as_dict() == other.as_dict()

    # The dictionary of version 0.1.0; to be removed in 0.3.0.

    def __getitem__(self, key: str) -> object:
        return self._old()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._old()

    def __iter__(self) -> Iterator[str]:
        return iter(self._old())

    def keys(self) -> KeysView[str]:
        """Return the keys of the dictionary of version 0.1.0."""
        return self._old().keys()

    def get(self, key: str, default: object = None) -> object:
        """Return an item of the dictionary of version 0.1.0."""
        return self._old().get(key, default)

    def _old(self) -> dict[str, object]:
        message = f"{type(self).__name__} is a record: read its attributes, or as_dict(); its items go with 0.3.0"
        warnings.warn(message, DeprecationWarning, stacklevel=3)
        return self.as_dict()


def read_values(kind: type[StoredRecord], data: Mapping[str, object], readers: Readers) -> dict[str, Any]:
    """Return the values of a record's fields in plain data, and the data of no field."""
    content = values_in(data)
    schema.refuse_later(content, kind.schema, what=f"a {kind.__name__}")
    values = {key: value for key, value in content.items() if key in kind.names}
    values |= {
        key: reader(values[key]) for key, reader in readers.items() if values.get(key) is not None
    }  # fmt: skip
    beside = {key: value for key, value in content.items() if key not in kind.names}
    return {**values, "stored_keys": tuple(content), "beside": beside}


def _plain(value: object) -> object:
    if isinstance(value, StoredRecord | Configuration):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
