"""Tables on the terminal."""

import os
from typing import Any

from rich import table
from rich.console import Console
from rich.text import Text

from cnnlab.text import printable


class Table(table.Table):
    """A table of plain text: brackets are no markup, and control characters are not obeyed."""

    def __init__(self, *headers: str, title: str = ""):
        super().__init__(*headers, title=Text(printable(title)) if title else None, title_justify="left")

    def add_row(self, *cells: Any, **settings: Any) -> None:
        super().add_row(*(Text(printable(str(cell))) for cell in cells), **settings)

    def show(self, width: int = 160) -> None:
        """Print it; as wide as the terminal, or `width` characters where there is none."""
        Console(width=None if os.isatty(1) else width).print(self)
