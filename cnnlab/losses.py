"""Losses of classification. Plain torch.

Every callable that makes a scalar of logits (B, num_classes) and labels is an option, torch's own modules among them.
Labels are (B,) int64 or, where an augmentation has mixed them or an image has several, (B, num_classes) float32. A
module is in training mode for training batches alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropy(nn.Module):
    """Cross-entropy of the softmax, over held-out images without smoothing and class weights.

    Args:
        label_smoothing: share of every training label that is spread over all classes (C. Szegedy et al., 2016).
        class_weights: how much each class counts in training; None: all alike.
    """

    tasks = ("multiclass",)
    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None):
        super().__init__()
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not self.training:
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits, labels, self.class_weights, label_smoothing=self.label_smoothing)


class BinaryCrossEntropy(nn.Module):
    """The mean over classes of the binary cross-entropy of each one's sigmoid: whether an image has it or not.

    Args:
        label_smoothing: as of CrossEntropy, where an image has one class.
    """

    tasks = ("multiclass", "multilabel")

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        return F.binary_cross_entropy_with_logits(logits, shares_of(labels, logits.shape[1], smoothing))


class Focal(nn.Module):
    """Cross-entropy in which what is classified well counts less (T. Lin et al., 2017).

    Of the softmax where an image has one class; of every label's sigmoid, as a mean over labels, where it has several.

    Args:
        gamma: a probability p of the right answer counts with the factor (1 - p) ** gamma.
        task: what the targets are.
    """

    tasks = ("multiclass", "multilabel")

    def __init__(self, gamma: float = 2.0, task: str = "multiclass"):
        super().__init__()
        self.gamma, self.several = gamma, task == "multilabel"

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        if self.several:
            yes, no = F.logsigmoid(logits), F.logsigmoid(-logits)
            return -(labels * self.weighed(yes) + (1 - labels) * self.weighed(no)).mean()
        return -(shares_of(labels, logits.shape[1]) * self.weighed(logits.log_softmax(1))).sum(1).mean()

    def weighed(self, logarithms: Tensor) -> Tensor:
        return (1 - logarithms.exp()) ** self.gamma * logarithms


class Hinge(nn.Module):
    """The multi-class hinge loss with margin 1 (K. Crammer and Y. Singer, 2001); with mixed labels, its mean over them.

    Args:
        label_smoothing: as of CrossEntropy.
    """

    tasks = ("multiclass",)

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        num_classes, smoothing = logits.shape[1], self.label_smoothing if self.training else 0.0
        hinges = (1 + logits[:, None, :] - logits[:, :, None]).clamp(min=0).sum(2) - 1  # (B, K); its own margin is 1
        return (shares_of(labels, num_classes, smoothing) * hinges).sum(1).mean() / num_classes


def shares_of(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """What share of an image each class has, (B, num_classes) float32; `smoothing` of it is spread over all classes."""
    shares = F.one_hot(labels, num_classes).float() if labels.ndim == 1 else labels
    return shares * (1 - smoothing) + smoothing / num_classes
