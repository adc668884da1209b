"""Color, noise, blur: augmentations that change the values of pixels."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.augment.base import Augmentation, Size, Stage, by


class Color(Augmentation):
    """Brightness, contrast and saturation, in this order, each multiplied by a random factor.

    Args:
        brightness, contrast, saturation: the factor is uniform between max(0, 1 - x) and 1 + x.
    """

    stage = Stage.COLOR

    def __init__(self, brightness: float = 0.3, contrast: float = 0.3, saturation: float = 0.3):
        if min(brightness, contrast, saturation) < 0:
            raise ValueError(
                f"brightness={brightness}, contrast={contrast}, saturation={saturation}: none may be negative"
            )
        self.ranges = {"brightness": brightness, "contrast": contrast, "saturation": saturation}

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """brightness, contrast, saturation: (N,) float32 factors."""
        return {
            name: torch.empty(num_images).uniform_(max(0.0, 1 - x), 1 + x, generator=generator)
            for name, x in self.ranges.items()
        }

    def apply(self, images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
        images = blend(images, torch.zeros_like(images), brightness)
        images = blend(images, gray(images).mean((1, 2, 3), keepdim=True), contrast)
        return blend(images, gray(images), saturation)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Move images towards others (factor below 1) or away from them (above 1): factor (B,) -> within [0, 255]."""
    return torch.lerp(other, images, factor[:, None, None, None]).clamp_(0, 255)


def gray(images: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of three channels, or the mean of any other number: (B, C, H, W) -> (B, 1, H, W)."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * constant((0.2989, 0.587, 0.114), images.device)[:, None, None]).sum(1, keepdim=True)


@functools.lru_cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device, moved there once, as a CUDA graph cannot record the copy."""
    return torch.tensor(values, device=device)


class Noise(Augmentation):
    """Gaussian noise on every value, clipped at black and white.

    The noise comes from a fixed table of a million normal numbers. Only the place where each image starts to read it is
    random, so that a plan stays small and the device draws nothing.

    Args:
        std: standard deviation, as a fraction of the full range.
    """

    stage = Stage.QUALITY

    def __init__(self, std: float = 0.05):
        if std < 0:
            raise ValueError(f"std={std} is negative")
        self.std = std
        self.table = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """start: (N,) int64, a place in the table."""
        return {"start": torch.randint(len(self.table), (num_images,), generator=generator)}

    def apply(self, images: Tensor, start: Tensor) -> Tensor:
        self.table = self.table.to(images.device)
        place = start[:, None] + torch.arange(images[0].numel(), device=images.device)
        noise = self.table[place % len(self.table)].view(images.shape)
        return (images + 255 * self.std * noise).clamp_(0, 255)


class Blur(Augmentation):
    """Gaussian blur with a random standard deviation for each image, which is mirrored at its edges.

    Args:
        kernel_size: odd height and width of the filter, in pixels.
        sigma: smallest and largest standard deviation, in pixels.
    """

    stage = Stage.QUALITY

    def __init__(self, kernel_size: int = 5, sigma: Sequence[float] = (0.1, 1.0)):
        if kernel_size < 1 or kernel_size % 2 == 0 or not 0 < sigma[0] <= sigma[1]:
            raise ValueError(
                f"kernel_size={kernel_size}, sigma={list(sigma)}: kernel_size must be odd, and 0 < sigma[0] <= sigma[1]"
            )
        self.kernel_size, self.sigma = kernel_size, sigma

    def output_size(self, size: Size) -> Size:
        if self.kernel_size // 2 >= min(size):
            raise ValueError(f"kernel_size={self.kernel_size} is too large for images of {by(size)} pixels")
        return size

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """sigma: (N,) float32, pixels."""
        return {"sigma": torch.empty(num_images).uniform_(*self.sigma, generator=generator)}

    def apply(self, images: Tensor, sigma: Tensor) -> Tensor:
        reach = self.kernel_size // 2
        place = torch.arange(-reach, reach + 1, device=images.device)
        weights = (-(place**2) / (2 * sigma[:, None] ** 2)).exp()
        weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)[:, None, :, None]
        padded = F.pad(images, [reach] * 4, mode="reflect").flatten(0, 1)[None]  # (1, B * C, H, W), one filter each
        blurred = F.conv2d(padded, weights, groups=len(weights))
        return F.conv2d(blurred, weights.mT, groups=len(weights)).view(images.shape)
