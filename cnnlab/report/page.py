"""The report as files: report.html (one file, opens offline), report.md with its figures as PNG, runs.csv, report.tex.

All are written from one list of sections (`sections.document`) by Jinja2 templates in templates/. Whatever comes from a
run directory is a stranger's: it is escaped by default, and the page's policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import json
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
# A page works offline and is one file, and no Python package carries ECharts: so its release is kept here unchanged, a
# megabyte, verified by a test.
ECHARTS_VERSION = "6.1.0"
ECHARTS_SHA256 = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"  # of the file in echarts@6.1.0, npm
MOST_ROWS = 200  # of a table that the page shows at first; the others are made when they are asked for
MOST_TEXT_ROWS = 40  # of a table in Markdown and LaTeX
LONGEST_NAME = 60  # of the settings in the name of a folder


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
    """As `write`, into a folder beside the runs, which says what is compared; `latest` there leads to it.

    paths: the run directories, also of runs that have not begun.
    """
    paths = [path.resolve() for path in paths]
    digest = hashlib.sha256("\n".join(sorted(path.name for path in paths)).encode(errors="replace")).hexdigest()
    folder = Path(os.path.commonpath([path.parent for path in paths]), f"report-{_compared(sweep)}{digest[:8]}")
    written = write(sweep, folder, latex)
    _link(folder.parent / "latest", folder.name)
    return written


def _compared(sweep: Sweep) -> str:
    """What is varied, for the name of a folder: "aug=crop_flip+cutmix-optim=adam+sgd-"; fewer words if that is long."""
    axes = [axis.rpartition(".")[2] for axis in sweep.axes]
    full = "-".join(f"{name}={'+'.join(sweep.values(axis))}" for name, axis in zip(axes, sweep.axes, strict=True))
    name = full if len(full) <= LONGEST_NAME else "-".join(axes)
    return "".join(f"{part}-" for part in [re.sub(r"[^\w=+.-]", "_", name, flags=re.ASCII)[:LONGEST_NAME]] if part)


def _link(path: Path, target: str) -> None:
    """Make a symbolic link, or lead it elsewhere, by rename; without, where a file system has none."""
    if path.exists() and not path.is_symlink():
        return  # a folder of that name is someone else's
    partial = path.with_name(f".latest.{secrets.token_hex(4)}.partial")
    try:
        partial.symlink_to(target)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------------ the forms


def html(made: Document) -> str:
    """One HTML document without outside references."""
    charts = [figure for figure in made.figures() if figure.chart]
    scripts = [_read(name) for name in SCRIPTS]
    return (
        _environment(_plain)
        .get_template("report.html.jinja")
        .render(
            document=made,
            css=Markup(_read("report.css")),
            scripts=[Markup(script) for script in scripts],
            allowed=Markup(" ".join(f"'sha256-{_digest(script)}'" for script in scripts)),
            charts=_json([figure.chart for figure in charts]),
            place=charts.index,
            embedded=lambda figure: "data:image/png;base64," + base64.b64encode(figure.png()).decode(),
            more=_more,
            most_rows=MOST_ROWS,
            echarts_version=ECHARTS_VERSION,
        )
    )


def markdown(made: Document) -> str:
    """The report as text, for a code host or a pull request."""
    return _text(_environment(_markdown_escaped), "report.md.jinja", made)


def tex(made: Document) -> str:
    r"""The report for \input, with the packages booktabs and graphicx."""
    signs = {"block_start_string": "<%", "block_end_string": "%>"}
    signs |= {"comment_start_string": "<#", "comment_end_string": "#>"}
    signs |= {"variable_start_string": "<<", "variable_end_string": ">>"}
    return _text(_environment(_tex_escaped, **signs), "report.tex.jinja", made)


def _text(environment: jinja2.Environment, name: str, made: Document) -> str:
    text = environment.get_template(name).render(document=made, most_text_rows=MOST_TEXT_ROWS, amp=Markup(" & "))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def _environment(escaped: Callable[[str], str], **delimiters: Any) -> jinja2.Environment:
    """escaped: what becomes of text that is not the template's own; what it returns as str is escaped for html, too."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda value: escaped(printable(value)) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **delimiters,
    )
    made.filters["code"] = lambda text: Markup(printable(text))
    return made


def _plain(text: str) -> str:
    return text


def _markdown_escaped(text: str) -> str:
    return Markup(re.sub(r"([\\|<\[\]*`])", r"\\\1", text))


TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
TEX |= {">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"}
TEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def _tex_escaped(text: str) -> str:
    return Markup("".join(TEX.get(letter, letter) for letter in text))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Head and rows as a Markdown table."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join("---" for _ in rows[0]), *lines[1:]))


@functools.cache
def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(value: Any) -> Markup:
    """JSON as the content of a script element, which no text in it can end."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def _more(table: Table) -> Markup:
    """The rows that the page does not show at first: a cell is text, or text and where it leads."""

    def cell(value: Cell) -> str | list[str]:
        return [printable(value.text), value.href] if isinstance(value, Link) else printable(value)

    return _json([[cell(value) for value in row] for row in table.rows[MOST_ROWS + 1 :]])
