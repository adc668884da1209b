"""What a trained run has learned, as pictures: filters, maps, what a picture is recognised by, what is confused."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
import torch
from torch import Tensor, nn

from cnnlab.report.pictures import as_rgb, drawable, figure, save
from cnnlab.use.trained import Trained


@torch.no_grad()
def feature_maps(model: Trained, pixels: Tensor) -> list[tuple[str, np.ndarray]]:
    """What every convolution makes of one picture: its name and maps, (channels, h, w) float32.

    pixels: (1, C, H, W) uint8.
    """
    found: list[tuple[str, np.ndarray]] = []
    hooks = [
        layer.register_forward_hook(
            lambda layer, given, output, name=name: found.append((name, output[0].float().cpu().numpy()))
        )
        for name, layer in model.network.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]
    try:
        with model.precision():
            model.network(model.norm(model.cropped(pixels.to(next(model.parameters()).device))))
    finally:
        for hook in hooks:
            hook.remove()
    return [(name, maps) for name, maps in found if maps.ndim == 3]


def occlusion(model: Trained, pixels: Tensor, label: int, size: int = 8, stride: int = 2) -> np.ndarray:
    """How much probability of a label is lost when a grey square covers a place (M. Zeiler and R. Fergus, 2014).

    pixels: (1, C, H, W) uint8 -> (H, W) float64: the mean over all squares that cover a pixel.
    """
    height, width = pixels.shape[2:]
    corners = [
        (top, left)
        for top in range(-(size // 2), height - size // 2, stride)
        for left in range(-(size // 2), width - size // 2, stride)
    ]
    covered = pixels.repeat(len(corners), 1, 1, 1)
    for image, (top, left) in zip(covered, corners, strict=True):
        image[:, max(top, 0) : top + size, max(left, 0) : left + size] = 128
    shares = model.logits(torch.cat((pixels, covered))).softmax(1)[:, label].double().numpy()
    lost, times = np.zeros((height, width)), np.zeros((height, width))
    for share, (top, left) in zip(shares[1:], corners, strict=True):
        lost[max(top, 0) : top + size, max(left, 0) : left + size] += shares[0] - share
        times[max(top, 0) : top + size, max(left, 0) : left + size] += 1
    return lost / times


# ------------------------------------------------------------------------------------------------------------- pictures


@figure
def draw_feature_maps(
    path: Path, picture: np.ndarray, layers: Sequence[tuple[str, np.ndarray]], columns: int = 8
) -> None:
    """A row of maps for every convolution, those that vary most; left the picture (H, W, C) uint8."""
    figure = matplotlib.figure.Figure(figsize=(1.2 * (columns + 1), 1.3 * len(layers)), layout="constrained")
    axes = figure.subplots(len(layers), columns + 1, squeeze=False)
    for row, (name, maps) in zip(axes, layers, strict=True):
        row[0].imshow(as_rgb(picture))
        row[0].set_title(name, fontsize=8)
        strongest = np.argsort(-maps.reshape(len(maps), -1).std(1))[:columns]
        for axis, channel in zip(row[1:], strongest, strict=False):
            axis.imshow(maps[channel], cmap="gray")
            axis.set_title(str(channel), fontsize=7)
    for axis in axes.flat:
        axis.axis("off")
    save(figure, path)


@figure
def draw_occlusion(path: Path, picture: np.ndarray, lost: np.ndarray, title: str) -> None:
    """The picture, and over it how much probability is lost where."""
    figure = matplotlib.figure.Figure(figsize=(6.4, 3.2), layout="constrained")
    plain, over = figure.subplots(1, 2)
    plain.imshow(as_rgb(picture))
    over.imshow(as_rgb(picture))
    limit = max(float(np.abs(lost).max()), 1e-6)
    shown = over.imshow(lost, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.6)
    figure.colorbar(shown, label="probability lost")
    for axis in (plain, over):
        axis.axis("off")
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def confused_pairs(confusion: np.ndarray, num: int = 6) -> list[tuple[int, int, int]]:
    """The largest numbers beside the diagonal: (true, predicted, count)."""
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None)[:num]
    pairs = [tuple(int(place) for place in np.unravel_index(place, wrong.shape)) for place in order]
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
    """A row of examples for every pair of classes that is often confused. pixels: gives images for their places."""
    num, names = len(classes), drawable(classes)
    pairs = confused_pairs(np.bincount(labels * num + predicted, minlength=num**2).reshape(num, num))
    figure = matplotlib.figure.Figure(figsize=(1.2 * columns + 2.4, 1.25 * max(len(pairs), 1)), layout="constrained")
    axes = figure.subplots(max(len(pairs), 1), columns + 1, squeeze=False, width_ratios=[2.4, *[1.2] * columns])
    for row, (true, taken, count) in zip(axes, pairs, strict=False):
        row[0].text(0, 0.5, f"{names[true]}\npredicted as\n{names[taken]}\n{count} times", fontsize=9, va="center")
        places = np.flatnonzero((labels == true) & (predicted == taken))[:columns]
        for axis, image in zip(row[1:], as_rgb(pixels(places)), strict=False):
            axis.imshow(image)
    for axis in axes.flat:
        axis.axis("off")
    save(figure, path)
