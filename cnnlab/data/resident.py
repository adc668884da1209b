"""Images in the memory of a device, and moving things there."""

import functools
import warnings
from typing import cast

import numpy as np
import torch
from torch import Tensor

from cnnlab.augment.base import Size
from cnnlab.data.images import Images, fetches


def evaluated_together(device: torch.device, size: Size) -> int:
    """How many images make a batch when nothing is learned from it: by the pixels of 500 of CIFAR's, or 2,500.

    At least two: so processes whose shares differ by one image have equal numbers of batches, none of which is empty.
    """
    return max(2, (500 if device.type == "cpu" else 2500) * 32**2 // (size[0] * size[1]))


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device; from pinned memory if it is a GPU, so that nothing waits for the copy."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def taken(images: Tensor, rows: Tensor) -> Tensor:
    """Some of the images, channels_last as they were: (N, C, H, W), (B,) int64 -> (B, C, H, W)."""
    return images.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor, also if it cannot be written to, about which torch warns: nothing here does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


class Resident:
    """Images and targets in the memory of a device: pixels (N, H, W, C) uint8, targets (N,) int64 or (N, K) float32."""

    def __init__(self, images: Images, device: torch.device):
        self.pixels = cast(Tensor, images.pixels)
        if not fetches(images):
            self.pixels = as_tensor(images.pixels.transpose(0, 2, 3, 1)).to(device)
        self.targets = torch.from_numpy(images.targets).to(device)


def on_device(images: Images, device: torch.device) -> Resident:
    """The images on the device, moved to a GPU once for all jobs of a process."""
    return Resident(images, device) if device.type == "cpu" else _uploaded(images, device)


@functools.lru_cache(maxsize=2)  # training and test images of one data set
def _uploaded(images: Images, device: torch.device) -> Resident:
    return Resident(images, device)
