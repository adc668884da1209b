"""The figures of one run: curves, confusion matrix, mistakes, calibration, training images. Does not import torch.

They are drawn with the Agg backend in matplotlib's default style and font, whatever MPLBACKEND or matplotlibrc say, and
without LaTeX. A figure that cannot be drawn is a warning and never fails a run.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.font_manager import get_font
from matplotlib.ticker import MaxNLocator

from cnnlab.runs.files import atomic_path
from cnnlab.runs.log import log
from cnnlab.runs.wording import in_words

PARTS = {"train": ("training", "C0", "--"), "val": ("validation", "C1", "-"), "test": ("test", "C3", "-")}
MAX_CLASSES = 60  # named in a confusion matrix; more are only numbered

# Matplotlib's default style, with dollar signs as plain text.
STYLE: dict[Any, Any] = {
    name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")
} | {"text.parse_math": False}

P = ParamSpec("P")


def figure(draw: Callable[Concatenate[Path, P], None]) -> Callable[Concatenate[Path, P], None]:
    """Decorate a function that draws into a file: it draws in our style, and an error becomes a warning."""

    @functools.wraps(draw)
    def drawn(path: Path, *arguments: P.args, **named: P.kwargs) -> None:
        try:
            with matplotlib.rc_context(STYLE):
                draw(path, *arguments, **named)
        except Exception as error:  # whatever matplotlib raises, it must not fail a training that has been done
            log.warning(f"{path} could not be drawn: {type(error).__name__}: {error}")

    return drawn


DPI = 120


def save(figure: matplotlib.figure.Figure, path: Path) -> None:
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=DPI)


@functools.cache
def letters() -> frozenset[int]:
    """The code points in matplotlib's own font."""
    return frozenset(get_font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap())


def drawable(classes: Sequence[str], longest: int = 24) -> list[str]:
    """Class names for a figure: shortened, and replaced by #NUMBER if the font lacks a letter."""
    names = []
    for number, name in enumerate(classes):
        name = " ".join(name.split())
        name = name if len(name) <= longest else f"{name[: longest - 1]}…"
        names.append(name if name and name.isprintable() and letters().issuperset(map(ord, name)) else f"#{number}")
    return names


@figure
def curves(path: Path, rows: Sequence[Mapping[str, float]], title: str, best_epoch: int, metric: str = "acc") -> None:
    """Loss, if there is one, and a metric over epochs, training (dashed) against held-out, with the best epoch.

    rows: of metrics.csv.
    """
    logged = {name for row in rows for name in row}
    names = [name for name in dict.fromkeys(("loss", metric)) if any(f"{part}/{name}" in logged for part in PARTS)]
    figure = matplotlib.figure.Figure(figsize=(5 * len(names), 4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for part, (label, color, style) in PARTS.items():
            values = [row.get(f"{part}/{name}", math.nan) for row in rows]
            if not all(map(math.isnan, values)):
                axis.plot(epochs, values, color=color, label=label, linestyle=style, marker=".")
        axis.axvline(best_epoch, color="gray", linestyle=":", label=f"best epoch, {best_epoch}")
        axis.set(xlabel="epoch", ylabel=in_words(name))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
        if name == "acc":
            axis.set_ylim(top=1)
    figure.suptitle(title, fontsize=9 if len(title) < 120 else 6)
    save(figure, path)


@figure
def confusion(path: Path, counts: np.ndarray, classes: Sequence[str]) -> None:
    """The confusion matrix in percent of each true class. counts: (K, K), rows are true classes."""
    figure = confusion_figure(counts, classes)
    figure.axes[0].set_title("test images, percent of each true class")
    save(figure, path)


def confusion_figure(counts: np.ndarray, classes: Sequence[str]) -> matplotlib.figure.Figure:
    """As `confusion`; shares are written for up to 20 classes, and more than MAX_CLASSES classes are numbered."""
    height = 6 + 0.15 * max(min(len(classes), MAX_CLASSES) - 20, 0)  # inches, with room for the names
    figure = matplotlib.figure.Figure(figsize=(height + 0.5, height), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1) * 100
    if len(classes) > MAX_CLASSES:  # a color scale on which single images show, too
        shown = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.3, vmin=0, vmax=100), interpolation="nearest")
        axis.set(xlabel="predicted class by number (#0 is the first in summary.json)", ylabel="true class by number")
        figure.colorbar(shown, ax=axis, shrink=0.8, ticks=(0, 1, 5, 20, 50, 100))
        return figure
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axis.set(xlabel="predicted", ylabel="true")
    names, size = drawable(classes), 10 if len(classes) <= 20 else 7
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    if names != list(classes):
        axis.set_xlabel("predicted   (#0 is the first of the classes in summary.json)")
    if len(classes) <= 20:
        write_cells(axis, shares, ".0f", 70, fontsize=8)
    return figure


def write_cells(axis: Axes, cells: np.ndarray, form: str, dark: float, **style: Any) -> None:
    """Write the numbers (R, C) into the cells of a heat map; those above `dark` in white, NaN not at all."""
    for (row, column), value in np.ndenumerate(cells):
        if not np.isnan(value):
            color = "white" if value > dark else "black"
            axis.text(column, row, f"{value:{form}}", ha="center", va="center", color=color, **style)


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Images with any number of channels as RGB: (..., C) uint8 -> (..., 3) uint8.

    One channel becomes gray; of more than three, the first three are shown.
    """
    channels = images.shape[-1]
    if channels == 1:
        return images.repeat(3, -1)
    return np.pad(images[..., :3], [(0, 0)] * (images.ndim - 1) + [(0, max(3 - channels, 0))])


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, h, w, C) uint8 side by side in rows, which are filled up with white: (H, W, C) uint8."""
    num, height, width, channels = images.shape
    rows = -(-num // columns)
    cells = np.pad(images, ((0, rows * columns - num), (0, 0), (0, 0), (0, 0)), constant_values=255)
    cells = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return cells.reshape(rows * height, columns * width, channels)


def tiled(images: np.ndarray, columns: int = 8, scale: int = 6) -> np.ndarray:
    """Small images (N, h, w, C) uint8 with white lines between them, enlarged without smoothing: (H, W, C) uint8."""
    framed = grid(np.pad(images, ((0, 0), (1, 0), (1, 0), (0, 0)), constant_values=255), columns)
    return np.pad(framed, ((0, 1), (0, 1), (0, 0)), constant_values=255).repeat(scale, 0).repeat(scale, 1)


@figure
def mistakes(
    path: Path,
    pixels: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    predicted: np.ndarray,
    confidence: np.ndarray,
    classes: Sequence[str],
    num: int = 24,
) -> None:
    """The misclassified images with the most confident predictions, each with its caption.

    pixels: returns images (n, H, W, C) uint8 by index. labels, predicted, confidence: (N,).
    """
    names = drawable(classes, longest=10)
    wrong = np.flatnonzero(labels != predicted)
    worst = wrong[np.argsort(-confidence[wrong].astype(float), kind="stable")][:num]
    images = as_rgb(pixels(worst)) if len(worst) else np.zeros((0, 1, 1, 3))
    columns, rows = 8, max(-(-len(worst) // 8), 1)
    caption, margin = 0.5, 0.25  # in units of an image; the caption is above it
    width, height = columns * (1 + margin) + margin, rows * (1 + caption) + margin + 0.6 * caption
    figure = matplotlib.figure.Figure(figsize=(1.2 * width, 1.2 * height))
    axis = figure.add_axes((0, 0, 1, 1))  # a single one: an axis for every image takes four times as long
    axis.axis("off")
    for number, place in enumerate(worst):
        left = margin + number % columns * (1 + margin)
        top = 1.6 * caption + number // columns * (1 + caption)
        down, across = (length / max(images.shape[1:3]) for length in images.shape[1:3])
        axis.imshow(images[number], extent=(left, left + across, top + down, top))
        said = f"true {names[labels[place]]}\npredicted {names[predicted[place]]} ({confidence[place]:.2f})"
        axis.text(left + 0.5, top - 0.06, said, fontsize=7, ha="center", va="bottom")
    axis.set(xlim=(0, width), ylim=(height, 0))
    title = f"{len(wrong):,} of {len(labels):,} test images are misclassified; the most confident ones"
    axis.text(width / 2, 0.25, title, fontsize=10, ha="center", va="center")
    save(figure, path)


@figure
def reliability(path: Path, bins: Sequence[tuple[float, float, int]], error: float) -> None:
    """Accuracy against confidence; bins as in Evaluation.reliability."""
    figure = matplotlib.figure.Figure(figsize=(5, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    confidence, accuracy, counts = (np.array(values) for values in zip(*bins, strict=True))
    upper.plot((0, 1), (0, 1), "--", color="gray", label="perfectly calibrated")
    upper.plot(confidence, accuracy, "o-", label=f"expected calibration error {error:.3f}")
    upper.set(ylabel="accuracy", ylim=(0, 1))
    upper.legend()
    lower.bar(confidence, counts, width=0.05)
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
    save(figure, path)


@figure
def sheet(
    path: Path,
    originals: np.ndarray,
    augmented: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    numbers: bool = False,
    columns: int = 10,
) -> None:
    """Training images, below each its augmented version, and below that its label.

    originals: (N, H, W, C), augmented: (N, h, w, C), both uint8; at least 96 pixels wide. targets: (N,), or (N, K)
    shares of the classes; with `numbers`, the numbers of a regression.
    """
    height, width = (max(originals.shape[axis], augmented.shape[axis]) + 2 for axis in (1, 2))
    scale, caption = max(1, -(-96 // width)), 36  # pixels

    def framed(images: np.ndarray) -> np.ndarray:
        down, across = height - images.shape[1], width - images.shape[2]
        margins = ((down // 2, down - down // 2), (across // 2, across - across // 2))
        return np.pad(as_rgb(images), ((0, 0), *margins, (0, 0)), constant_values=255)

    pairs = np.concatenate((framed(originals), framed(augmented)), 1).repeat(scale, 1).repeat(scale, 2)
    cells = np.pad(pairs, ((0, 0), (0, caption), (0, 0), (0, 0)), constant_values=255)
    down, across = cells.shape[1:3]
    names = drawable(classes, longest=10)
    captions = [
        ((number % columns + 0.5) * across, (number // columns + 1) * down - caption, label(target, names, numbers))
        for number, target in enumerate(targets)
    ]
    title = "Training images of the first epoch: as stored, below as the network sees them, and their labels"
    write_titled(path, grid(cells, columns), title, captions)


def label(target: np.ndarray, names: Sequence[str], numbers: bool) -> str:
    """In up to two lines: a class, the classes with the largest shares, or the first numbers."""
    if target.ndim == 0:
        return names[int(target)]
    order = np.arange(len(names)) if numbers else np.argsort(-target, kind="stable")[: np.count_nonzero(target)]
    form = ".3g" if numbers else ".2f"
    lines = [names[at] if target[at] == 1 and not numbers else f"{names[at]} {target[at]:{form}}" for at in order]
    return "\n".join(lines[:2]) + " …" * (len(lines) > 2)


@figure
def filters(path: Path, images: np.ndarray) -> None:
    """The filters of the first convolution: (N, k, k, 1 or 3) uint8, shown at least 30 pixels wide."""
    title = f"The {len(images)} filters of the first convolution, {images.shape[1]}x{images.shape[2]}"
    write_titled(path, tiled(images, scale=max(6, 30 // images.shape[2])), f"{title}, each with its full contrast")


def write_titled(path: Path, pixels: np.ndarray, title: str, captions: Sequence[tuple[float, float, str]] = ()) -> None:
    """Write pixels (H, W, C) uint8 as they are below a title, with texts centred below points (x, y)."""
    (height, width), top = pixels.shape[:2], 30
    across, down = max(width, 560), height + top  # room for the title
    figure = matplotlib.figure.Figure(figsize=((across + 0.1) / DPI, (down + 0.1) / DPI), dpi=DPI)
    figure.figimage(as_rgb(pixels), 0, 0)
    figure.text(6 / across, 1 - top / 2 / down, title, fontsize=9, va="center")
    for x, y, text in captions:
        figure.text(x / across, 1 - (top + y + 2) / down, text, fontsize=7, ha="center", va="top")
    save(figure, path)
