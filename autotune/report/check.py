"""What is wrong with a tuning database, for people to read."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from autotune.report.fitting_table import FittingTable

if TYPE_CHECKING:
    from autotune.database.check import Finding


def findings_table(findings: "Sequence[Finding]", location: str) -> FittingTable:
    """One row for each thing that is wrong, with what mends it."""
    counts = Counter(finding.kind for finding in findings)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    table = FittingTable(title=Text(f"{location}: {told}"), title_justify="left")
    for column in ("kind", "what", "name", "found", "remedy"):
        table.add_column(column, overflow="fold", no_wrap=column in ("kind", "what"))
    for finding in findings:
        parts = (finding.kind, finding.what, finding.name, finding.found, finding.remedy)
        table.add_row(*(Text(part if part.isprintable() else repr(part)) for part in parts))
    return table
