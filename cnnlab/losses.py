"""Classification losses. Plain torch.

Any callable that computes a scalar from logits (B, num_classes) and labels can be an option, including torch's own.
Labels are (B,) int64, or (B, num_classes) float32 if an augmentation has mixed them or an image has several. A module
is in training mode for training batches only.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 2.0**-24  # the distance of 1 from the largest float32 below it


class SmoothedLoss(nn.Module):
    """A loss with label smoothing in training.

    Args:
        label_smoothing: share of every training label that is spread over all classes (C. Szegedy et al., 2016).
    """

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    @property
    def smoothing(self) -> float:
        return self.label_smoothing if self.training else 0.0


class CrossEntropy(SmoothedLoss):
    """Cross-entropy of the softmax; on held-out images without smoothing and class weights.

    Args:
        label_smoothing: see SmoothedLoss.
        class_weights: weight of each class in training; None: equal weights. The mean over a batch is weighted: it is
            divided by the weights of its labels, mixed or not, in all processes.
    """

    tasks = ("multiclass",)
    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None):
        super().__init__(label_smoothing)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not self.training or self.class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        total = F.cross_entropy(logits, labels, self.class_weights, reduction="sum", label_smoothing=self.smoothing)
        return total / mean_over_processes((soft_labels(labels, logits.shape[1]) * self.class_weights).sum()).clamp(
            SMALLEST
        )


class BinaryCrossEntropy(SmoothedLoss):
    """Binary cross-entropy of each class's sigmoid, averaged over classes.

    Args:
        label_smoothing: see SmoothedLoss; of several labels, each is spread over yes and no.
        task: what the targets are.
    """

    tasks = ("multiclass", "multilabel")

    def __init__(self, label_smoothing: float = 0.0, task: str = "multiclass"):
        super().__init__(label_smoothing)
        self.multilabel = task == "multilabel"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        shared = 2 if self.multilabel else logits.shape[1]
        return F.binary_cross_entropy_with_logits(logits, soft_labels(labels, logits.shape[1], self.smoothing, shared))


class Focal(nn.Module):
    """Cross-entropy that gives less weight to images that are classified well (T. Lin et al., 2017).

    For multiclass data of the softmax; for multilabel data of each label's sigmoid, averaged over labels.

    Args:
        gamma: an image whose true class has probability p is weighted by (1 - p) ** gamma.
        task: what the targets are.
    """

    tasks = ("multiclass", "multilabel")

    def __init__(self, gamma: float = 2.0, task: str = "multiclass"):
        super().__init__()
        self.gamma, self.multilabel = gamma, task == "multilabel"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        if self.multilabel:
            yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
            return -(labels * self.weighted(yes) + (1 - labels) * self.weighted(no)).mean()
        return -(soft_labels(labels, logits.shape[1]) * self.weighted(logits.log_softmax(1))).sum(1).mean()

    def weighted(self, log_probabilities: Tensor) -> Tensor:
        missed = (1 - log_probabilities.exp()).clamp(min=SMALLEST)  # of 0, powers below 1 have no gradient
        return missed**self.gamma * log_probabilities


class Hinge(SmoothedLoss):
    """The multi-class hinge loss with margin 1 (J. Weston and C. Watkins, 1999), averaged over mixed labels."""

    tasks = ("multiclass",)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        num_classes = logits.shape[1]
        # (B, K): the loss if each class were the true one; a class's margin to itself, 1, is subtracted
        hinges = (1 + logits[:, None, :] - logits[:, :, None]).clamp(min=0).sum(2) - 1
        return (soft_labels(labels, num_classes, self.smoothing) * hinges).sum(1).mean() / num_classes


def soft_labels(labels: Tensor, num_classes: int, smoothing: float = 0.0, shared: int | None = None) -> Tensor:
    """The share of each class in an image, (B, num_classes) float32; `smoothing` of it is spread over `shared` ones."""
    shares = F.one_hot(labels, num_classes).float() if labels.ndim == 1 else labels
    return shares * (1 - smoothing) + smoothing / (shared or num_classes)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a number over the processes of a run, whose losses are averaged."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
