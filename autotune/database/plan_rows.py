"""Reads a stored plan's columns without SQLAlchemy: its import alone takes longer than a look-up may."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from autotune.errors import DatabaseError, DeviceError
from autotune.records.device import slug
from autotune.records.plan import Plan

REVISIONS = ("0001", "0002", "0003")
"""The revisions that this version can read, oldest first; :mod:`autotune.database.schema` describes the last one."""

VERSION_TABLE = "autotune_version"


class StoredJson(Mapping[str, object]):
    """A mapping that is parsed when it is first looked into: a plan's evidence is large, and a look-up skips it."""

    __slots__ = ("_parsed", "_text", "_uid")

    def __init__(self, text: str, uid: str) -> None:
        self._text = text
        self._uid = uid
        self._parsed: dict[str, object] | None = None

    def _content(self) -> dict[str, object]:
        if self._parsed is None:
            with readable(self._uid):
                self._parsed = dict(json.loads(self._text))
        return self._parsed

    def __getitem__(self, key: str) -> object:
        return self._content()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content())

    def __len__(self) -> int:
        return len(self._content())

    def __repr__(self) -> str:
        return repr(self._content())


def plan_record(uid: str, record: Mapping[str, object] | str, evidence: str) -> Plan:
    """Return the plan of a row's two JSON columns; raises DatabaseError if they hold none."""
    with readable(uid):
        data = json.loads(record) if isinstance(record, str) else record
        return Plan.from_dict({**data, "evidence": StoredJson(evidence, uid)})


@contextmanager
def readable(uid: str) -> Iterator[None]:
    """Turn the error of a row that holds no plan into DatabaseError."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatabaseError(
            f"Plan {uid} of the tuning database cannot be read",
            found=f"{type(error).__name__}: {error}".split("\n")[0],
            expected="a plan that autotune wrote",
            run="autotune db check",
        ) from error


def device_classes(stored: list[str], device: str) -> list[str]:
    """Return the device classes that a part of a SKU fits; raises DeviceError if it fits several SKUs."""
    part = device if "/" in device else slug(device)
    sku = {name: name.split("/", 1)[0] for name in stored}
    exact = [name for name in stored if part in (name, sku[name])]
    fitting = exact or [name for name in stored if part and part in sku[name]]
    skus = sorted({sku[name] for name in fitting})
    if len(skus) > 1:
        raise DeviceError(
            f"Device {device!r} could be several", found=", ".join(skus), expected="a part of one name alone"
        )
    return fitting
