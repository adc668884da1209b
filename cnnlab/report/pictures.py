"""The pictures of a run: curves, confusion matrix, sheet of training images. Takes no torch.

The curves have the form of the lab report's figures: loss and accuracy over epochs, training against held-out.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cnnlab.records import atomic_path
from cnnlab.report.runs import Setting

PARTS = {"train": ("training", "C0"), "val": ("validation", "C1"), "test": ("test", "C3")}


def save(figure: matplotlib.figure.Figure, path: Path) -> None:
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def curves(path: Path, rows: Sequence[Mapping[str, float]], title: str) -> None:
    """Loss and accuracy over epochs out of the rows of metrics.csv."""
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    for axis, metric, label in zip(axes, ("loss", "acc"), ("cross-entropy", "accuracy"), strict=True):
        for part, (name, color) in PARTS.items():
            values = [row.get(f"{part}/{metric}", math.nan) for row in rows]
            if not all(map(math.isnan, values)):
                axis.plot(epochs, values, color=color, label=name, marker=".")
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    axes[1].set_ylim(top=1)
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def comparison(path: Path, settings: Mapping[str, Setting]) -> None:
    """Loss and accuracy of settings over epochs, by name: the mean over seeds and a band over all of them."""
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric, label in zip(axes, ("loss", "acc"), ("cross-entropy", "accuracy"), strict=True):
        for place, (name, setting) in enumerate(settings.items()):
            for part, dashes in (("train", "--"), (setting.held_out, "-")):
                epochs, table = setting.over_epochs(f"{part}/{metric}")
                said = f"{name}, {PARTS[part][0]}"
                axis.plot(epochs, np.nanmean(table, axis=0), dashes, color=f"C{place}", label=said)
                if len(table) > 1:
                    axis.fill_between(epochs, np.nanmin(table, 0), np.nanmax(table, 0), color=f"C{place}", alpha=0.15)
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


def confusion(path: Path, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """The confusion matrix in percent of each true class. counts: rows are true classes, columns predicted ones."""
    shares = np.asarray(counts) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1) * 100
    figure = matplotlib.figure.Figure(figsize=(6.5, 6), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    ticks = range(len(classes))
    axis.set_xticks(ticks, classes, rotation=45, ha="right")
    axis.set_yticks(ticks, classes)
    axis.set(xlabel="predicted", ylabel="true", title="test images, percent of each true class")
    if len(classes) <= 20:
        for row, column in np.ndindex(*shares.shape):
            color = "white" if shares[row, column] > 50 else "black"
            axis.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=color, fontsize=8)
    save(figure, path)


def sheet(path: Path, originals: np.ndarray, augmented: np.ndarray, columns: int = 10, scale: int = 3) -> None:
    """Originals, and below each what the network sees in its place.

    originals: (N, H, W, C), augmented: (N, h, w, C), both uint8.
    """
    cell = max(originals.shape[1], augmented.shape[1]) + 2

    def row(images: np.ndarray) -> np.ndarray:
        canvas = np.full((cell, cell * columns, 3), 255, dtype=np.uint8)
        margin = (cell - images.shape[1]) // 2
        for place, image in enumerate(images):
            canvas[margin : margin + image.shape[0], place * cell + margin : place * cell + margin + image.shape[1]] = (
                image
            )
        return canvas

    rows = []
    for first in range(0, len(originals), columns):
        rows += [row(originals[first : first + columns]), row(augmented[first : first + columns])]
        rows.append(np.full((6, cell * columns, 3), 255, dtype=np.uint8))
    picture = Image.fromarray(np.concatenate(rows[:-1]))
    buffer = io.BytesIO()
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(buffer, "png")
    with atomic_path(path) as partial:
        partial.write_bytes(buffer.getvalue())
