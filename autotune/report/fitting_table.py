"""A table that fits a terminal of any width."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from autotune.standard_streams import readable

WORDS = 12
"""A column of words, which may be broken, gets at least so many characters; one of figures its longest figure."""
UNBOUNDED = 100_000


class FittingTable(Table):
    """As wide as it needs to be; narrower with lines that break between words; at last one line a cell.

    No figure is ever cut: a column without ``overflow="fold"`` keeps its longest word whole, unless a single word is
    wider than the whole console. It draws titles, captions, justification and the styles of rows, and no other options
    of its base class.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it the way that fits."""
        heads = [cell_text(column.header, console) for column in self.columns]
        rows = list(zip(*([cell_text(cell, console) for cell in column.cells] for column in self.columns), strict=True))
        wide = options.update(width=UNBOUNDED)
        sizes = [
            [Measurement.get(console, wide, text) for text in (head, *(row[index] for row in rows))]
            for index, head in enumerate(heads)
        ]
        most = [max(size.maximum for size in column) for column in sizes]
        least = [
            max([head.minimum, *(min(size.minimum, _most_words(column)) for size in cells)])
            for column, (head, *cells) in zip(self.columns, sizes, strict=True)
        ]
        left = options.max_width - 3 * len(self.columns) - 1
        if sum(least) > left:
            yield from self._lines(heads, rows, console)
            return
        fitted = Table(
            title=self.title and cell_text(self.title, console), title_justify=self.title_justify,
            caption=self.caption and cell_text(self.caption, console), caption_justify=self.caption_justify,
        )  # fmt: skip
        for column, head, width in zip(self.columns, heads, _widths(least, most, left), strict=True):
            fitted.add_column(head, justify=column.justify, width=width, overflow="fold")
        for cells, row in zip(rows, self.rows, strict=True):
            fitted.add_row(*cells, style=row.style)
        yield fitted

    def _lines(self, heads: Sequence[Text], rows: Sequence[Sequence[Text]], console: Console) -> RenderResult:
        """One line a cell, with its column's name before it; an empty line before each row."""
        if self.title:
            yield cell_text(self.title, console)
        for cells, row in zip(rows, self.rows, strict=True):
            yield Text("")
            for head, cell in zip(heads, cells, strict=True):
                if cell.plain.strip():
                    name = f"{head.plain}: " if head.plain else ""
                    yield Text.assemble((name, "bold"), cell, style=row.style or "", overflow="fold")
        if self.caption:
            yield cell_text(self.caption, console)


def _most_words(column: Column) -> int:
    return WORDS if column.overflow == "fold" else UNBOUNDED


def _widths(least: Sequence[int], most: Sequence[int], left: int) -> list[int]:
    """Share out the room between columns: the narrowest grow first, and none beyond what it can use."""
    widths = list(least)
    room = left - sum(widths)
    while room > 0 and (growing := [index for index, width in enumerate(widths) if width < most[index]]):
        widths[min(growing, key=widths.__getitem__)] += 1
        room -= 1
    return widths


def cell_text(cell: object, console: Console) -> Text:
    """A cell as it will be written, so that characters which a locale lacks do not push its columns apart."""
    text = cell if isinstance(cell, Text) else console.render_str(str(cell), highlight=False)
    plain = readable(text.plain, console.encoding)
    return text if plain == text.plain else Text(plain, style=text.style)
