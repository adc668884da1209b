"""The study's figures. Does not import torch."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib.figure
import numpy as np
from PIL import Image

from cnnlab.report.charts import COLORS
from cnnlab.report.run_figures import STYLE
from cnnlab.report.runs import over_epochs
from cnnlab.runs.files import atomic_path
from study import measures
from study.results import Run

MOST = 2.4  # where the loss axis ends; guessing has 2.3


@matplotlib.rc_context(STYLE)
def draw(path: Path, curves: Mapping[str, Sequence[Run]], beside: Mapping[str, Sequence[Run]], title: str) -> None:
    """Loss and accuracy over epochs in the report's form: training dashed, test solid.

    A color for each of several labels; for a single one, a color for each part. beside: the runs that it is
    compared with, whose test curves are drawn in gray.
    """
    figure = matplotlib.figure.Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric, name in zip(axes, ("loss", "acc"), ("cross-entropy", "accuracy"), strict=True):
        for place, (label, runs) in enumerate(curves.items()):
            label += " (diverged)" * (not any(run.rows for run in runs))
            for number, (part, said, dashes) in enumerate((("train", "training", "--"), ("test", "test", "-"))):
                color = COLORS[place if len(curves) > 1 else number]
                table = over_epochs([run.rows for run in runs], f"{part}/{metric}")
                epochs = range(1, table.shape[1] + 1)
                name_of_line = ", ".join(filter(None, (label, said)))
                axis.plot(epochs, np.nanmean(table, axis=0), dashes, color=color, lw=1.5, label=name_of_line)
                if len(runs) > 1:
                    axis.fill_between(epochs, np.nanmin(table, 0), np.nanmax(table, 0), color=color, alpha=0.2, lw=0)
        for (label, runs), dashes in zip(beside.items(), ("-", ":"), strict=False):
            middle = np.nanmean(over_epochs([run.rows for run in runs], f"test/{metric}"), axis=0)
            axis.plot(range(1, len(middle) + 1), middle, dashes, color="0.6", lw=1.2, zorder=1, label=label)
        axis.set(xlabel="epoch", ylabel=name)
        most = max(len(run.rows) for runs in curves.values() for run in runs)
        axis.set_xticks([1, *range(max(most // 4, 2), most + 1, max(most // 4, 2))])
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, MOST)
    axes[1].set_ylim(0, 1)
    figure.suptitle(title, fontsize=10)
    num = len(curves) + len(beside)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=max(math.ceil(num / (1 + (num > 5))), 2),  # below each other: a setting's training and test curve
        fontsize=8,
    )
    save(figure, path)


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
    axis.grid(alpha=0.3)
    save(figure, path)


def save(figure: matplotlib.figure.Figure, path: Path) -> None:
    """As a PNG with a palette: a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with atomic_path(path) as partial:
        Image.open(buffer).convert("RGB").quantize(256).save(partial, "png", optimize=True)
