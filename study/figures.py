"""The study's figures. Does not import torch."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from cnnlab.report.charts import COLORS
from cnnlab.report.run_figures import STYLE
from cnnlab.report.runs import over_epochs
from cnnlab.runs.files import atomic_path
from study import measures
from study.results import Run

MOST_TOGETHER = 4  # settings in one axis
MOST = 2.4  # where the loss axis ends; guessing has 2.3


@matplotlib.rc_context(STYLE)
def draw(path: Path, curves: Mapping[str, Sequence[Run]], beside: Mapping[str, Sequence[Run]], title: str) -> None:
    """Loss and accuracy over epochs in the lab report's form: training dashed, test solid.

    A color for each of several labels; for a single one, a color for each part. More than MOST_TOGETHER labels have
    axes of their own, with the test curves of the others in gray. beside: the runs that it is compared with, whose
    test curves are drawn in gray.
    """
    curves = {f"{label}{' (diverged)' * (not any(run.rows for run in runs))}": runs for label, runs in curves.items()}
    apart = len(curves) > MOST_TOGETHER
    figure = matplotlib.figure.Figure(figsize=(9, 3.8), layout="constrained")
    most = max(len(run.rows) for runs in curves.values() for run in runs)
    if apart:
        grid = figure.subplots(2, len(curves), sharey="row", sharex=True)
        columns = [{label: runs} for label, runs in curves.items()]
    else:
        grid, columns = figure.subplots(1, 2)[:, None], [dict(curves)]
    for row, metric, name, highest in zip(grid, ("loss", "acc"), ("cross-entropy", "accuracy"), (MOST, 1), strict=True):
        for place, (axis, shown) in enumerate(zip(row, columns, strict=True)):
            for label in curves.keys() - shown.keys():
                plot(axis, curves[label], f"test/{metric}", "-", color="0.85", lw=0.8)
            for number, (label, runs) in enumerate(shown.items()):
                parts = (("train", "training", "--"), ("test", "test", "-"))
                for part, (key, said, dashes) in enumerate(parts):
                    color = COLORS[part if len(curves) == 1 else 0 if apart else number]
                    of = said if apart else ", ".join(filter(None, (label, said)))
                    plot(axis, runs, f"{key}/{metric}", dashes, color=color, lw=1.5, label=of, band=True)
            for dashes, (label, runs) in zip(("-", ":"), beside.items(), strict=False):
                plot(axis, runs, f"test/{metric}", dashes, color="0.6", lw=1.2, zorder=1, label=label)
            step = max(most // (2 if apart else 4), 2)
            axis.set(ylim=(0, highest), xticks=[1, *range(step, most + 1, step)])
            axis.grid(alpha=0.3)
            if apart and metric == "loss":
                axis.set_title(next(iter(shown)), fontsize=8)
            if not apart or not place:
                axis.set_ylabel(name)
            if not apart or metric == "acc":
                axis.set_xlabel("epoch")
    figure.suptitle(title, fontsize=10)
    num = len(curves) + len(beside)
    figure.legend(
        *grid[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2 if apart else max(math.ceil(num / (1 + (num > 5))), 2),  # a setting's training and test curve together
        fontsize=8,
    )
    save(figure, path)


def plot(axis: Axes, runs: Sequence[Run], metric: str, dashes: str, band: bool = False, **style: Any) -> None:
    """The mean of a metric over seeds, and, with `band`, from the lowest to the highest seed."""
    table = over_epochs([run.rows for run in runs], metric)
    epochs = range(1, table.shape[1] + 1)
    axis.plot(epochs, np.nanmean(table, axis=0), dashes, **style)
    if band and len(runs) > 1:
        axis.fill_between(epochs, np.nanmin(table, 0), np.nanmax(table, 0), color=style["color"], alpha=0.2, lw=0)


@matplotlib.rc_context(STYLE)
def draw_settings(path: Path, settings: Mapping[str, Sequence[Run]]) -> None:
    """Test accuracy at the last epoch of every setting: a dot for a seed, a line at the mean."""
    figure = matplotlib.figure.Figure(figsize=(9, 1 + 0.22 * len(settings)), layout="constrained")
    axis = figure.subplots()
    for place, runs in enumerate(settings.values()):
        values = [measures.final(run) for run in runs]
        axis.plot(values, [place] * len(values), "o", color=COLORS[0], ms=4, alpha=0.7)
        axis.plot([fmean(values)] * 2, [place - 0.35, place + 0.35], "-", color=COLORS[1], lw=1.5)
    axis.set_yticks(range(len(settings)), list(settings), fontsize=8)
    axis.set(xlabel="test accuracy at the last epoch, in points", ylim=(len(settings) - 0.4, -0.6))
    axis.set_title("All settings: every seed, and the mean", fontsize=10)
    axis.grid(alpha=0.3)
    save(figure, path)


def save(figure: matplotlib.figure.Figure, path: Path) -> None:
    """As a PNG with a palette: a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with atomic_path(path) as partial:
        Image.open(buffer).convert("RGB").quantize(256).save(partial, "png", optimize=True)
