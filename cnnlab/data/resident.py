"""Images in the memory of a device, and moving tensors there."""

import functools
import warnings
from typing import cast

import numpy as np
import torch
from torch import Tensor

from cnnlab.augment.base import Size
from cnnlab.data.images import Images, is_fetched


def evaluated_together(device: torch.device, size: Size) -> int:
    """Images in a batch for evaluation: as many pixels as in 500 CIFAR images on the CPU, 2,500 on a GPU.

    At least two, so that processes whose shares differ by one image have the same number of non-empty batches.
    """
    return max(2, (500 if device.type == "cpu" else 2500) * 32**2 // (size[0] * size[1]))


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy values to the device; to a GPU from pinned memory, without waiting for the copy."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def taken(images: Tensor, rows: Tensor) -> Tensor:
    """Select images and keep them channels_last: (N, C, H, W), (B,) int64 -> (B, C, H, W)."""
    return images.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor that shares an array's memory, without torch's warning for read-only arrays: nothing writes to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


class Resident:
    """Images and targets in the memory of a device: pixels (N, H, W, C) uint8, targets (N,) int64 or (N, K) float32."""

    def __init__(self, images: Images, device: torch.device):
        self.pixels = cast(Tensor, images.pixels)
        if not is_fetched(images):
            self.pixels = as_tensor(np.ascontiguousarray(images.pixels.transpose(0, 2, 3, 1))).to(device)
        self.targets = torch.from_numpy(images.targets).to(device)


def on_device(images: Images, device: torch.device) -> Resident:
    """The images on the device; copied to a GPU once for all jobs of a process."""
    return Resident(images, device) if device.type == "cpu" else _uploaded(images, device)


@functools.lru_cache(maxsize=2)  # the training and test images of one data set
def _uploaded(images: Images, device: torch.device) -> Resident:
    return Resident(images, device)
