"""How good a trained run is on some images: loss, metrics, classes, calibration."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from cnnlab.config.options import UserError
from cnnlab.data.images import Images
from cnnlab.data.loaders import pixel_batches
from cnnlab.data.resident import evaluated_together
from cnnlab.metrics import EpochMetrics
from cnnlab.runs.files import atomic_path
from cnnlab.terminal import Table
from cnnlab.text import csv_cell
from cnnlab.train.classifier import answers
from cnnlab.use.trained import Trained

BINS = 15  # of confidence, as C. Guo et al. have them (2017)


@dataclass
class Evaluation:
    """What a model makes of images with their targets.

    Attributes:
        metrics: the means over the images, and what the run's metrics have come to: {"loss": ..., "acc": ...}.
        num_images: how many.
        confusion: (K, K) int64, rows are true classes. It and the next two are None unless each image has one class.
        confidence, correct: per image, (N,): the probability of the predicted class, and whether it is right.
    """

    metrics: dict[str, float]
    num_images: int
    confusion: np.ndarray | None = None
    confidence: np.ndarray | None = None
    correct: np.ndarray | None = None

    @property
    def accuracy(self) -> float:
        assert self.correct is not None
        return float(self.correct.mean())

    def reliability(self) -> list[tuple[float, float, int]]:
        """For every bin of confidence that has images: mean confidence, accuracy, number of images."""
        assert self.confidence is not None
        assert self.correct is not None
        places = np.minimum((self.confidence * BINS).astype(int), BINS - 1)
        return [
            (float(self.confidence[here].mean()), float(self.correct[here].mean()), int(here.sum()))
            for here in (places == place for place in range(BINS))
            if here.any()
        ]

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: the mean gap between confidence and accuracy, weighted by images."""
        gaps = (num * abs(confidence - accuracy) for confidence, accuracy, num in self.reliability())
        return sum(gaps) / self.num_images


@torch.no_grad()
def evaluate(model: Trained, images: Images) -> Evaluation:
    """Evaluate images, whose classes may be some of the model's, in another order.

    In the batches of the training's own evaluation, and by the same operations: the run's own test comes out to the
    last bit.
    """
    device, task = next(model.parameters()).device, model.stored.task
    targets = torch.from_numpy(images.targets).to(device)
    if task == "multiclass":
        targets = torch.tensor([model.classes.index(name) for name in images.classes], device=device)[targets]
    sums = EpochMetrics(model.metrics[0], task, device)
    said = []
    num = evaluated_together(device, model.stored.size)
    for pixels, right in zip(pixel_batches(images, num), targets.split(num), strict=True):
        normalized = model.norm(model.cropped(pixels.to(device)))
        with model.precision():
            outputs = model.classified(normalized)
            sums.add(model.loss(outputs, right), outputs, right)
        said.append(answers(outputs, task))
    metrics = sums.compute()
    if task != "multiclass":
        return Evaluation(metrics, len(targets))
    predicted, confidence = (torch.cat(parts) for parts in zip(*said, strict=True))
    return Evaluation(
        metrics,
        len(targets),
        confusion=multiclass_confusion_matrix(predicted, targets, len(model.classes)).cpu().numpy(),
        confidence=confidence.cpu().numpy(),
        correct=(predicted == targets).cpu().numpy(),
    )


def check_fits(model: Trained, images: Images) -> None:
    """Raises: UserError if the images have other classes, targets of another kind, or another shape."""
    wanted, found = model.stored, images.pixels.shape[1:]
    if found != (wanted.channels, *wanted.size):
        raise UserError(f"The run takes images of {wanted}, and these are {'x'.join(map(str, found))}. Use such data.")
    if images.targets.ndim != (1 if wanted.task == "multiclass" else 2):
        raise UserError(f"The run was trained on data that are {wanted.task}, and these are {images.task}.")
    if wanted.task != "multiclass" and images.classes != model.classes:
        raise UserError(f"The run knows {', '.join(model.classes)}, and these data have {', '.join(images.classes)}.")
    if unknown := [name for name in images.classes if name not in model.classes]:
        raise UserError(f"The run does not know {', '.join(unknown)}. Its classes are {', '.join(model.classes)}.")


def as_dictionary(found: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """What evaluation.json says."""
    said: dict[str, Any] = {"num_images": found.num_images, **found.metrics}
    if found.confusion is not None:
        said["calibration_error"] = found.calibration_error
        said["classes"] = {row[0]: dict(zip(HEAD[1:], row[1:], strict=True)) for row in per_class(found, classes)}
    return said


def write_confusion(path: Path, found: Evaluation, classes: Sequence[str]) -> None:
    """Counts of the images: a row for every true class, a column for every predicted one."""
    assert found.confusion is not None
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true class", *map(csv_cell, classes)])
        writer.writerows([csv_cell(name), *row] for name, row in zip(classes, found.confusion.tolist(), strict=True))


ACCURACY = {"acc": "accuracy"}  # as it is said
HEAD = ("class", "images", "recall", "precision")


def per_class(found: Evaluation, classes: Sequence[str]) -> list[tuple[str, int, float, float]]:
    """Name, number of images, recall (the share of them that is found) and precision of every class."""
    assert found.confusion is not None
    right, of_class, taken = np.diag(found.confusion), found.confusion.sum(1), found.confusion.sum(0)
    return [
        (name, int(of_class[k]), float(right[k] / max(of_class[k], 1)), float(right[k] / max(taken[k], 1)))
        for k, name in enumerate(classes)
    ]


def print_evaluation(found: Evaluation, classes: Sequence[str]) -> None:
    if found.confusion is not None:
        table = Table()
        for name in HEAD:
            table.add_column(name, justify="left" if name == "class" else "right")
        for name, num, recall, precision in per_class(found, classes):
            table.add_row(name, f"{num:,}", f"{recall:.4f}", f"{precision:.4f}")
        table.show(width=100)
    said = [f"{ACCURACY.get(name, name)} {value:.4f}" for name, value in found.metrics.items()]
    if found.confusion is not None:
        said.append(f"expected calibration error {found.calibration_error:.4f}")
    print(f"{found.num_images:,} images: {', '.join(said)}")
