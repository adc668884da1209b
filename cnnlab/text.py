"""Text that others wrote, class names or the names of files for example, on its way to a terminal or a spreadsheet."""

import re
import sys
from typing import TextIO

JOINERS = "\u200c\u200d"  # invisible, and part of words in several scripts


def printable(text: str) -> str:
    """Control characters, which a terminal would obey, and what is not Unicode, as escapes: "\\x1b[31m"."""
    return "".join(
        character if character.isprintable() or character in JOINERS else character.encode("unicode_escape").decode()
        for character in text
    )


def say(text: object, file: TextIO | None = None) -> None:
    """Print lines of text; only the line breaks in it are obeyed."""
    print("\n".join(map(printable, str(text).split("\n"))), file=file or sys.stdout, flush=True)


def csv_cell(text: str) -> str:
    """A cell of a CSV file: a spreadsheet takes what begins with one of these signs for a formula, unless a ' does."""
    text = printable(text)
    is_number = re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not is_number else text
