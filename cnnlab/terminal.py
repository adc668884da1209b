"""Tables on the terminal."""

import os
from typing import Any

from rich import box, table
from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from cnnlab.text import printable


def terminal_width(otherwise: int) -> int | None:
    """The width of a rich.Console: None, by which it uses that of the terminal or of COLUMNS, if there is one."""
    return None if os.isatty(1) or os.environ.get("COLUMNS", "").isdecimal() else otherwise


class Table(table.Table):
    """A table of plain text: markup and control characters have no effect.

    On a narrow terminal, columns are left out, the highest rank first; everywhere, those without content. Columns of
    rank 0 always stay.
    """

    def __init__(self, *headers: str, title: str = ""):
        super().__init__(
            *headers, title=Text(printable(title)) if title else None, title_justify="left", box=box.SIMPLE_HEAD
        )
        self.ranks: dict[int, int] = {}

    def add(self, header: str, rank: int = 0, number: bool = True, fold: bool = False) -> None:
        """Add a column. number: align it to the right. fold: wrap long cells."""
        self.ranks[len(self.columns)] = rank
        self.add_column(
            Text(printable(header)),
            justify="right" if number else "left",
            no_wrap=not fold,
            overflow="fold",
            min_width=24 if fold else None,
        )

    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*(Text(printable(str(cell))) for cell in cells), **settings)

    def show(self, width: int = 160) -> None:
        """Print the table, as wide as the terminal, or `width` characters wide if there is none."""
        console = Console(width=terminal_width(width))
        shown = [column for column in self.columns if any(map(str, column._cells)) or not self.ranks.get(column._index)]
        self.columns = shown
        by_rank = sorted((place for place, rank in self.ranks.items() if rank), key=lambda place: -self.ranks[place])
        unbounded = console.options.update(width=10_000)
        for column in self.columns:
            if column.no_wrap:
                column.min_width = max(Text(str(cell)).cell_len for cell in (column.header, *column._cells))
        while by_rank and Measurement.get(console, unbounded, self).minimum > console.width:
            dropped = by_rank.pop(0)
            self.columns = [column for column in self.columns if column._index != dropped]
        console.print(self)
