"""The numbers of a report's figures as plain data, from which both the page and the PNG files are drawn.

There are four kinds of chart: "curves" over epochs, "points" with intervals, "heat" maps, and "parallel" coordinates.
Accuracies are in percent.
"""

import colorsys
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cnnlab.report.runs import Setting, over_epochs
from cnnlab.report.statistics import Estimate
from cnnlab.report.sweep import Sweep, spans_decades
from cnnlab.report.trials import best_of
from cnnlab.report.units import heading, is_accuracy, scale

NUM_SHOWN = 8  # settings that are switched on at first
MAX_SETTINGS = 24  # in a chart that names them
MAX_EPOCHS = 200  # points of a curve; a longer one is subsampled
MAX_LINES = 1000  # settings in parallel coordinates
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")  # Okabe and Ito's


def color(place: int) -> str:
    """The color of a setting: the first ones are safe for color-blind readers, the others differ in hue."""
    if place < len(COLORS):
        return COLORS[place]
    rgb = colorsys.hls_to_rgb(place * 0.618 % 1, 0.5, 0.6)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def rounded(values: Iterable[float]) -> list[float | None]:
    """To five digits; None for NaN and infinity, which JSON does not have."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _score_axis(sweep: Sweep) -> dict[str, Any]:
    return {"value": heading(sweep.measure), "digits": 2 if is_accuracy(sweep.measure) else 4}


def curves(measure: str, settings: Sequence[tuple[str, Setting]], first: str) -> dict[str, Any]:
    """Metrics over epochs: means over seeds, and bands from the smallest to the largest seed, while all seeds train.

    measure: the metric that runs are ranked by, "val/acc". settings: with their labels. first: the name of the metric
        that is shown first, "acc".
    """
    names = dict.fromkeys([first, measure.partition("/")[2], "loss"])
    for _, setting in settings[:MAX_SETTINGS]:
        names |= dict.fromkeys(part for name in setting.runs[0].rows[0] if (part := name.partition("/")[2]))
    lines = []
    for place, (label, setting) in enumerate(settings[:MAX_SETTINGS]):
        num = min(len(run.rows) for run in setting.runs)  # a mean over fewer seeds would jump
        places = np.unique(np.linspace(0, num - 1, min(num, MAX_EPOCHS)).round().astype(int))
        values = {
            name: {
                "held out": _band(setting, f"{setting.held_out}/{name}", places),
                "training": _band(setting, f"train/{name}", places),
            }
            for name in names
        }
        epochs = (places + 1).tolist()
        on = place < NUM_SHOWN
        lines.append({"name": label, "color": color(place), "on": on, "epochs": epochs, "values": values})
    metrics = [
        {
            "key": name,
            "name": heading(f"val/{name}").removeprefix("validation "),
            "digits": 2 if is_accuracy(f"val/{name}") else 4,
        }
        for name in names
        if any(any(line["values"][name].values()) for line in lines)
    ]
    return {"kind": "curves", "metrics": metrics, "lines": lines}


def _band(setting: Setting, metric: str, places: np.ndarray) -> dict[str, list[float | None]] | None:
    """Mean over seeds and, if there are several, the smallest and largest; None if the metric was not measured."""
    table = scale(metric) * over_epochs([run.rows for run in setting.runs], metric)[:, places]
    measured = ~np.isnan(table).all(0)
    if not measured.any():
        return None
    found = {}
    functions = {"mean": np.nanmean} | ({"low": np.nanmin, "high": np.nanmax} if len(table) > 1 else {})
    for name, function in functions.items():
        values = np.full(len(places), np.nan)
        values[measured] = function(table[:, measured], axis=0)
        found[name] = rounded(values)
    return found


def ranking(sweep: Sweep) -> dict[str, Any]:
    """Every setting's seeds, mean and interval, best first."""
    rows = [
        {"name": sweep.label(place.setting), "color": color(at), **_point(sweep, place.setting, place.score)}
        for at, place in enumerate(sweep.ranking[:MAX_SETTINGS])
    ]
    return {"kind": "points", **_score_axis(sweep), "points": rows}


def by_value(sweep: Sweep, axis: str) -> dict[str, Any]:
    """The score against a number, all else as in the best setting; for all settings if no other is like that."""
    groups = sweep.alike(axis)
    joined = len(groups) > 1
    scores = {id(place.setting): place.score for place in sweep.ranking}
    points = [
        {"name": sweep.label(group), "x": float(group.value(axis)), **_point(sweep, group, scores[id(group)])}
        for group in (groups if joined else sweep.groups)
    ]
    log = spans_decades([point["x"] for point in points])
    return {"kind": "points", "x": axis, "log": log, "joined": joined, **_score_axis(sweep), "points": points}


def best_of_trials(sweep: Sweep) -> dict[str, Any]:
    """The expected best result against the number of trials."""
    nums, best = best_of(sweep)
    means = rounded(scale(sweep.measure) * value for value in best)
    points: list[dict[str, Any]] = [
        {"name": f"{num} trials", "x": num, "mean": mean, "seeds": []} for num, mean in zip(nums, means, strict=True)
    ]
    axis = _score_axis(sweep) | {"value": f"expected best {heading(sweep.measure)}"}
    return {"kind": "points", "x": "trials", "log": True, "joined": True, **axis, "points": points}


def _point(sweep: Sweep, setting: Setting, score: Estimate) -> dict[str, Any]:
    factor = scale(sweep.measure)
    mean, low, high = rounded(factor * value for value in (score.mean, score.low, score.high))
    seeds = rounded(factor * value for value in setting.by_seed.values()) if score.num > 1 else []
    return {"mean": mean, "seeds": seeds, **({"low": low, "high": high} if math.isfinite(score.half_width) else {})}


def heat_map(sweep: Sweep) -> dict[str, Any]:
    """The mean score over two axes."""
    first, second = sweep.axes
    rows, columns = sweep.values(first), sweep.values(second)
    cells = np.full((len(rows), len(columns)), np.nan)
    for group in sweep.groups:
        row, column = rows.index(group.value(first)), columns.index(group.value(second))
        cells[row, column] = scale(sweep.measure) * np.mean(list(group.by_seed.values()))
    axes = {"x": second, "y": first, "columns": columns, "rows": rows}
    value = {"value": heading(sweep.measure), "digits": 1 if is_accuracy(sweep.measure) else 3, "range": None}
    return {"kind": "heat", **axes, **value, "cells": [rounded(row) for row in cells]}


def confusion(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Percent of each true class. counts: (K, K), rows are true classes."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1) * 100
    axes = {"x": "predicted class", "y": "true class", "columns": list(classes), "rows": list(classes)}
    value = {"value": "% of the true class", "digits": 0, "range": [0, 100]}
    return {"kind": "heat", **axes, **value, "cells": [rounded(row) for row in shares]}


def parallel(sweep: Sweep) -> dict[str, Any]:
    """Every setting as a line over all axes and, last, its score."""
    axes: list[dict[str, Any]] = []
    for name in sweep.axes:
        values = sweep.values(name)
        numeric = sweep.is_numeric(name)
        kind = {"log": spans_decades([float(value) for value in values])} if numeric else {"values": values}
        axes.append({"name": name, **kind})
    places = sweep.ranking[:MAX_LINES]
    scores = rounded(scale(sweep.measure) * place.score.mean for place in places)
    lines = []
    for place, score in zip(places, scores, strict=True):
        texts = [place.setting.value(name) for name in sweep.axes]
        lines.append([*(t if "values" in axis else float(t) for t, axis in zip(texts, axes, strict=True)), score])
    return {"kind": "parallel", "axes": axes, **_score_axis(sweep), "higher": sweep.higher, "lines": lines}
