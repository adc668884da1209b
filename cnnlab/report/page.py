"""The report of a sweep as files: report.html (one file, opens offline), report.md, runs.csv, and a LaTeX table.

Figures are SVG inside the page, drawn in the colour of its text, so that they are at home in light and dark.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import FixedLocator, MaxNLocator

from cnnlab.records import atomic_path, in_words, write_text
from cnnlab.report import pictures
from cnnlab.report.statistics import estimate
from cnnlab.report.sweep import Sweep, with_interval
from cnnlab.text import csv_cell, printable

INK = "#010203"  # stands for the colour of the text
MOST_CLASSES = 40  # in a table
CURVES = 8  # settings that are drawn, the best ones
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")  # Okabe and Ito's


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


# --------------------------------------------------------------------------------------------------------------- tables


def ranking_table(sweep: Sweep) -> list[list[str]]:
    """Head and rows: the settings, best first."""
    head = [*sweep.axes, sweep.name, "95% interval", "n", "behind the best", "best epoch", "seconds"]
    rows = [head]
    for place in sweep.ranking:
        score = place.score
        interval = f"{score.low:.4f} to {score.high:.4f}" if score.num > 1 else "one run"
        behind = ""
        if place.to_best:
            gap = place.to_best.estimate
            behind = f"{gap.mean:.4f}" + (f" ± {gap.half_width:.4f}" if math.isfinite(gap.half_width) else "")
            behind += "" if place.to_best.distinguishable or score.num < 2 else " (not told apart)"
        values = [place.setting.value(axis) for axis in sweep.axes]
        last = (str(score.num), behind, place.best_epochs(), f"{place.seconds():.0f}")
        rows.append([*values, f"{score.mean:.4f}", interval, *last])
    return rows


def effects_table(sweep: Sweep, axis: str) -> list[list[str]]:
    rows = [[axis, f"mean {sweep.name}", "difference to the first", "p"]]
    for effect in sweep.effects(axis):
        change, p_value = "", ""
        if effect.to_first:
            gap = effect.to_first.estimate
            change = f"{gap.mean:+.4f}" + (f" ± {gap.half_width:.4f}" if math.isfinite(gap.half_width) else "")
            p_value = f"{effect.to_first.p_value:.2g}" if math.isfinite(effect.to_first.p_value) else "-"
        rows.append([effect.value, with_interval(effect.score), change, p_value])
    return rows


def runs_table(sweep: Sweep) -> list[list[str]]:
    """Every run, in any state."""
    names = list(dict.fromkeys(name for run in sweep.runs for name in run.settings))
    metrics = list(dict.fromkeys(name for run in sweep.runs for name in run.summary.get("metrics", {})))
    rest = ("best_epoch", "epochs_done", "train_seconds", "images_per_second", "num_weights")
    rows = [["run", "status", "seed", *names, *metrics, *rest]]
    for run in sweep.runs:
        summary = run.summary
        rows.append(
            [
                str(summary["run"]),
                str(summary["status"]),
                str(run.seed),
                *(run.settings.get(name, "") for name in names),
                *(str(summary.get("metrics", {}).get(name, "")) for name in metrics),
                *(str(summary.get(name, "")) for name in rest),
            ]
        )
    return rows


def per_class_table(sweep: Sweep) -> list[list[str]]:
    """For the best setting: the accuracy of each class, the worst MOST_CLASSES, and what it is confused with."""
    matrix = sweep.confusion().tolist()
    classes = sweep.ranking[0].setting.runs[0].summary["data"]["classes"]
    rows = []
    for true, counts in enumerate(matrix):
        wrong = [(count, other) for other, count in enumerate(counts) if other != true]
        count, other = max(wrong)
        taken = f"{classes[other]} ({count / max(sum(counts), 1):.1%})" if count else "-"
        rows.append((counts[true] / max(sum(counts), 1), classes[true], taken))
    return [
        ["class", "accuracy", "most often confused with"],
        *([name, f"{acc:.4f}", taken] for acc, name, taken in sorted(rows)[:MOST_CLASSES]),
    ]


NOT_AGAIN = ("seed", "launcher", "rerun", "plan", "on_busy")  # words that do not belong to a setting


def commands(sweep: Sweep) -> list[str]:
    """What trains each setting again, with all its seeds."""
    found = []
    for place in sweep.ranking:
        runs = place.setting.runs
        words = [word for word in runs[0].summary.get("overrides", []) if re.split(r"[.=]", word)[0] not in NOT_AGAIN]
        seeds = ",".join(str(seed) for seed in sorted(run.seed for run in runs))
        sweeping = ["-m"] if len(runs) > 1 else []
        found.append(" ".join(["python train.py", *sweeping, *map(shlex.quote, words), f"seed={seeds}"]))
    return found


def facts(sweep: Sweep) -> list[list[str]]:
    """Versions, devices, commits and data of the runs."""
    rows = [["what", "of the runs"]]
    for title, part, keys in (
        ("", "environment", ("device", "precision", "num_devices", "python", "torch", "lightning", "commit", "dirty")),
        ("data ", "data", ("fingerprint", "num_train", "num_held_out", "num_test", "input_size")),
    ):
        for key in keys:
            values = {str(run.summary.get(part, {}).get(key, "-")) for run in sweep.runs if run.done}
            rows.append([f"{title}{key}", ", ".join(sorted(values))])
    rows.append(["code digest", ", ".join(sorted({str(run.summary.get("code_digest"))[:16] for run in sweep.runs}))])
    return rows


def outside(sweep: Sweep) -> list[str]:
    """What is not in the averages, and why."""
    lines = []
    for run in sweep.unfinished:
        status = {"running": "not finished (running, or killed)"}.get(run.summary["status"], run.summary["status"])
        error = run.summary.get("error", {})
        reason = f": {error.get('type', 'error')}: {error.get('message', '')}" if error else ""
        lines.append(f"{run.path.name}: {status}{reason}")
    return lines + [f"{path}: left out: {reason}" for path, reason in sweep.left_out]


# -------------------------------------------------------------------------------------------------------------- figures


def _figure(width: float, height: float) -> matplotlib.figure.Figure:
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def svg(figure: matplotlib.figure.Figure, description: str) -> str:
    """The figure as part of a page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cnnlab"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    unique = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{unique}-", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(description, quote=True)}"', 1)


STYLE: dict[Any, Any] = pictures.STYLE | {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.labelcolor": INK,
    "legend.framealpha": 0,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "axes.grid": True,
    "font.size": 9,
    "font.family": "sans-serif",
}


def curves(sweep: Sweep) -> str:
    """Loss and what is reported over epochs, a colour for a setting: the mean over seeds, and a band over all of them.

    Two figures that stand below each other on a phone, and the names of the colours.
    """
    places = list(zip(sweep.ranking[:CURVES], COLORS, strict=False))
    figures = []
    for metric in dict.fromkeys(("loss", sweep.measure.partition("/")[2])):
        name = in_words(metric)
        with matplotlib.rc_context(STYLE):
            figure = _figure(5.4, 3.9)
            axis = figure.subplots()
            for place, color in places:
                for part, dashes in (("train", "--"), (place.setting.held_out, "-")):
                    epochs, table = place.setting.over_epochs(f"{part}/{metric}")
                    axis.plot(epochs, np.nanmean(table, axis=0), dashes, color=color, linewidth=1.4)
                    if len(table) > 1:
                        low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
                        axis.fill_between(epochs, low, high, color=color, alpha=0.15, lw=0)
            axis.set(xlabel="epoch", ylabel=name)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            figures.append(svg(figure, f"{name} over epochs for every setting"))
    names = (
        f'<li><span style="background: {color}"></span> {html.escape(sweep.label(place.setting))}</li>'
        for place, color in places
    )
    return f'<div class="pair">{"".join(figures)}</div>\n<ul class="key">{"".join(names)}</ul>'


def by_value(sweep: Sweep, axis: str) -> str:
    """What a swept number does, the rest as in the best setting: loss over epochs; what is reported against its values.

    The first two figures have the form of the lab report's figures 1 and 2.
    """
    figures = []
    groups = sweep.alike(axis)
    if len(groups) > 1:
        for part, name in (("train", "training"), ("", "held-out")):
            with matplotlib.rc_context(STYLE):
                figure = _figure(5.4, 3.9)
                panel = figure.subplots()
                colors = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(groups))))
                for place, group in enumerate(groups):
                    epochs, table = group.over_epochs(f"{part or group.held_out}/loss")
                    panel.plot(epochs, np.nanmean(table, axis=0), color=colors(place), label=group.value(axis))
                panel.set(xlabel="epoch", ylabel=f"{name} loss")
                panel.xaxis.set_major_locator(MaxNLocator(integer=True))
                if len(groups) <= CURVES:
                    panel.legend(title=axis)
                else:
                    key = figure.colorbar(ScalarMappable(Normalize(0, len(groups) - 1), colors), ax=panel, label=axis)
                    key.ax.yaxis.set_major_locator(
                        FixedLocator(np.linspace(0, len(groups) - 1, CURVES).round().tolist())
                    )
                    key.ax.yaxis.set_major_formatter(lambda place, _: groups[round(place)].value(axis)[:8])
                figures.append(svg(figure, f"{name} loss over epochs for every value of {axis}"))
    with matplotlib.rc_context(STYLE):
        figure = _figure(5.4, 3.9)
        panel = figure.subplots()
        lines = groups if len(groups) > 1 else sweep.groups
        found = [(float(group.value(axis)), estimate(list(group.by_seed.values()))) for group in lines]
        values, means = [value for value, _ in found], [score.mean for _, score in found]
        spread = [score.half_width if math.isfinite(score.half_width) else 0 for _, score in found]
        joined = "o-" if len(groups) > 1 else "o"
        panel.errorbar(values, means, spread, fmt=joined, color=COLORS[0], capsize=3)
        if min(values) > 0 and max(values) >= 10 * min(values):
            panel.set_xscale("log")
        panel.set(xlabel=axis, ylabel=sweep.name)
        figures.append(svg(figure, f"{sweep.name} against {axis}"))
    return f'<div class="pair">{"".join(figures)}</div>'


def heat_map(sweep: Sweep) -> str:
    """What is reported, as a mean, over two axes."""
    first, second = sweep.axes
    rows, columns = sweep.values(first), sweep.values(second)
    cells = np.full((len(rows), len(columns)), np.nan)
    for group in sweep.groups:
        row, column = rows.index(group.value(first)), columns.index(group.value(second))
        cells[row, column] = estimate(list(group.by_seed.values())).mean
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = _figure(1.6 + 1.1 * len(columns), 1.2 + 0.55 * len(rows))
        axis = figure.subplots()
        shown = axis.imshow(cells, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        axis.set(xlabel=second, ylabel=first)
        middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
        for row, column in np.ndindex(*cells.shape):
            if not math.isnan(cells[row, column]):
                color = "white" if cells[row, column] < middle else "black"
                axis.text(column, row, f"{cells[row, column]:.3f}", ha="center", va="center", color=color)
        figure.colorbar(shown, label=sweep.name)
        return svg(figure, f"Mean {sweep.name} over {first} and {second}")


def confusion(sweep: Sweep) -> str:
    """Of the best setting, in percent of each true class; and the names of classes that the figure gives by number."""
    classes = sweep.ranking[0].setting.runs[0].summary["data"]["classes"]
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = _figure(*pictures.confusion_size(len(classes)))
        pictures.draw_confusion(figure.subplots(), sweep.confusion(), classes)
        drawn = svg(figure, "Confusion matrix of the best setting")
    names = pictures.drawable(classes) if len(classes) <= pictures.NAMED else [""] * len(classes)
    numbered = (
        f"<li>#{number}: {html.escape(name)}</li>"
        for number, (name, shown) in enumerate(zip(classes, names, strict=True))
        if shown in (f"#{number}", "")
    )
    return f'{drawn}\n<ul class="key">{"".join(numbered)}</ul>'


# ---------------------------------------------------------------------------------------------------------------- pages

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
    body = [f"<h1>{html.escape(sweep.question())}</h1>", f'<p class="answer">{html.escape(sweep.answer())}</p>']
    if sweep.ranking:
        held = ", ".join(f"{name} {value}" for name, value in sweep.held.items())
        body.append(
            f"<p>Held: {html.escape(held)}. The {html.escape(sweep.name)} is at the epoch chosen by "
            f"{html.escape(str(sweep.ranking[0].setting.runs[0].summary['selected_on']))}; intervals are "
            f"Student's t over seeds.</p>"
        )
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
        for axis in sweep.axes:
            table, numeric = effects_table(sweep, axis), sweep.is_numeric(axis)
            if len(table) > 1 or numeric:
                body.append(f"<h2>Effect of {html.escape(axis)}</h2>")
            if len(table) > 1:
                body.append(_table(table))
            if numeric:
                body.append(f"<figure>{by_value(sweep, axis)}</figure>")
        if len(sweep.axes) == 2:
            body += ["<h2>Both together</h2>", f'<figure class="small">{heat_map(sweep)}</figure>']
        if sweep.confusion().size:
            body += ["<h2>Classes, with the best setting</h2>", _table(per_class_table(sweep))]
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
    parts = [f"# {sweep.question()}", sweep.answer()]
    if sweep.ranking:
        parts += ["## Ranking", markdown_table(ranking_table(sweep))]
        for axis in sweep.axes:
            if len(table := effects_table(sweep, axis)) > 1:
                parts += [f"## Effect of {axis}", markdown_table(table)]
        if sweep.confusion().size:
            parts += ["## Classes, with the best setting", markdown_table(per_class_table(sweep))]
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
