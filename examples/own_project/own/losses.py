"""A loss of a project."""

import torch.nn.functional as F
from torch import Tensor, nn


class Focal(nn.Module):
    """The focal loss: logits (B, num_classes), labels (B,) int64 or soft labels (B, num_classes) -> a scalar.

    Args:
        gamma: if the correct class has the probability p, the image has the weight (1 - p) ** gamma.
    """

    def __init__(self, gamma: float = 2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        shares = F.one_hot(labels, logits.shape[1]) if labels.ndim == 1 else labels
        log_probs = logits.float().log_softmax(1)
        return -(shares * (1 - log_probs.exp()) ** self.gamma * log_probs).sum(1).mean()
