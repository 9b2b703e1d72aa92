"""What one check found: Outcome."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row of the table: what was found, the limit it was held against, and whether it held.

    ``raw`` is plain data from which the figure follows.
    """

    check: str
    figure: str
    limit: str
    passed: bool
    raw: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "raw": dict(self.raw)}


def rounded(value: float) -> float:
    """Keep seven significant digits: finer than any clock, and half the size in a file."""
    return float(f"{value:.7g}")
