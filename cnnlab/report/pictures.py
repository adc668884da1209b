"""The figures of a run: curves, confusion matrix, images that are confused, sheet of training images. No torch.

They are drawn by Agg in matplotlib's default style, whatever MPLBACKEND, matplotlibrc or LaTeX are set to, and with its
own font. One that cannot be drawn is a warning: no figure fails a run. The curves show loss and accuracy over epochs,
training against held-out.
"""

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib.figure
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.font_manager import get_font
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cnnlab.report.runs import Setting
from cnnlab.runs.files import atomic_path
from cnnlab.runs.log import log
from cnnlab.runs.wording import in_words

PARTS = {"train": ("training", "C0"), "val": ("validation", "C1"), "test": ("test", "C3")}

# Matplotlib's default style, and a dollar sign is a dollar sign.
STYLE: dict[Any, Any] = {
    name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")
} | {"text.parse_math": False}

NAMED = 60  # classes; of more, a confusion matrix shows the numbers


P = ParamSpec("P")


def figure(draw: Callable[Concatenate[Path, P], None]) -> Callable[Concatenate[Path, P], None]:
    """Make a function that draws into a file do it in our style, and warn where it fails."""

    @functools.wraps(draw)
    def drawn(path: Path, *arguments: P.args, **named: P.kwargs) -> None:
        try:
            with matplotlib.rc_context(STYLE):
                draw(path, *arguments, **named)
        except Exception as error:  # fonts, sizes, disks: no run of hours fails for a figure
            log.warning(f"{path} could not be drawn: {type(error).__name__}: {error}")

    return drawn


def save(figure: matplotlib.figure.Figure, path: Path) -> None:
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


@functools.cache
def letters() -> frozenset[int]:
    """The code points that matplotlib's own font can draw."""
    return frozenset(get_font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf").get_charmap())


def drawable(classes: Sequence[str], longest: int = 24) -> list[str]:
    """Class names as figures show them: shortened, and as #NUMBER where the font has not got their letters."""
    names = []
    for number, name in enumerate(classes):
        name = " ".join(name.split())
        name = name if len(name) <= longest else f"{name[: longest - 1]}…"
        names.append(name if name and name.isprintable() and letters().issuperset(map(ord, name)) else f"#{number}")
    return names


@figure
def curves(path: Path, rows: Sequence[Mapping[str, float]], title: str, metric: str = "acc") -> None:
    """Loss and a metric over epochs out of the rows of metrics.csv."""
    kinds = list(dict.fromkeys(("loss", metric)))
    figure = matplotlib.figure.Figure(figsize=(5 * len(kinds), 4), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    epochs = [row["epoch"] for row in rows]
    for axis, metric in zip(axes, kinds, strict=True):
        for part, (name, color) in PARTS.items():
            values = [row.get(f"{part}/{metric}", math.nan) for row in rows]
            if not all(map(math.isnan, values)):
                axis.plot(epochs, values, color=color, label=name, marker=".")
        axis.set(xlabel="epoch", ylabel=in_words(metric))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
        if metric == "acc":
            axis.set_ylim(top=1)
    figure.suptitle(title, fontsize=9 if len(title) < 120 else 6)
    save(figure, path)


@figure
def comparison(path: Path, settings: Sequence[tuple[str, Setting]]) -> None:
    """Loss and what is reported, of named settings over epochs: the mean over seeds and a band over all of them."""
    kinds = list(dict.fromkeys(("loss", settings[0][1].runs[0].measure.partition("/")[2])))
    figure = matplotlib.figure.Figure(figsize=(5 * len(kinds), 4), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axis, metric in zip(axes, kinds, strict=True):
        for place, (name, setting) in enumerate(settings):
            for part, dashes in (("train", "--"), (setting.held_out, "-")):
                epochs, table = setting.over_epochs(f"{part}/{metric}")
                said = f"{name}, {PARTS[part][0]}"
                axis.plot(epochs, np.nanmean(table, axis=0), dashes, color=f"C{place}", label=said, marker=".")
                if len(table) > 1:
                    axis.fill_between(epochs, np.nanmin(table, 0), np.nanmax(table, 0), color=f"C{place}", alpha=0.15)
        axis.set(xlabel="epoch", ylabel=in_words(metric))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


@figure
def confusion(path: Path, counts: np.ndarray, classes: Sequence[str]) -> None:
    """The confusion matrix in percent of each true class. counts: (K, K), rows are true classes."""
    figure = matplotlib.figure.Figure(figsize=confusion_size(len(classes)), layout="constrained")
    axis = figure.subplots()
    axis.set_title("test images, percent of each true class")
    draw_confusion(axis, counts, classes)
    save(figure, path)


def confusion_size(num_classes: int) -> tuple[float, float]:
    """Width and height in inches: room for the names, as far as there are names."""
    height = 6 + 0.15 * max(min(num_classes, NAMED) - 20, 0)
    return height + 0.5, height


def draw_confusion(axis: matplotlib.axes.Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """As `confusion`; shares are written where there is room for them, and more than NAMED classes are numbered."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1) * 100
    if len(classes) > NAMED:  # single images show, too
        shown = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.3, vmin=0, vmax=100), interpolation="nearest")
        axis.set(
            xlabel="number of the predicted class (0: the first in summary.json)", ylabel="number of the true class"
        )
        axis.figure.colorbar(shown, ax=axis, shrink=0.8, ticks=(0, 1, 5, 20, 50, 100))
        return
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axis.set(xlabel="predicted", ylabel="true")
    names, size = drawable(classes), 10 if len(classes) <= 20 else 7
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    if names != list(classes):
        axis.set_xlabel("predicted   (#0 is the first of the classes in summary.json)")
    if len(classes) <= 20:
        for row, column in np.ndindex(*shares.shape):
            color = "white" if shares[row, column] > 50 else "black"
            axis.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=color, fontsize=8)


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Images of any number of channels to look at: (..., C) -> (..., 3) uint8. One is grey; of more, three."""
    channels = images.shape[-1]
    if channels == 1:
        return images.repeat(3, -1)
    missing = np.zeros((*images.shape[:-1], max(3 - channels, 0)), dtype=images.dtype)
    return np.concatenate((images[..., :3], missing), -1)


def tiled(images: np.ndarray, columns: int = 8, scale: int = 6) -> np.ndarray:
    """Small pictures (N, h, w, C) side by side, each enlarged without smoothing: (H, W, C) uint8."""
    num, height, width, channels = images.shape
    rows = -(-num // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 255, dtype=np.uint8)
    for place, image in enumerate(images):
        top, left = (place // columns) * (height + 1) + 1, (place % columns) * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    return canvas.repeat(scale, 0).repeat(scale, 1)


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
    """The wrong predictions that were made with the greatest confidence, each with its caption.

    pixels: gives images, (n, H, W, C) uint8, for their places; labels, predicted, confidence: (N,).
    """
    names = drawable(classes, longest=12)
    wrong = np.flatnonzero(labels != predicted)
    worst = wrong[np.argsort(-confidence[wrong].astype(float), kind="stable")][:num]
    images = as_rgb(pixels(worst)) if len(worst) else np.zeros((0, 1, 1, 3))
    columns, rows = 8, max(-(-len(worst) // 8), 1)
    side, caption, margin = 1.0, 0.5, 0.25  # a picture is 1 wide; its class and the predicted one stand above it
    width, height = columns * (side + margin) + margin, rows * (side + caption) + margin + 0.6 * caption
    figure = matplotlib.figure.Figure(figsize=(1.2 * width, 1.2 * height))
    axis = figure.add_axes((0, 0, 1, 1))  # one: an axis for every picture takes four times as long
    axis.axis("off")
    for number, place in enumerate(worst):
        left = margin + number % columns * (side + margin)
        top = 1.6 * caption + number // columns * (side + caption)
        down, across = (side * length / max(images.shape[1:3]) for length in images.shape[1:3])
        axis.imshow(images[number], extent=(left, left + across, top + down, top))
        said = f"{names[labels[place]]}\nnot {names[predicted[place]]}, {confidence[place]:.2f}"
        axis.text(left + side / 2, top - 0.06, said, fontsize=8, ha="center", va="bottom")
    axis.set(xlim=(0, width), ylim=(height, 0))
    title = (
        f"{len(wrong):,} of {len(labels):,} test images are misclassified; those with the most confident predictions"
    )
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
def sheet(path: Path, originals: np.ndarray, augmented: np.ndarray, columns: int = 10, scale: int = 3) -> None:
    """Originals, and below each what the network sees in its place.

    originals: (N, H, W, C), augmented: (N, h, w, C), both uint8.
    """
    height, width = (max(originals.shape[axis], augmented.shape[axis]) + 2 for axis in (1, 2))

    def row(images: np.ndarray) -> np.ndarray:
        canvas = np.full((height, width * columns, 3), 255, dtype=np.uint8)
        top, left = (height - images.shape[1]) // 2, (width - images.shape[2]) // 2
        for place, image in enumerate(as_rgb(images)):
            first = place * width + left
            canvas[top : top + image.shape[0], first : first + image.shape[1]] = image
        return canvas

    rows = []
    for first in range(0, len(originals), columns):
        rows += [row(originals[first : first + columns]), row(augmented[first : first + columns])]
        rows.append(np.full((6, width * columns, 3), 255, dtype=np.uint8))
    write_png(path, np.concatenate(rows[:-1]).repeat(scale, 0).repeat(scale, 1))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """pixels: (H, W, C) uint8, see `as_rgb`."""
    buffer = io.BytesIO()
    Image.fromarray(as_rgb(pixels)).save(buffer, "png")
    with atomic_path(path) as partial:
        partial.write_bytes(buffer.getvalue())
