"""A table that fits a terminal of any width."""

import unicodedata
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from autotune.standard_streams import readable

WORDS = 12
"""The least width of a column of words, which may be broken; a column of figures has room for its longest figure."""
UNBOUNDED = 100_000


class FittingTable(Table):
    """A table as wide as its content; in a narrow terminal lines break between words, or each cell is a line.

    No figure is ever cut: a column without ``overflow="fold"`` keeps its longest word whole, unless a word is wider
    than the whole console. It draws titles, captions, justification and the styles of rows, and no other options of its
    base class.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the table, or the lines if a table does not fit."""
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
        """Draw each cell as a line after the name of its column, with an empty line before each row."""
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
    """Divide the room between columns: the narrowest grow first, and none beyond the width of its content."""
    widths = list(least)
    room = left - sum(widths)
    while room > 0 and (growing := [index for index, width in enumerate(widths) if width < most[index]]):
        widths[min(growing, key=widths.__getitem__)] += 1
        room -= 1
    return widths


def cell_text(cell: object, console: Console) -> Text:
    """Return the text of a cell in the console's encoding: the replacement of a character may be longer than it.

    A name may come from anyone, so brackets are no markup, and a control character is shown as its escape.
    """
    text = cell if isinstance(cell, Text) else Text(str(cell))
    plain = readable("".join(map(_shown, text.plain)), console.encoding)
    return text if plain == text.plain else Text(plain, style=text.style)


def _shown(character: str) -> str:
    is_control = character != "\n" and unicodedata.category(character) == "Cc"
    return character.encode("unicode_escape").decode() if is_control else character
