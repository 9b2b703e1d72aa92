"""Reads a stored plan's columns without SQLAlchemy: its import alone takes longer than a look-up may."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields

from autotune.errors import DatabaseError, DeviceError
from autotune.records.device import names_sku, slug
from autotune.records.evidence import PlanEvidence
from autotune.records.plan import Plan

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""The revisions that this version can read, oldest first; :mod:`autotune.database.schema` describes the last one."""

READABLE = REVISIONS[2:]
"""The revisions whose rows are those of the last one: 0004 to 0006 only add a table each. They are read without an
upgrade if a database can only be read."""

VERSION_TABLE = "autotune_version"

FIELDS = frozenset(field.name for field in fields(PlanEvidence))


class StoredEvidence(PlanEvidence):
    """Evidence that is parsed when one of its fields is first read: it is large, and a look-up of a plan skips it.

    Reading a field raises DatabaseError if the stored text is no evidence.
    """

    __slots__ = ("_text", "_uid")
    _text: str
    _uid: str

    def __init__(self, text: str, uid: str) -> None:
        object.__setattr__(self, "_text", text)
        object.__setattr__(self, "_uid", uid)

    def __getattr__(self, name: str) -> object:
        """Parse the text; Python calls this for a field that has no value yet."""
        if name not in FIELDS:
            raise AttributeError(f"evidence has no field {name!r}")
        with readable(f"Plan {self._uid}"):
            parsed = PlanEvidence.from_dict(dict(json.loads(self._text)))
        for field in FIELDS:
            object.__setattr__(self, field, getattr(parsed, field))
        value: object = getattr(parsed, name)
        return value

    def __repr__(self) -> str:
        return repr(self.as_dict())


def plan_record(uid: str, record: Mapping[str, object] | str, evidence: str) -> Plan:
    """Return the plan of a row's two JSON columns; raises DatabaseError if they hold none."""
    with readable(f"Plan {uid}"):
        data = json.loads(record) if isinstance(record, str) else record
        return Plan.from_dict({**data, "evidence": StoredEvidence(evidence, uid)})


@contextmanager
def readable(row: str, *, expected: str = "a plan that autotune wrote") -> Iterator[None]:
    """Turn the error of a row that holds no record into DatabaseError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatabaseError(
            f"{row} of the tuning database cannot be read",
            found=f"{type(error).__name__}: {error}".split("\n")[0],
            expected=expected,
            run="autotune db check",
        ) from error


def device_classes(stored: list[str], device: str) -> list[str]:
    """Return the device classes that a part of a SKU fits; raises DeviceError if it fits several SKUs."""
    part = device if "/" in device else slug(device)
    sku = {name: name.split("/", 1)[0] for name in stored}
    exact = [name for name in stored if part in (name, sku[name])]
    fitting = exact or [name for name in stored if names_sku(part, sku[name])]
    skus = sorted({sku[name] for name in fitting})
    if len(skus) > 1:
        raise DeviceError(
            f"Device {device!r} could be several", found=", ".join(skus), expected="a part of one name alone"
        )
    return fitting
