"""The report as files: report.html (one file, opens offline), report.md with its figures as PNG, runs.csv, report.tex.

All forms are written from one list of sections by the Jinja templates in templates/. Text from run directories is
untrusted: it is escaped by default, and the page's content security policy allows no scripts but its own.
"""

import base64
import csv
import functools
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cnnlab.report.document import Cell, Document, Link, Table
from cnnlab.report.sections import document
from cnnlab.report.sweep import Sweep
from cnnlab.report.tables import runs_table
from cnnlab.runs.files import atomic_path, write_text
from cnnlab.text import csv_cell, printable

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("echarts/echarts.min.js", "tables.js", "charts.js")
# The page is one file that works offline, and no Python package ships ECharts: so its release is kept here unchanged.
ECHARTS_VERSION = "6.1.0"
ECHARTS_SHA256 = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"  # of the file in echarts@6.1.0, npm
MAX_ROWS = 200  # of a table, until the reader asks for all
MAX_TEXT_ROWS = 40  # of a table in Markdown and LaTeX
MAX_NAME = 60  # characters for the settings in the name of a folder
TEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "[": "{[}",  # after a line break, brackets would be an argument of it
    "]": "{]}",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}


def write(sweep: Sweep, folder: Path, latex: bool = False) -> Path:
    """Write the report into a folder; return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    made = document(sweep, folder)
    write_text(folder / "report.html", html(made))
    for figure in made.figures():
        with atomic_path(folder / f"{figure.name}.png") as partial:
            partial.write_bytes(figure.png())
    write_text(folder / "report.md", markdown(made))
    if latex:
        write_text(folder / "report.tex", tex(made))
    with atomic_path(folder / "runs.csv") as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(map(csv_cell, row) for row in runs_table(sweep))
    return folder / "report.html"


def write_beside(sweep: Sweep, paths: Sequence[Path], latex: bool = False) -> Path:
    """As `write`, into a folder beside the runs that is named after what is compared; `latest` there links to it.

    paths: the run directories, including those of runs that have not begun.
    """
    paths = [path.resolve() for path in paths]
    digest = hashlib.sha256("\n".join(sorted(path.name for path in paths)).encode(errors="replace")).hexdigest()
    full = "-".join(f"{sweep.short[axis]}={'+'.join(sweep.values(axis))}" for axis in sweep.axes)
    shown = full if len(full) <= MAX_NAME else "-".join(sweep.short.values())
    compared = re.sub(r"[^\w=+.-]", "_", shown, flags=re.ASCII)[:MAX_NAME]
    parent = Path(os.path.commonpath([path.parent for path in paths]))
    written = write(sweep, parent / "-".join(filter(None, ["report", compared, digest[:8]])), latex)
    _link(parent / "latest", written.parent.name)
    return written


def _link(path: Path, target: str) -> None:
    """Create or replace a symbolic link by rename, unless the file system has none."""
    if path.exists() and not path.is_symlink():
        return  # not ours
    partial = path.with_name(f".latest.{secrets.token_hex(4)}.partial")
    try:
        partial.symlink_to(target)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ the forms


def html(made: Document) -> str:
    """One HTML document without external references."""
    charts = [figure for figure in made.figures() if figure.chart]
    scripts = [_read(name) for name in SCRIPTS]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    template = _environment(lambda text: text).get_template("report.html.jinja")
    return template.render(
        document=made,
        css=Markup(_read("report.css")),
        scripts=[Markup(script) for script in scripts],
        allowed=Markup(" ".join(f"'sha256-{digest}'" for digest in digests)),
        charts=[figure.chart for figure in charts],
        place=charts.index,
        embedded=lambda figure: "data:image/png;base64," + base64.b64encode(figure.png()).decode(),
        more=_more_rows,
        max_rows=MAX_ROWS,
        echarts_version=ECHARTS_VERSION,
    )


def markdown(made: Document) -> str:
    """The report as Markdown, for a code host or a pull request."""

    def escape(text: str) -> str:
        return Markup(re.sub(r"([\\|<\[\]*`])", r"\\\1", text))

    return _text(_environment(escape), "report.md.jinja", made)


def tex(made: Document) -> str:
    r"""The report for \input, with the packages booktabs and graphicx."""
    environment = _environment(
        lambda text: Markup("".join(TEX.get(letter, letter) for letter in text)),
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        variable_start_string="<<",
        variable_end_string=">>",
    )
    return _text(environment, "report.tex.jinja", made)


def _text(environment: jinja2.Environment, name: str, made: Document) -> str:
    text = environment.get_template(name).render(document=made, max_text_rows=MAX_TEXT_ROWS, amp=Markup(" & "))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def _environment(escape: Callable[[str], str], **delimiters: Any) -> jinja2.Environment:
    """escape: applied to all text but the templates' own; unless it returns Markup, HTML's escaping follows."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda value: escape(printable(value)) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **delimiters,
    )
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    made.filters["code"] = lambda text: Markup(printable(text))
    return made


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Head and rows as a Markdown table."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join("---" for _ in rows[0]), *lines[1:]))


@functools.cache
def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _more_rows(table: Table) -> list[list[str | list[str]]]:
    """The rows that the page does not show at first; a cell is its text, or its text and link."""

    def cell(value: Cell) -> str | list[str]:
        return [printable(value.text), value.href] if isinstance(value, Link) else printable(value)

    return [[cell(value) for value in row] for row in table.rows[MAX_ROWS + 1 :]]
