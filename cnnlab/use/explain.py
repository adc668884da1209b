"""Figures of what a trained run has learned: feature maps, occlusion sensitivity, confused classes."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import matplotlib.figure
import numpy as np
import torch
from torch import Tensor, nn

from cnnlab.report.run_figures import as_rgb, drawable, figure, save
from cnnlab.use.trained import Trained


@torch.no_grad()
def feature_maps(model: Trained, pixels: Tensor) -> list[tuple[str, np.ndarray]]:
    """The name and feature maps (channels, h, w) float32 of every convolution for one image.

    pixels: (1, C, H, W) uint8.
    """
    found: list[tuple[str, np.ndarray]] = []

    def keep(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((name, output[0].float().cpu().numpy()))

    with ExitStack() as hooks, model.precision():
        for name, layer in model.network.named_modules():
            if isinstance(layer, nn.Conv2d):
                hooks.enter_context(layer.register_forward_hook(partial(keep, name)))
        model.network(model.norm(model.cropped(pixels.to(model.device))))
    return [(name, maps) for name, maps in found if maps.ndim == 3]


def occlusion(
    model: Trained, pixels: Tensor, label: int, size: int | None = None, stride: int | None = None
) -> np.ndarray:
    """The drop in a label's probability when a gray square covers a pixel (M. Zeiler and R. Fergus, 2014).

    Squares of `size` pixels are `stride` apart: 8 and 2; of more than 32 pixels, a quarter and a sixteenth.

    pixels: (1, C, H, W) uint8 -> (H, W) float64: the mean over all squares that cover a pixel. For regression, `label`
    is the index of a number, and the drop is that number's.
    """
    height, width = pixels.shape[2:]
    size, stride = size or max(8, max(height, width) // 4), stride or max(2, max(height, width) // 16)
    squares = [
        (slice(max(top, 0), top + size), slice(max(left, 0), left + size))
        for top in range(-(size // 2), height - size // 2, stride)
        for left in range(-(size // 2), width - size // 2, stride)
    ]
    covered = pixels.repeat(len(squares), 1, 1, 1)
    for image, (rows, columns) in zip(covered, squares, strict=True):
        image[:, rows, columns] = 128
    whole, *others = model.probabilities(torch.cat((pixels, covered)))[:, label].double().numpy()
    lost, times = np.zeros((height, width)), np.zeros((height, width))
    for share, square in zip(others, squares, strict=True):
        lost[square] += whole - share
        times[square] += 1
    return lost / times


@figure
def draw_feature_maps(
    path: Path, image: np.ndarray, layers: Sequence[tuple[str, np.ndarray]], columns: int = 8
) -> None:
    """A row for every convolution: the image (H, W, C) uint8, and the maps that vary most."""
    size = (1.2 * (columns + 1), 1.5 * len(layers) + 0.3)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    figure.suptitle("Feature maps of every convolution, the channels that vary most", fontsize=10)
    axes = figure.subplots(len(layers), columns + 1, squeeze=False)
    for row, (name, maps) in zip(axes, layers, strict=True):
        row[0].imshow(as_rgb(image))
        row[0].set_title("the image", fontsize=7)
        [layer] = drawable([name])
        strongest = np.argsort(-maps.reshape(len(maps), -1).std(1))[:columns]
        for axis, channel in zip(row[1:], strongest, strict=False):
            axis.imshow(maps[channel], cmap="gray")
            axis.set_title(f"{layer},\nchannel {channel}", fontsize=7)
    for axis in axes.flat:
        axis.axis("off")
    save(figure, path)


@figure
def draw_occlusion(
    path: Path, image: np.ndarray, lost: np.ndarray, title: str, label: str = "probability lost"
) -> None:
    """The image (H, W, C) uint8, alone and with the lost probability (H, W) as an overlay. label: of its scale."""
    figure = matplotlib.figure.Figure(figsize=(6.4, 3.2), layout="constrained")
    plain, over = figure.subplots(1, 2)
    for axis in (plain, over):
        axis.imshow(as_rgb(image))
        axis.axis("off")
    limit = max(float(np.abs(lost).max()), 1e-6)
    shown = over.imshow(lost, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.6)
    figure.colorbar(shown, label=label)
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def confused_pairs(confusion: np.ndarray, num: int = 6) -> list[tuple[int, int, int]]:
    """The largest off-diagonal counts: (true, predicted, count)."""
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None)[:num]
    pairs = np.transpose(np.unravel_index(order, wrong.shape)).tolist()
    return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]


@figure
def draw_confused(
    path: Path,
    pixels: Callable[[np.ndarray], np.ndarray],
    labels: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    columns: int = 8,
) -> None:
    """A row of examples for every pair of classes that is often confused. pixels: returns images by index."""
    names, counts = drawable(classes), np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    pairs = confused_pairs(counts)
    figure = matplotlib.figure.Figure(figsize=(1.2 * columns + 2.4, 1.25 * max(len(pairs), 1)), layout="constrained")
    axes = figure.subplots(max(len(pairs), 1), columns + 1, squeeze=False, width_ratios=[2.4, *[1.2] * columns])
    for row, (true, wrong, count) in zip(axes, pairs, strict=False):
        row[0].text(0, 0.5, f"{names[true]}\npredicted as\n{names[wrong]}\n{count} times", fontsize=9, va="center")
        places = np.flatnonzero((labels == true) & (predicted == wrong))[:columns]
        for axis, image in zip(row[1:], as_rgb(pixels(places)), strict=False):
            axis.imshow(image)
    for axis in axes.flat:
        axis.axis("off")
    save(figure, path)
