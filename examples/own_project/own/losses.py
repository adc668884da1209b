"""A loss of one's own."""

import torch.nn.functional as F
from torch import Tensor, nn


class Focal(nn.Module):
    """The focal loss: logits (B, num_classes), labels (B,) int64 or shares of labels (B, num_classes) -> ().

    Args:
        gamma: a probability p of the right label counts with the factor (1 - p) ** gamma.
    """

    def __init__(self, gamma: float = 2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        shares = F.one_hot(labels, logits.shape[1]) if labels.ndim == 1 else labels
        logarithms = logits.float().log_softmax(1)
        return -(shares * (1 - logarithms.exp()) ** self.gamma * logarithms).sum(1).mean()
