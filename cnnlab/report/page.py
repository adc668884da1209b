"""The report of a sweep as files: report.html (one file, opens offline), report.md, runs.csv, and a LaTeX table.

Figures are SVG inside the page, drawn in the colour of its text, so that they are at home in light and dark.
"""

from __future__ import annotations

import csv
import hashlib
import html
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cnnlab.report.answer import answer, notes, protocol
from cnnlab.report.figures import best_of_curve, by_value, confusion, curves, heat_map
from cnnlab.report.sweep import Sweep
from cnnlab.report.tables import (
    best_of_table,
    commands,
    effect_sections,
    facts,
    outside,
    per_class_table,
    ranking_table,
    runs_table,
)
from cnnlab.report.trials import is_search
from cnnlab.runs.files import atomic_path, write_text
from cnnlab.text import csv_cell, printable

MOST_CELLS = 400  # of the heat map
BEST_OF = "Expected best by the number of trials"


def write(sweep: Sweep, folder: Path, latex: bool = False) -> Path:
    """Write the report into a folder; return the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.html", page(sweep))
    write_text(folder / "report.md", "\n".join(map(printable, markdown(sweep).split("\n"))))
    with atomic_path(folder / "runs.csv") as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(map(csv_cell, row) for row in runs_table(sweep))
    if latex:
        write_text(folder / "table.tex", latex_table(sweep))
    return folder / "report.html"


def default_folder(paths: Sequence[Path]) -> Path:
    """Beside the runs: a folder named by which ones they are."""
    paths = [path.resolve() for path in paths]
    digest = hashlib.sha256("\n".join(sorted(path.name for path in paths)).encode()).hexdigest()
    return Path(os.path.commonpath([path.parent for path in paths]), f"report-{digest[:8]}")


CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --faint: #8884; --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --mark: #56b4e9; } }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.answer { border-left: 4px solid var(--mark); padding: .2rem 0 .2rem 1rem; font-size: 1.1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--faint); white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; } .pair svg { flex: 1 1 22rem; min-width: 0; max-width: 31rem; }
.key { list-style: none; padding: 0; font-size: .9rem; columns: 20rem; }
.key span { display: inline-block; width: 1.4em; height: .25em; vertical-align: middle; margin-right: .4em; }
figure { margin: 0; } svg { width: 100%; height: auto; } .small svg { max-width: 34rem; }
pre { overflow-x: auto; background: var(--faint); padding: .6rem; font-size: .8rem; }
footer { color: gray; font-size: .85rem; margin-top: 2rem; }
@media print { body { max-width: none; font-size: 10pt; } h2 { break-after: avoid; }
  figure, svg, tr { break-inside: avoid; } pre { white-space: pre-wrap; } }
"""


def page(sweep: Sweep) -> str:
    """The whole report as one HTML document without outside references."""
    body = [f"<h1>{html.escape(sweep.question())}</h1>"]
    if text := protocol(sweep):
        body.append(f"<p><strong>{html.escape(text)}</strong></p>")
    body.append(f'<p class="answer">{html.escape(answer(sweep))}</p>')
    if sweep.ranking:
        held = ", ".join(f"{name} {value}" for name, value in sweep.held.items())
        body += [f"<p>{html.escape(note)}</p>" for note in (f"Fixed: {held}.", *notes(sweep))]
        if sweep.apart:
            warning = "; ".join(sweep.apart)
            body.append(
                f"<p><strong>The runs differ in more than their settings</strong> ({html.escape(warning)}); "
                f"such runs are not averaged with each other.</p>"
            )
        body += ["<h2>Ranking</h2>", _table(ranking_table(sweep))]
        body += [
            "<h2>Curves</h2>",
            f"<figure>{curves(sweep)}</figure>",
            "<p>Solid: held-out images, or test images where none are held out; dashed: training. "
            "Bands span all seeds.</p>",
        ]
        for title, text, table in effect_sections(sweep):
            body += [f"<h2>{html.escape(title)}</h2>", f"<p>{html.escape(text)}</p>" if text else "", _table(table)]
        for axis in filter(sweep.is_numeric, sweep.axes):
            body += [f"<h2>Values of {html.escape(axis)}</h2>", f"<figure>{by_value(sweep, axis)}</figure>"]
        if len(sweep.axes) == 2 and math.prod(len(sweep.values(axis)) for axis in sweep.axes) <= MOST_CELLS:
            body += ["<h2>Interaction</h2>", f'<figure class="small">{heat_map(sweep)}</figure>']
        if is_search(sweep):
            body += [f"<h2>{BEST_OF}</h2>", _table(best_of_table(sweep))]
            body.append(f'<figure class="small">{best_of_curve(sweep)}</figure>')
        if sweep.confusion().size:
            body += ["<h2>Classes on test images, with the chosen setting</h2>", _table(per_class_table(sweep))]
            body += [f'<figure class="small">{confusion(sweep)}</figure>']
    if lines := outside(sweep):
        body += ["<h2>Not in the averages</h2>", "<ul>", *(f"<li>{html.escape(line)}</li>" for line in lines), "</ul>"]
    if sweep.ranking:
        body += ["<h2>Commands</h2>", f"<pre>{html.escape(chr(10).join(commands(sweep)))}</pre>"]
        body += ["<h2>Of what the runs are made</h2>", _table(facts(sweep), long=True)]
    body.append(f"<footer>{len(sweep.runs)} runs; made by cnnlab from their files.</footer>")
    title = html.escape(sweep.question())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def _table(rows: list[list[str]], long: bool = False) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    kind = ' class="long"' if long else ""
    lines = ("".join(f"<td{kind}>{html.escape(cell)}</td>" for cell in row) for row in rows[1:])
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def markdown(sweep: Sweep) -> str:
    """The report as text: what a pull request or a notebook takes."""
    parts = [f"# {sweep.question()}", *filter(None, [protocol(sweep)]), answer(sweep)]
    if sweep.ranking:
        parts += [*notes(sweep), "## Ranking", markdown_table(ranking_table(sweep))]
        for title, text, table in effect_sections(sweep):
            parts += [f"## {title}", *filter(None, [text.strip()]), markdown_table(table)]
        if is_search(sweep):
            parts += [f"## {BEST_OF}", markdown_table(best_of_table(sweep))]
        if sweep.confusion().size:
            parts += ["## Classes on test images, with the chosen setting", markdown_table(per_class_table(sweep))]
    if lines := outside(sweep):
        parts += ["## Not in the averages", "\n".join(f"- {line}" for line in lines)]
    if sweep.ranking:
        parts += ["## Commands", "\n".join(f"    {command}" for command in commands(sweep))]
        parts += ["## Of what the runs are made", markdown_table(facts(sweep))]
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: list[list[str]]) -> str:
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join("---" for _ in rows[0]), *lines[1:]))


def latex_table(sweep: Sweep) -> str:
    """The ranking as a tabular for the booktabs package."""

    def escaped(cell: str) -> str:
        return re.sub(r"([&%$#_{}])", r"\\\1", cell).replace("±", r"$\pm$")

    rows = ranking_table(sweep)
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in rows]
    columns = "l" * len(sweep.axes) + "r" * (len(rows[0]) - len(sweep.axes))
    body = "\n".join(lines[1:])
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )
