"""Schema versions of records: a field that is added later changes nothing that was stored without it.

Schema 1 of a record has the fields that it began with. A later field is declared with the schema that added it and with
a default value, which means the same as the absence of the field::

    scale: str = field(default="none", metadata=since(2))

A record that leaves every later field at its default has the content, the canonical JSON and the digest that it had
before the field existed.
"""

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import ClassVar, Protocol

KEY = "schema"
"""Names the version in plain data; schema 1 is not written."""


class Record(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, "Field[object]"]]


def since(schema: int) -> Mapping[str, int]:
    """Return the metadata of a field that a schema later than 1 added."""
    if schema < 2:
        raise ValueError(f"a later field has a schema of at least 2, found {schema}")
    return {KEY: schema}


def content(record: Record) -> dict[str, object]:
    """Return the values of a record by the names of its fields, without later fields that have their default value.

    If a later field is written, the oldest schema that has all of the written fields is written too.
    """
    written = [field for field in fields(record) if not (KEY in field.metadata and _is_default(record, field))]
    schema = max((_schema_of(field) for field in written), default=1)
    values = {field.name: getattr(record, field.name) for field in written}
    return values if schema == 1 else {**values, KEY: schema}


def without_schema(kind: type[Record], data: Mapping[str, object], *, what: str) -> dict[str, object]:
    """Return plain data without its schema; ``ValueError`` if that is later than any that the record knows."""
    newest = max(map(_schema_of, fields(kind)), default=1)
    refuse_later(data, newest, what=what)
    return {name: value for name, value in data.items() if name != KEY}


def refuse_later(data: Mapping[str, object], newest: int, *, what: str) -> None:
    """Raise ``ValueError`` if plain data is of a later schema than ``newest``, or of none at all."""
    schema = data.get(KEY, 1)
    if type(schema) is not int or not 1 <= schema <= newest:
        raise ValueError(
            f"{what} of schema {schema!r}, expected at most schema {newest}: a later version of autotune wrote it"
        )


def _schema_of(field: "Field[object]") -> int:
    return int(field.metadata.get(KEY, 1))


def _is_default(record: Record, field: "Field[object]") -> bool:
    return bool(getattr(record, field.name) == field.default)
