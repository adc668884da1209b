"""What a report consists of, whatever it is written as: sections of text, tables, figures and commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Link:
    """Text that leads to a file or folder. href: relative to the report's folder, percent-encoded."""

    text: str
    href: str

    def __str__(self) -> str:
        return self.text


Cell = str | Link


@dataclass(frozen=True)
class Text:
    """A paragraph. style: "", "strong" or "answer"; link: what it ends with."""

    kind: ClassVar[str] = "text"
    text: str
    style: str = ""
    link: Link | None = None


@dataclass(frozen=True)
class Items:
    """A bulleted list."""

    kind: ClassVar[str] = "items"
    lines: Sequence[str]


@dataclass(frozen=True)
class Commands:
    """Command lines, to be copied."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells, of which the first is the head.

    Attributes:
        filters: columns by whose values the page offers to filter. With them it can also be sorted and searched.
        wraps: whether cells may be longer than a line.
    """

    kind: ClassVar[str] = "table"
    rows: Sequence[Sequence[Cell]]
    filters: Sequence[str] = ()
    wraps: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure: an interactive chart on the page, and a PNG file beside the other forms.

    Attributes:
        name: of the file, without its suffix.
        caption: what it shows.
        chart: the numbers that are drawn, see `charts`; None if the page shows the PNG, too.
        png: draws it.
        key: what its numbers stand for; only the PNG has them.
    """

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    chart: dict[str, Any] | None
    png: Callable[[], bytes]
    key: str = ""


Block = Text | Items | Commands | Table | Figure


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report. lead: what comes before the first heading."""

    title: str
    lead: Sequence[Block]
    sections: Sequence[Section] = field(default=())

    def figures(self) -> list[Figure]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]
