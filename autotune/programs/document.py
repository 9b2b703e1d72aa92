"""The document of one run of a program, as JSON and as a table: Document and its rows."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autotune.programs.check_result import CheckResult

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A result with the group of checks that it belongs to, and the seconds of that group if they are its own."""

    group: str
    result: CheckResult
    seconds: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {"group": self.group, **self.result.as_dict(), "seconds": self.seconds}


def rows_of(results: Iterable[CheckResult]) -> list[Row]:
    """Return a row for each result, each in a group of its own."""
    return [Row(group=result.check, result=result) for result in results]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Everything that the JSON file of a run holds; ``more`` are the entries of this program alone."""

    command: str
    rows: tuple[Row, ...]
    environment: Mapping[str, object]
    seconds: float
    quick: bool = False
    seed: int = 0
    more: Mapping[str, object] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(row.result.passed for row in self.rows)

    @property
    def summary(self) -> str:
        """One line: the number of failed checks, the duration and the command."""
        failed = sum(not row.result.passed for row in self.rows)
        passed = f"{failed} of {len(self.rows)} failed" if failed else f"all {len(self.rows)} passed"
        return f"{passed} in {self.seconds:.0f} s: {self.command}"

    def as_dict(self) -> dict[str, object]:
        """Return plain data for JSON."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": self.command,
            "quick": self.quick,
            "seed": self.seed,
            **self.more,
            "environment": dict(self.environment),
            "seconds": round(self.seconds, 2),
            "passed": self.passed,
            "checks": [row.as_dict() for row in self.rows],
        }

    def as_json(self) -> str:
        """Return JSON with one line for each key and one for each check, so that long lists do not fill a column."""
        rows = ",\n    ".join(json.dumps(row.as_dict()) for row in self.rows)
        lines = [
            f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in self.as_dict().items() if key != "checks"
        ]
        return "{\n" + ",\n".join([*lines, f'  "checks": [\n    {rows}\n  ]']) + "\n}\n"

    def table(self) -> "Table":
        """Return the rows as a table with the device as its title."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        title = f"{self.environment['device']}: {self.environment['device_name']}"
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
        for heading in ("check", "figure", "limit", "verdict"):
            table.add_column(heading, overflow="fold")
        table.add_column("seconds", justify="right")
        for row in self.rows:
            result = row.result
            verdict = Text("pass", style="green") if result.passed else Text("FAIL", style="bold red")
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            table.add_row(Text(result.check), Text(result.figure), Text(result.limit), verdict, seconds)
        return table
