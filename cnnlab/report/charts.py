"""The numbers of a report's figures, as plain data: the page and the PNG files draw the same ones.

There are four kinds of chart: "curves" over epochs, "points" with intervals, "heat" maps, and "parallel" coordinates.
Numbers are in the unit that is written, accuracies in percent.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnlab.report.runs import Setting
from cnnlab.report.statistics import Estimate
from cnnlab.report.sweep import Sweep, spans_decades
from cnnlab.report.trials import best_of
from cnnlab.report.units import heading, is_accuracy, mean_of, scale

SHOWN = 8  # settings that are switched on at first
MOST = 24  # settings in a chart that names them
MOST_EPOCHS = 200  # of a curve; of more, every second or third is drawn
MOST_LINES = 1000  # settings in parallel coordinates
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")  # Okabe and Ito's


def color(place: int) -> str:
    """Of the setting at a place: the first ones can be told apart by everyone, others by their hue."""
    if place < len(COLORS):
        return COLORS[place]
    rgb = colorsys.hls_to_rgb(place * 0.618 % 1, 0.5, 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def curves(sweep: Sweep, settings: Sequence[tuple[str, Setting]], first: str) -> dict[str, Any]:
    """Metrics over epochs: means over seeds, and bands from the smallest to the largest seed.

    settings: named. first: the metric that is shown first, "acc".
    """
    names = dict.fromkeys([first, sweep.measure.partition("/")[2], "loss"])
    for _, setting in settings[:MOST]:
        names |= dict.fromkeys(part for name in setting.runs[0].rows[0] if (part := name.partition("/")[2]))
    lines = []
    for place, (label, setting) in enumerate(settings[:MOST]):
        num = max(len(run.rows) for run in setting.runs)
        places = np.unique(np.linspace(0, num - 1, min(num, MOST_EPOCHS)).round().astype(int))
        values = {
            name: {part: _band(setting, f"{of}/{name}", places) for part, of in _parts(setting)} for name in names
        }
        epochs = (places + 1).tolist()
        lines.append({"name": label, "color": color(place), "on": place < SHOWN, "epochs": epochs, "values": values})
    known = [name for name in names if any(any(line["values"][name].values()) for line in lines)]
    metrics = [
        {
            "key": name,
            "name": heading(f"val/{name}").removeprefix("validation "),
            "digits": 2 if is_accuracy(f"val/{name}") else 4,
        }
        for name in known
    ]
    return {"kind": "curves", "metrics": metrics, "lines": lines}


def _parts(setting: Setting) -> tuple[tuple[str, str], ...]:
    return ("held out", setting.held_out), ("training", "train")


def _band(setting: Setting, metric: str, places: np.ndarray) -> dict[str, list[float | None]] | None:
    """Mean, smallest and largest over seeds; the band is left out where there is one; None if it was not measured."""
    _, table = setting.over_epochs(metric)
    table = scale(metric) * table[:, places]
    measured = ~np.isnan(table).all(0)
    if not measured.any():
        return None
    found: dict[str, list[float | None]] = {}
    for name, function in (("mean", np.nanmean), ("low", np.nanmin), ("high", np.nanmax)):
        values = np.full(len(places), np.nan)
        values[measured] = function(table[:, measured], axis=0)
        found[name] = [rounded(value) for value in values]
        if len(table) == 1:
            break
    return found


def ranking(sweep: Sweep) -> dict[str, Any]:
    """Every setting's seeds, mean and interval, best first."""
    rows = [
        {"name": sweep.label(place.setting), "color": color(at), **_point(sweep, place.setting, place.score)}
        for at, place in enumerate(sweep.ranking[:MOST])
    ]
    return {"kind": "points", "value": heading(sweep.measure), "digits": _digits(sweep), "points": rows}


def by_value(sweep: Sweep, axis: str) -> dict[str, Any]:
    """What settings are ranked by against a number, the rest as in the best setting; all settings if that is alone."""
    groups = sweep.alike(axis)
    joined = len(groups) > 1
    points = []
    for group in groups if joined else sweep.groups:
        score = mean_of(sweep.measure, list(group.by_seed.values()))
        points.append({"name": sweep.label(group), "x": float(group.value(axis)), **_point(sweep, group, score)})
    log = spans_decades([point["x"] for point in points])
    return {
        "kind": "points",
        "x": axis,
        "log": log,
        "joined": joined,
        "value": heading(sweep.measure),
        "digits": _digits(sweep),
        "points": points,
    }


def best_of_trials(sweep: Sweep) -> dict[str, Any]:
    """The best that is to be expected, over the number of trials."""
    points: list[dict[str, Any]] = [
        {"name": f"{num} trials", "x": num, "mean": rounded(scale(sweep.measure) * mean), "seeds": []}
        for num, mean in zip(*best_of(sweep), strict=True)
    ]
    return {
        "kind": "points",
        "x": "trials",
        "log": True,
        "joined": True,
        "value": f"expected best {heading(sweep.measure)}",
        "digits": _digits(sweep),
        "points": points,
    }


def _point(sweep: Sweep, setting: Setting, score: Estimate) -> dict[str, Any]:
    factor = scale(sweep.measure)
    ends = {"low": rounded(factor * score.low), "high": rounded(factor * score.high)}
    return {
        "mean": rounded(factor * score.mean),
        "seeds": [rounded(factor * value) for value in setting.by_seed.values()] if score.num > 1 else [],
        **(ends if math.isfinite(score.half_width) else {}),
    }


def _digits(sweep: Sweep) -> int:
    return 2 if is_accuracy(sweep.measure) else 4


def heat_map(sweep: Sweep) -> dict[str, Any]:
    """What settings are ranked by, as a mean, over two axes."""
    first, second = sweep.axes
    rows, columns = sweep.values(first), sweep.values(second)
    cells = np.full((len(rows), len(columns)), np.nan)
    for group in sweep.groups:
        row, column = rows.index(group.value(first)), columns.index(group.value(second))
        cells[row, column] = scale(sweep.measure) * np.mean(list(group.by_seed.values()))
    return {
        "kind": "heat",
        "x": second,
        "y": first,
        "columns": columns,
        "rows": rows,
        "value": heading(sweep.measure),
        "digits": 1 if is_accuracy(sweep.measure) else 3,
        "range": None,
        "cells": [[rounded(value) for value in row] for row in cells],
    }


def confusion(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Percent of each true class. counts: (K, K), rows are true classes."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1) * 100
    return {
        "kind": "heat",
        "x": "predicted class",
        "y": "true class",
        "columns": list(classes),
        "rows": list(classes),
        "value": "% of the true class",
        "digits": 0,
        "range": [0, 100],
        "cells": [[rounded(value) for value in row] for row in shares],
    }


def parallel(sweep: Sweep) -> dict[str, Any]:
    """Every setting as a line over all axes, with what settings are ranked by on the last one."""
    axes: list[dict[str, Any]] = []
    for name in sweep.axes:
        values = sweep.values(name)
        numeric = sweep.is_numeric(name)
        kind = {"log": spans_decades([float(value) for value in values])} if numeric else {"values": values}
        axes.append({"name": name, **kind})
    lines = []
    for place in sweep.ranking[:MOST_LINES]:
        texts = [place.setting.value(name) for name in sweep.axes]
        cells = [text if "values" in axis else float(text) for text, axis in zip(texts, axes, strict=True)]
        lines.append([*cells, rounded(scale(sweep.measure) * place.score.mean)])
    return {
        "kind": "parallel",
        "axes": axes,
        "value": heading(sweep.measure),
        "digits": _digits(sweep),
        "higher": sweep.higher,
        "lines": lines,
    }
