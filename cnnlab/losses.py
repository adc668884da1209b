"""Losses of classification. Plain torch.

Every callable that makes a scalar of logits (B, num_classes) and labels is an option, torch's own modules among them.
Labels are (B,) int64 or, where an augmentation has mixed them, (B, num_classes) float32. A module is in training mode
for training batches alone.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropy(nn.Module):
    """Cross-entropy of the softmax, over held-out images without smoothing.

    Args:
        label_smoothing: share of every training label that is spread over all classes (C. Szegedy et al., 2016).
    """

    tasks = ("multiclass",)

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing if self.training else 0.0)


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
        shares = F.one_hot(labels, num_classes).float() if labels.ndim == 1 else labels
        shares = shares * (1 - smoothing) + smoothing / num_classes
        hinges = (1 + logits[:, None, :] - logits[:, :, None]).clamp(min=0).sum(2) - 1  # (B, K); its own margin is 1
        return (shares * hinges).sum(1).mean() / num_classes
