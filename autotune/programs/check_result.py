"""The result of one check: CheckResult."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One row of the table: the figure of a check, its limit, and whether the figure keeps the limit.

    ``raw`` is plain data from which the figure follows.
    """

    check: str
    figure: str
    limit: str
    passed: bool
    raw: Mapping[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {**asdict(self), "raw": dict(self.raw)}


def rounded(value: float) -> float:
    """Keep seven significant digits: finer than any clock, and half the size in a file."""
    return float(f"{value:.7g}")
