"""Test-time augmentation."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def mean_of_views(network: Any, images: Tensor, flips: bool = False, shifts: int = 0) -> Tensor:
    """The outputs (B, K) of a network for images (B, C, H, W), averaged over views of each image.

    flips: also its mirror image. shifts: also the image shifted by so many pixels up and left, and down and right, and
    continued by reflection.
    """
    views = [images]
    if shifts:
        padded = F.pad(images, (shifts,) * 4, mode="reflect")
        views += [padded[:, :, 2 * shifts :, 2 * shifts :], padded[:, :, : -2 * shifts, : -2 * shifts]]
    if flips:
        views += [view.flip(3) for view in views]
    outputs = network(views[0])
    for view in views[1:]:
        outputs = outputs + network(view)
    return outputs / len(views) if len(views) > 1 else outputs
