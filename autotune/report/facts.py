"""Names and their values in two columns."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from autotune.report.fitting_table import WORDS, cell_text

GAP = 2


class Facts:
    """Two columns without a frame; in a narrow terminal each name stands before its value in the same line."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str | Text]] = []

    def add_row(self, name: str, value: str | Text) -> None:
        """Add a name with its value."""
        self._rows.append((name, value))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the columns, or the lines if columns do not fit."""
        rows = [(name, cell_text(value, console)) for name, value in self._rows]
        names = max((Text(name).cell_len for name, _ in rows), default=0)
        if names + GAP + WORDS > options.max_width:
            for name, value in rows:
                yield Text.assemble((f"{name}: ", "bold"), value, overflow="fold")
            return
        grid = Table.grid(padding=(0, GAP))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in rows:
            grid.add_row(name, value)
        yield grid
