"""Names with what is known of each, as two columns."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autotune.report.fitting_table import WORDS, cell_text

GAP = 2


class Facts:
    """Two columns without a frame; in a narrow terminal each name stands before its text in the same line."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str | Text]] = []

    def add_row(self, name: str, told: str | Text) -> None:
        """Add what is known under a name."""
        self._rows.append((name, told))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it the way that fits."""
        rows = [(name, cell_text(told, console)) for name, told in self._rows]
        names = max((Text(name).cell_len for name, _ in rows), default=0)
        if names + GAP + WORDS > options.max_width:
            for name, told in rows:
                yield Text.assemble((f"{name}: ", "bold"), told, overflow="fold")
            return
        grid = Table.grid(padding=(0, GAP))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, told in rows:
            grid.add_row(name, told)
        yield grid
