"""The findings of ``autotune db check`` for people."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from autotune.report.fitting_table import FittingTable

if TYPE_CHECKING:
    from autotune.database.check import Finding


def findings_table(findings: "Sequence[Finding]", location: str) -> FittingTable:
    """Show one row for each finding, with its remedy."""
    counts = Counter(finding.kind for finding in findings)
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    table = FittingTable(title=Text(f"{location}: {summary}"), title_justify="left")
    for column in ("kind", "object", "name", "reason", "remedy"):
        table.add_column(column, overflow="fold", no_wrap=column in ("kind", "object"))
    for finding in findings:
        parts = (finding.kind, finding.what, finding.name, finding.found, finding.remedy)
        table.add_row(*(Text(part if part.isprintable() else repr(part)) for part in parts))
    return table
