"""How good a trained run is: loss, accuracy, classes, calibration, and what corruptions of the pictures do to it."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from rich.progress import track
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cnnlab.classifier import Sums
from cnnlab.config import UserError
from cnnlab.data.images import Images
from cnnlab.data.module import evaluated_together
from cnnlab.records import atomic_path
from cnnlab.terminal import Table
from cnnlab.text import csv_cell
from cnnlab.trained import Trained

BINS = 15  # of confidence, as C. Guo et al. have them (2017)


@dataclass
class Evaluation:
    """What a model makes of labelled images.

    Attributes:
        loss: mean over the images.
        accuracy: share of images whose most probable class is the right one.
        confusion: (K, K) int64, rows are true classes.
        confidence, correct: per image, (N,): the probability of the predicted class, and whether it is right.
    """

    loss: float
    accuracy: float
    confusion: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray

    def reliability(self) -> list[tuple[float, float, int]]:
        """For every bin of confidence that has images: mean confidence, accuracy, number of images."""
        places = np.minimum((self.confidence * BINS).astype(int), BINS - 1)
        return [
            (float(self.confidence[here].mean()), float(self.correct[here].mean()), int(here.sum()))
            for here in (places == place for place in range(BINS))
            if here.any()
        ]

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: the mean gap between confidence and accuracy, weighted by images."""
        return sum(num * abs(confidence - accuracy) for confidence, accuracy, num in self.reliability()) / len(
            self.correct
        )


@torch.no_grad()
def evaluate(model: Trained, images: Images) -> Evaluation:
    """Evaluate images, whose labels are places in their own list of classes.

    In the batches of the training's own evaluation, and by the same operations: the run's own test comes out to the
    last bit.
    """
    device = next(model.parameters()).device
    to_ours = torch.tensor([model.classes.index(name) for name in images.classes])
    labels = to_ours[torch.from_numpy(images.labels)].to(device)
    sums = Sums()
    answers = []
    num = evaluated_together(device, model.image_size)
    for pixels, right in zip(torch.from_numpy(images.pixels).split(num), labels.split(num), strict=True):
        normalized = model.norm(model.cropped(pixels.to(device)))
        with model.precision():
            logits = model.classified(normalized)
            sums.add(model.loss(logits, right), logits, right)
        answers.append(logits.float().softmax(1).max(1))
    confidence, predicted = (torch.cat(parts) for parts in zip(*answers, strict=True))
    loss, correct, count = sums.totals().tolist()
    return Evaluation(
        loss=loss / count,
        accuracy=correct / count,
        confusion=multiclass_confusion_matrix(predicted, labels, len(model.classes)).cpu().numpy(),
        confidence=confidence.cpu().numpy(),
        correct=(predicted == labels).cpu().numpy(),
    )


def check_fits(model: Trained, images: Images) -> None:
    """Raises: UserError if the images have classes that the model does not know."""
    if unknown := [name for name in images.classes if name not in model.classes]:
        raise UserError(f"The run does not know {', '.join(unknown)}. Its classes are {', '.join(model.classes)}.")


def as_dictionary(found: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """What evaluation.json says."""
    return {
        "num_images": len(found.correct),
        "loss": found.loss,
        "acc": found.accuracy,
        "calibration_error": found.calibration_error,
        "classes": {row[0]: dict(zip(HEAD[1:], row[1:], strict=True)) for row in per_class(found, classes)},
    }


def write_confusion(path: Path, found: Evaluation, classes: Sequence[str]) -> None:
    """Counts of the images: a row for every true class, a column for every predicted one."""
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true class", *map(csv_cell, classes)])
        writer.writerows([csv_cell(name), *row] for name, row in zip(classes, found.confusion.tolist(), strict=True))


HEAD = ("class", "images", "recall", "precision")


def per_class(found: Evaluation, classes: Sequence[str]) -> list[tuple[str, int, float, float]]:
    """Name, number of images, recall (the share of them that is found) and precision of every class."""
    right, of_class, taken = np.diag(found.confusion), found.confusion.sum(1), found.confusion.sum(0)
    return [
        (name, int(of_class[k]), float(right[k] / max(of_class[k], 1)), float(right[k] / max(taken[k], 1)))
        for k, name in enumerate(classes)
    ]


def print_evaluation(found: Evaluation, classes: Sequence[str]) -> None:
    table = Table()
    for name in HEAD:
        table.add_column(name, justify="left" if name == "class" else "right")
    for name, num, recall, precision in per_class(found, classes):
        table.add_row(name, f"{num:,}", f"{recall:.4f}", f"{precision:.4f}")
    table.show(width=100)
    print(
        f"{len(found.correct):,} images: loss {found.loss:.4f}, accuracy {found.accuracy:.4f}, expected calibration "
        f"error {found.calibration_error:.4f}"
    )


# ---------------------------------------------------------------------------------------------------------- corruptions

# Five strengths each, mild to strong.
STRENGTHS: Mapping[str, tuple[float, ...]] = {
    "noise": (5, 10, 15, 25, 40),  # standard deviation, of values from 0 to 255
    "blur": (0.4, 0.6, 0.8, 1.2, 1.6),  # standard deviation of the Gaussian, in pixels of 32
    "brightness": (1.2, 1.4, 1.6, 1.8, 2.0),  # factor
    "contrast": (0.8, 0.6, 0.45, 0.3, 0.15),  # factor
    "jpeg": (60, 40, 25, 15, 8),  # quality
}


def corrupted(images: Images, kind: str, strength: float, seed: int = 0) -> Images:
    """Pictures with a corruption of one strength, as Pillow makes them; noise is drawn from the seed."""
    generator = np.random.default_rng(seed)

    def change(pixels: np.ndarray) -> np.ndarray:
        if kind == "noise":
            noisy = pixels + generator.normal(0, strength, pixels.shape)
            return noisy.round().clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels)
        if kind == "blur":
            picture = picture.filter(ImageFilter.GaussianBlur(strength * pixels.shape[0] / 32))
        elif kind == "brightness":
            picture = ImageEnhance.Brightness(picture).enhance(strength)
        elif kind == "contrast":
            picture = ImageEnhance.Contrast(picture).enhance(strength)
        else:
            file = io.BytesIO()
            picture.save(file, "jpeg", quality=int(strength))
            picture = Image.open(file)
        return np.asarray(picture)

    changed = np.stack([change(pixels) for pixels in images.pixels.transpose(0, 2, 3, 1)])
    return Images(changed.transpose(0, 3, 1, 2), images.labels, images.classes)


def under_corruption(model: Trained, images: Images) -> dict[str, list[float]]:
    """Accuracy with every corruption, mild to strong."""
    return {
        kind: [
            evaluate(model, corrupted(images, kind, strength)).accuracy
            for strength in track(strengths, description=kind, transient=True, disable=not os.isatty(1))
        ]
        for kind, strengths in STRENGTHS.items()
    }


def print_corruptions(found: Mapping[str, Sequence[float]], clean: float) -> None:
    table = Table("corruption", "without", *("1", "2", "3", "4", "5"), title="accuracy, by strength")
    for kind, accuracies in found.items():
        table.add_row(kind, *(f"{value:.4f}" for value in (clean, *accuracies)))
    table.show(width=100)
