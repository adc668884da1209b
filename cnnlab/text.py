"""Untrusted text, such as class and file names, made safe for a terminal or a spreadsheet."""

import re
import shutil
import sys
import textwrap
from typing import TextIO

JOINERS = "\u200c\u200d"  # invisible, and part of words in several scripts


def printable(text: str) -> str:
    """Escape control characters, which a terminal would obey, and what is not valid Unicode: "\\x1b[31m"."""
    return "".join(
        character if character.isprintable() or character in JOINERS else character.encode("unicode_escape").decode()
        for character in text
    )


def say(text: object, file: TextIO | None = None) -> None:
    """Print text, wrapped between words on a terminal; of its control characters only line breaks have an effect."""
    stream = file or sys.stdout
    lines = list(map(printable, str(text).split("\n")))
    if stream and stream.isatty():  # a closed one is None
        width = shutil.get_terminal_size().columns
        lines = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines]
    print("\n".join(lines), file=stream, flush=True)


def csv_cell(text: str) -> str:
    """A cell of a CSV file, quoted if a spreadsheet would interpret it as a formula."""
    text = printable(text)
    is_number = re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not is_number else text
