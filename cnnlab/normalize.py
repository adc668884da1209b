"""Normalisation: uint8 pixels in, float32 out, with statistics of the training images alone.

Statistics are buffers: they move with the module, are part of the checkpoint, and are used alike in training,
validation, test and prediction.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn


class Normalization(nn.Module):
    """What every normalisation offers."""

    @abstractmethod
    def fit(self, pixels: Tensor) -> None:
        """Measure the training images: (N, C, H, W) uint8."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, C, H, W) float32."""

    @abstractmethod
    def inverse(self, images: Tensor) -> Tensor:
        """Normalised images -> pixels, float32 in [0, 255]."""


class Unchanged(Normalization):
    """Pixels scaled to [0, 1], no more."""

    def fit(self, pixels: Tensor) -> None:
        """There is nothing to learn."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().div_(255)

    def inverse(self, images: Tensor) -> Tensor:
        return images * 255


class Standard(Normalization):
    """Mean 0 and standard deviation 1 in every channel."""

    mean: Tensor  # (C, 1, 1), of pixels in [0, 255]
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))

    def fit(self, pixels: Tensor) -> None:
        """Exact: from how often each of the 256 values occurs, in float64."""
        levels = torch.arange(256, dtype=torch.float64)
        for channel in range(pixels.shape[1]):
            frequency = torch.bincount(pixels[:, channel].flatten(), minlength=256).double()
            frequency /= frequency.sum()
            mean = (frequency * levels).sum()
            self.mean[channel] = mean
            self.std[channel] = (frequency * (levels - mean).square()).sum().sqrt().clamp(min=1e-3)

    def forward(self, images: Tensor) -> Tensor:
        num, channels, height, width = images.shape
        # a line of pixels is one row: broadcasting over three channels, the innermost ones, costs four times as much
        rows = images.permute(0, 2, 3, 1).reshape(num, height, width * channels).float()
        rows.sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return rows.view(num, height, width, channels).permute(0, 3, 1, 2)

    def inverse(self, images: Tensor) -> Tensor:
        return images * self.std + self.mean
