"""The figures of a report: SVG, drawn in the colour of the page's text."""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import FixedLocator, MaxNLocator

from cnnlab.report import pictures
from cnnlab.report.sweep import Sweep
from cnnlab.report.trials import best_of
from cnnlab.report.units import heading, is_accuracy, mean_of, scale
from cnnlab.runs.told import in_words

INK = "#010203"  # stands for the colour of the text
CURVES = 8  # settings that are drawn, the best ones
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")  # Okabe and Ito's


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
        found = [(float(group.value(axis)), mean_of(sweep.measure, list(group.by_seed.values()))) for group in lines]
        values, means = [value for value, _ in found], np.array([scale(sweep.measure) * made.mean for _, made in found])
        ends = [(made.low, made.high) if math.isfinite(made.half_width) else (made.mean,) * 2 for _, made in found]
        spread = np.abs(scale(sweep.measure) * np.array(ends).T - means)
        joined = "o-" if len(groups) > 1 else "o"
        panel.errorbar(values, means, spread, fmt=joined, color=COLORS[0], capsize=3)
        if min(values) > 0 and max(values) >= 10 * min(values):
            panel.set_xscale("log")
        panel.set(xlabel=axis, ylabel=heading(sweep.measure))
        figures.append(svg(figure, f"{sweep.name} against {axis}"))
    return f'<div class="pair">{"".join(figures)}</div>'


def heat_map(sweep: Sweep) -> str:
    """What is reported, as a mean, over two axes."""
    first, second = sweep.axes
    rows, columns = sweep.values(first), sweep.values(second)
    cells = np.full((len(rows), len(columns)), np.nan)
    for group in sweep.groups:
        row, column = rows.index(group.value(first)), columns.index(group.value(second))
        cells[row, column] = scale(sweep.measure) * np.mean(list(group.by_seed.values()))
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
                text = f"{cells[row, column]:.{1 if is_accuracy(sweep.measure) else 3}f}"
                axis.text(column, row, text, ha="center", va="center", color=color)
        figure.colorbar(shown, label=heading(sweep.measure))
        return svg(figure, f"Mean {sweep.name} over {first} and {second}")


def best_of_curve(sweep: Sweep) -> str:
    """The best that is to be expected, over the number of trials."""
    nums, means = best_of(sweep)
    with matplotlib.rc_context(STYLE):
        figure = _figure(5.4, 3.9)
        axis = figure.subplots()
        axis.plot(nums, scale(sweep.measure) * np.array(means), "o-", color=COLORS[0], markersize=3)
        axis.set(xlabel="trials", ylabel=f"expected best {heading(sweep.measure)}", xscale="log")
        return svg(figure, f"Expected best {sweep.name} over the number of trials")


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
