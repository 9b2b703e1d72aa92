"""Canonical JSON, by which equal content is equal text and has one digest."""

import hashlib
import json
from collections.abc import Mapping


def canonical(value: object) -> str:
    """Canonical JSON: sorted keys, no white space, ASCII; raises ``ValueError`` for NaN and infinity."""

    def plain(item: object) -> object:
        if isinstance(item, Mapping):
            return dict(item)
        raise ValueError(f"{type(item).__name__} is no JSON: {item!r}")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=plain)


def digest(value: object) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
