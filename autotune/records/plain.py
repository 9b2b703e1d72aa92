"""The place at which JSON becomes the fields of records."""

from collections.abc import Mapping
from typing import Any


def values_in(data: Mapping[str, object]) -> dict[str, Any]:
    """Return the values of an object in JSON by their keys; the record that is made of them checks their types."""
    return dict(data)
