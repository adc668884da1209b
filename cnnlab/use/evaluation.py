"""The performance of a trained run on images: loss, metrics, per-class results, calibration."""

import csv
import math
from collections.abc import Mapping, Sequence
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

NUM_BINS = 15  # of confidence, as in C. Guo et al. (2017)
HEAD = ("class", "images", "recall", "precision")


@dataclass
class Evaluation:
    """The results of a model on images with targets.

    Attributes:
        metrics: the mean loss and the run's metrics: {"loss": ..., "acc": ...}.
        num_images: number of images.
        confusion: (K, K) int64, rows are true classes. It and the next two are None unless each image has one class.
        confidence, correct: (N,), the probability of the predicted class, and whether it is right.
    """

    metrics: dict[str, float]
    num_images: int
    confusion: np.ndarray | None = None
    confidence: np.ndarray | None = None
    correct: np.ndarray | None = None

    def reliability(self) -> list[tuple[float, float, int]]:
        """Mean confidence, accuracy and number of images of every non-empty bin of confidence."""
        assert self.confidence is not None
        assert self.correct is not None
        places = np.minimum((self.confidence * NUM_BINS).astype(int), NUM_BINS - 1)
        return [
            (float(self.confidence[here].mean()), float(self.correct[here].mean()), int(here.sum()))
            for here in (places == place for place in np.unique(places))
        ]

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: the mean gap between confidence and accuracy, weighted by images."""
        gaps = (num * abs(confidence - accuracy) for confidence, accuracy, num in self.reliability())
        return sum(gaps) / self.num_images


@torch.no_grad()
def evaluate(model: Trained, images: Images) -> Evaluation:
    """Evaluate images; their classes may be a subset of the model's, in another order.

    Batches and operations are those of the default module's test, whose metrics are reproduced to the last bit. What
    another module does at test time besides calling `network` is not repeated here: see `disagreement`.
    """
    device, task = model.device, model.stored.task
    targets = torch.from_numpy(images.targets).to(device)
    if task == "multiclass":
        targets = torch.tensor([model.classes.index(name) for name in images.classes], device=device)[targets]
    metrics = EpochMetrics(model.metrics[0], task, device)
    predictions = []
    num = evaluated_together(device, model.stored.size)
    for pixels, right in zip(pixel_batches(images, num), targets.split(num), strict=True):
        normalized = model.norm(model.cropped(pixels.to(device)))
        with model.precision():
            outputs = model.classified(normalized)
            metrics.add(model.loss(outputs, right), outputs, right)
        predictions.append(answers(outputs, task))
    if task != "multiclass":
        return Evaluation(metrics.compute(), len(targets))
    predicted, confidence = (torch.cat(parts) for parts in zip(*predictions, strict=True))
    return Evaluation(
        metrics.compute(),
        len(targets),
        confusion=multiclass_confusion_matrix(predicted, targets, len(model.classes)).cpu().numpy(),
        confidence=confidence.cpu().numpy(),
        correct=(predicted == targets).cpu().numpy(),
    )


def disagreement(found: Evaluation, summary: Mapping[str, Any]) -> str:
    """How the loss differs from that of the training's own test of the same images; without one, another metric.

    Empty if it differs by no more than other hardware explains: one percent, or the share of one image.
    """
    reported = {} if "trainer.limit_test_batches" in summary.get("changes", {}) else summary.get("metrics", {})
    for name in ("loss",) if "test/loss" in reported else found.metrics:
        value, before = found.metrics[name], reported.get(f"test/{name}")
        noise = 0.001 if name == "loss" else 1 / found.num_images
        if before is not None and not math.isclose(value, before, rel_tol=0.01, abs_tol=noise):
            return (
                f"the training reported test/{name} {before:.4f} for these images, but the run's network, loss and "
                f"metrics give {value:.4f} now. Either its module does more at test time than to call them, or one of "
                f"them depends on more than images and weights, or code or packages have changed."
            )
    return ""


def check_fits(model: Trained, images: Images) -> None:
    """Raises: UserError if the images have another shape, other classes, or another kind of targets."""
    wanted, found = model.stored, images.pixels.shape[1:]
    if found != (wanted.channels, *wanted.size):
        raise UserError(f"The run takes images of {wanted}, but these are {'x'.join(map(str, found))}. Use such data.")
    if images.targets.ndim != (1 if wanted.task == "multiclass" else 2):
        raise UserError(f"The run was trained on {wanted.task} data, but these are {images.task}. Use such data.")
    if wanted.task != "multiclass" and images.classes != model.classes:
        raise UserError(f"The run knows {', '.join(model.classes)}, but these data have {', '.join(images.classes)}.")
    if unknown := [name for name in images.classes if name not in model.classes]:
        raise UserError(f"The run does not know {', '.join(unknown)}. Its classes are {', '.join(model.classes)}.")


def as_dictionary(found: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """The content of evaluation.json."""
    content: dict[str, Any] = {"num_images": found.num_images, **found.metrics}
    if found.confusion is not None:
        content["calibration_error"] = found.calibration_error
        content["classes"] = {name: dict(zip(HEAD[1:], row, strict=True)) for name, *row in per_class(found, classes)}
    return content


def write_confusion(path: Path, found: Evaluation, classes: Sequence[str]) -> None:
    """Numbers of images: a row for every true class, a column for every predicted one."""
    assert found.confusion is not None
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["true class", *map(csv_cell, classes)])
        writer.writerows([csv_cell(name), *row] for name, row in zip(classes, found.confusion.tolist(), strict=True))


def per_class(found: Evaluation, classes: Sequence[str]) -> list[tuple[str, int, float | None, float | None]]:
    """Name, number of images, recall and precision of every class; None where there is no image to divide by."""
    assert found.confusion is not None
    correct, actual, predicted = np.diag(found.confusion), found.confusion.sum(1), found.confusion.sum(0)
    recall, precision = (
        [right / num if num else None for right, num in zip(correct.tolist(), nums.tolist(), strict=True)]
        for nums in (actual, predicted)
    )
    return list(zip(classes, actual.tolist(), recall, precision, strict=True))


def print_evaluation(found: Evaluation, classes: Sequence[str]) -> None:
    results = {"accuracy" if name == "acc" else name: value for name, value in found.metrics.items()}
    if found.confusion is not None:
        table = Table()
        for name in HEAD:
            table.add_column(name, justify="left" if name == "class" else "right")
        for name, num, *shares in per_class(found, classes):
            table.add_row(name, f"{num:,}", *("-" if share is None else f"{share:.4f}" for share in shares))
        table.show(width=100)
        results["expected calibration error"] = found.calibration_error
    print(f"{found.num_images:,} images: {', '.join(f'{name} {value:.4f}' for name, value in results.items())}")
