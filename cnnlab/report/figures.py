"""The charts of a report as PNG files, for Markdown and LaTeX. One function for every kind of chart."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator, NullFormatter

from cnnlab.report import run_figures

Chart = dict[str, Any]

WIDTH = 10.0  # inches
STYLE: dict[Any, Any] = run_figures.STYLE | {
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
    "axes.axisbelow": True,
}


def png(chart: Chart) -> bytes:
    """A chart as a PNG file."""
    with matplotlib.rc_context(STYLE):
        return _encoded(DRAW[chart["kind"]](chart))


def confusion_png(counts: np.ndarray, classes: Sequence[str]) -> bytes:
    """The confusion matrix, also of a thousand classes. counts: (K, K), rows are true classes."""
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        return _encoded(run_figures.confusion_figure(counts, classes))


def _figure(width: float, height: float) -> matplotlib.figure.Figure:
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _encoded(figure: matplotlib.figure.Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _names(*names: str) -> list[str]:
    return run_figures.drawable(names, longest=60)


def _curves(chart: Chart) -> matplotlib.figure.Figure:
    """The first two metrics side by side, for the settings that are switched on at first."""
    metrics, lines = chart["metrics"][:2], [line for line in chart["lines"] if line["on"]]
    names = _names(*(line["name"] for line in lines))
    figure = _figure(WIDTH, 3.4 + 0.2 * len(lines))
    for axis, metric in zip(figure.subplots(1, max(len(metrics), 1), squeeze=False)[0], metrics, strict=False):
        for line, name in zip(lines, names, strict=True):
            epochs, color = line["epochs"], line["color"]
            for part, style in (("held out", "-"), ("training", "--")):
                if found := line["values"][metric["key"]][part]:
                    values = {key: np.array(numbers, dtype=float) for key, numbers in found.items()}
                    label = name if style == "-" or not line["values"][metric["key"]]["held out"] else None
                    axis.plot(epochs, values["mean"], style, color=color, lw=1.4, label=label)
                    if "low" in values:
                        axis.fill_between(epochs, values["low"], values["high"], color=color, alpha=0.15, lw=0)
        axis.set(xlabel="epoch", ylabel=_names(metric["name"])[0])
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if "title" in chart:
        figure.suptitle(chart["title"])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=1 if max(map(len, labels), default=0) > 60 else 2)
    return figure


def _points(chart: Chart) -> matplotlib.figure.Figure:
    """Means, intervals and seeds: for named settings from top to bottom, or against a number."""
    points, named = chart["points"], "x" not in chart
    figure = _figure(WIDTH, 1.0 + 0.32 * len(points)) if named else _figure(0.6 * WIDTH, 3.6)
    axis = figure.subplots()
    if named:
        for place, point in enumerate(points):
            _intervals(axis, [point], np.array([place]), point["color"], horizontal=True)
        axis.set_yticks(range(len(points)), _names(*(point["name"] for point in points)))
        axis.set(xlabel=chart["value"], ylim=(len(points) - 0.5, -0.5))
        return figure
    places = np.array([point["x"] for point in points])
    if chart["joined"]:
        axis.plot(places, [point["mean"] for point in points], color="C0", lw=1.2)
    _intervals(axis, points, places, "C0", horizontal=False)
    if chart["log"]:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")  # the default writes a formula, which we do not parse
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel=_names(chart["x"])[0], ylabel=chart["value"])
    return figure


def _intervals(axis: Axes, points: Sequence[Chart], places: np.ndarray, color: str, horizontal: bool) -> None:
    """Means with their intervals, if any, and a tick for every seed. places: on the other axis."""
    means = np.array([point["mean"] for point in points])
    ends = np.array([[point.get("low", point["mean"]), point.get("high", point["mean"])] for point in points])
    sizes = {"xerr" if horizontal else "yerr": abs(ends.T - means)} if any("low" in point for point in points) else {}
    seeds = np.array([value for point in points for value in point["seeds"]])
    beside = np.repeat(places, [len(point["seeds"]) for point in points])
    first, second = (means, places) if horizontal else (places, means)
    axis.errorbar(first, second, fmt="o", color=color, capsize=3, ms=5, **sizes)
    ticks = (seeds, beside) if horizontal else (beside, seeds)
    axis.plot(*ticks, "|" if horizontal else "_", color=color, alpha=0.6, ms=9)


def _heat(chart: Chart) -> matplotlib.figure.Figure:
    rows, columns = _names(*chart["rows"]), _names(*chart["columns"])
    cells = np.array(chart["cells"], dtype=float)
    figure = _figure(min(2.6 + 0.9 * len(columns), 2 * WIDTH), min(1.2 + 0.5 * len(rows), 2 * WIDTH))
    axis = figure.subplots()
    low, high = chart["range"] or (np.nanmin(cells), np.nanmax(cells))
    image = axis.imshow(cells, cmap="Blues", aspect="auto", vmin=low, vmax=high)
    axis.grid(visible=False)
    axis.set_xticks(range(len(columns)), columns, rotation=45 if len(columns) > 6 else 0)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlabel=_names(chart["x"])[0], ylabel=_names(chart["y"])[0])
    if cells.size <= 400:
        form = f".{chart['digits']}f" if chart["digits"] < 3 else ".3g"
        run_figures.write_cells(axis, cells, form, low + 0.7 * (high - low))
    figure.colorbar(image, label=chart["value"])
    return figure


def _parallel(chart: Chart) -> matplotlib.figure.Figure:
    """Every axis scaled to [0, 1]; the best lines are drawn last, on top of the others."""
    axes = [*chart["axes"], {"name": chart["value"], "log": False}]
    figure = _figure(WIDTH, 4.0)
    axis = figure.subplots()
    table = np.array([_scaled(part, [line[at] for line in chart["lines"]], axis, at) for at, part in enumerate(axes)])
    scores = table[-1] if chart["higher"] else 1 - table[-1]
    colors = matplotlib.colormaps["viridis_r"](scores)
    lines = np.stack(np.broadcast_arrays(np.arange(len(axes)), table.T), -1)[::-1]  # (settings, axes, 2)
    axis.add_collection(LineCollection(list(lines), colors=colors[::-1], linewidths=1, alpha=0.7))
    axis.set_xticks(range(len(axes)), _names(*(part["name"] for part in axes)))
    axis.set(yticks=[], xlim=(-0.2, len(axes) - 0.5), ylim=(-0.03, 1.05))
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    return figure


def _scaled(part: Chart, values: Sequence[Any], axis: Axes, place: int) -> np.ndarray:
    """The values of one of the parallel axes from 0 to 1; draws that axis with its names, or with both ends."""
    ticks: list[tuple[float, str]]
    if "values" in part:
        found = np.array([part["values"].index(value) for value in values], dtype=float)
        ticks = list(enumerate(_names(*part["values"])))
    else:
        function = np.log if part["log"] else np.asarray
        numbers = np.array(values, dtype=float)
        found = function(numbers)
        ticks = [(float(function(end)), f"{end:.4g}") for end in (np.nanmin(numbers), np.nanmax(numbers))]
    low, high = ticks[0][0], ticks[-1][0]

    def height(value: Any) -> Any:
        return (value - low) / (high - low) if high > low else np.full(np.shape(value), 0.5)

    axis.axvline(place, color="gray", lw=0.8)
    for at, text in ticks:
        axis.annotate(text, (place, height(at)), (3, 2), textcoords="offset points", fontsize=7)
    return height(found)


DRAW: dict[str, Callable[[Chart], matplotlib.figure.Figure]] = {
    "curves": _curves,
    "points": _points,
    "heat": _heat,
    "parallel": _parallel,
}
