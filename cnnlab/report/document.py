"""The content of a report in any form: sections of text, tables, figures and commands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Link:
    """A link to a file or folder. href: relative to the report's folder, percent-encoded."""

    text: str
    href: str

    def __str__(self) -> str:
        return self.text


Cell = str | Link


@dataclass(frozen=True)
class Text:
    """A paragraph. style: "", "strong" or "answer"; link: ends the paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    style: str = ""
    link: Link | None = None


@dataclass(frozen=True)
class Lines:
    """kind: "items" of a bulleted list, or "commands" to copy."""

    kind: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first row is the head.

    Attributes:
        filters: the columns that the page offers as filters; with any, the table can also be sorted and searched.
        wraps: whether cells may take several lines.
    """

    kind: ClassVar[str] = "table"
    rows: Sequence[Sequence[Cell]]
    filters: Sequence[str] = ()
    wraps: bool = False


@dataclass(frozen=True)
class Figure:
    """An interactive chart on the page, and a PNG file beside the other forms.

    Attributes:
        name: of the file, without its suffix.
        chart: the numbers, see `charts`; None if the page shows the PNG, too.
        png: draws it.
        key: explains numbered labels, which only the PNG has.
    """

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    chart: dict[str, Any] | None
    png: Callable[[], bytes]
    key: str = ""


Block = Text | Lines | Table | Figure


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report. lead: the blocks before the first heading."""

    title: str
    lead: Sequence[Block]
    sections: Sequence[Section]

    def figures(self) -> list[Figure]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]
