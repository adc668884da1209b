"""Erasing parts of images, and mixing images and their targets."""

import torch
from torch import Tensor

from cnnlab.augment.base import Augmentation, Mixer, Size, Stage, by


class Cutout(Augmentation):
    """Sets a square of every image to 0 after normalization, which with norm=standard is the mean color.

    Source: T. DeVries and G. Taylor, Improved Regularization of CNNs with Cutout, 2017.

    Args:
        size: height and width of the square, in pixels; its center can be anywhere, so it may reach over the edge.
    """

    stage = Stage.ERASE

    def __init__(self, size: int = 8):
        if size < 1:
            raise ValueError(f"size={size} is less than 1")
        self.size = size

    def output_size(self, size: Size) -> Size:
        if self.size >= 2 * max(size):
            raise ValueError(f"size={self.size} erases images of {by(size)} pixels: use less than {2 * max(size)}")
        return size

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """box: (N, 4) int64, left, top, right, bottom (exclusive)."""
        height, width = size
        axes = [(width, 2)] if height == width else [(width, 1), (height, 1)]  # for squares, both in one draw
        drawn = [torch.randint(length, (num_images, num), generator=generator) for length, num in axes]
        first = torch.cat(drawn, 1) - self.size // 2
        return {"box": _within(torch.cat((first, first + self.size), 1), size)}

    def apply(self, images: Tensor, box: Tensor) -> Tensor:
        return torch.where(inside(box, *images.shape[2:]), 0, images)  # masked_fill would lose channels_last


def _within(box: Tensor, size: Size) -> Tensor:
    """Clip boxes to the image: (N, 4) int64, left, top, right, bottom."""
    height, width = size
    return box.clamp(min=0).minimum(torch.tensor([width, height, width, height]))


def inside(box: Tensor, height: int, width: int) -> Tensor:
    """The pixels inside of boxes: (B, 4) int64, left, top, right, bottom -> (B, 1, height, width) bool."""
    left, top, right, bottom = box[:, :, None].unbind(1)  # (B, 1) each
    x, y = torch.arange(width, device=box.device), torch.arange(height, device=box.device)
    return ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]


class CutMix(Mixer):
    """Replaces a random box of every image by that of the image before it; labels are mixed by area.

    Source: S. Yun et al., CutMix, ICCV 2019. Each image has its own box; torchvision draws one per batch.

    Args:
        alpha: the share of the image that stays is drawn from Beta(alpha, alpha).
    """

    def __init__(self, alpha: float = 1.0):
        self.alpha = _positive(alpha)

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """box: (N, 4) int64, left, top, right, bottom (exclusive)."""
        share = _beta(self.alpha, num_images, generator)
        height, width = size
        half = 0.5 * (1 - share).sqrt()
        across, down = (half * width).long(), (half * height).long()
        x = torch.randint(width, (num_images,), generator=generator)
        y = torch.randint(height, (num_images,), generator=generator)
        return {"box": _within(torch.stack((x - across, y - down, x + across, y + down), dim=1), size)}

    def apply(
        self, images: Tensor, labels: Tensor, partners: Tensor, partner_labels: Tensor, box: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mixed images and labels, in the same shapes and dtypes.

        images, partners: (B, C, H, W); labels, partner_labels: (B, num_classes) float; box: (B, 4) int64.
        """
        height, width = images.shape[2:]
        left, top, right, bottom = box[:, :, None].unbind(1)  # (B, 1) each
        area = ((right - left) * (bottom - top)) / (height * width)  # (B, 1) float
        mixed = torch.where(inside(box, height, width), partners, images)
        return mixed, torch.lerp(labels, partner_labels, area)


class MixUp(Mixer):
    """The weighted mean of every image and the one before it, and of their labels.

    Source: H. Zhang et al., mixup, ICLR 2018. Each image has its own weight; torchvision draws one per batch.

    Args:
        alpha: the weights are drawn from Beta(alpha, alpha).
    """

    def __init__(self, alpha: float = 1.0):
        self.alpha = _positive(alpha)

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """share: (N,) float32, weight of the partner."""
        return {"share": _beta(self.alpha, num_images, generator).float()}

    def apply(
        self, images: Tensor, labels: Tensor, partners: Tensor, partner_labels: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As for CutMix."""
        mixed = torch.lerp(images, partners, share[:, None, None, None])
        return mixed, torch.lerp(labels, partner_labels, share[:, None])


def _positive(alpha: float) -> float:
    if alpha <= 0:
        raise ValueError(f"alpha={alpha}: Beta(alpha, alpha) needs alpha > 0")
    return alpha


def _beta(alpha: float, num: int, generator: torch.Generator) -> Tensor:
    """Samples from Beta(alpha, alpha), (num,) float64, by way of two gamma variates."""
    if alpha == 1:
        return torch.rand(num, generator=generator, dtype=torch.float64)
    concentration = torch.full((2, num), alpha, dtype=torch.float64)
    first, second = torch._standard_gamma(concentration, generator=generator)
    coin = torch.rand(num, generator=generator, dtype=torch.float64).round()
    return torch.where(first == second, coin, first / (first + second))  # if both underflow: 0 or 1
