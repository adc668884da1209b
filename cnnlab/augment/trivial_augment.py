"""TrivialAugment: one change of geometry or color per image, of random strength.

Source: S. Müller and F. Hutter, TrivialAugment, ICCV 2021, with the changes and strengths of torchvision's
TrivialAugmentWide. All 14 changes are computed for the whole batch, and each image keeps the one that was drawn for it.
So shapes never depend on the draw, and nothing waits for the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.augment.base import Augmentation, Size, Stage
from cnnlab.augment.color import blend, constant, gray
from cnnlab.augment.geometry import inverse_matrix

NUM_STEPS = 31  # of strength
RANGES = {  # from the weakest to the strongest; 0 for changes without a strength
    "identity": (0.0, 0.0),
    "shear_x": (0.0, 0.99),
    "shear_y": (0.0, 0.99),
    "translate_x": (0.0, 32.0),  # pixels
    "translate_y": (0.0, 32.0),
    "rotate": (0.0, 135.0),  # degrees
    "brightness": (0.0, 0.99),
    "color": (0.0, 0.99),
    "contrast": (0.0, 0.99),
    "sharpness": (0.0, 0.99),
    "posterize": (8.0, 2.0),  # bits to keep
    "solarize": (1.0, 0.0),  # threshold, as a fraction of the range, from which on pixels are inverted
    "autocontrast": (0.0, 0.0),
    "equalize": (0.0, 0.0),
}
CHANGES = tuple(RANGES)
SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast", "sharpness")


class TrivialAugment(Augmentation):
    """One of 14 changes per image, with a strength of 0 to 30; pixel values are rounded down to whole numbers."""

    stage = Stage.COLOR

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """change: (N,) int64, index into CHANGES; strength: (N,) float32; theta: (N, 2, 3) float32, as for Affine."""
        change = torch.randint(len(CHANGES), (num_images,), generator=generator)
        step = torch.randint(NUM_STEPS, (num_images,), generator=generator)
        sign = torch.randint(2, (num_images,), generator=generator) * 2 - 1
        return self.parameters(change, step, sign, size)

    @staticmethod
    def parameters(change: Tensor, step: Tensor, sign: Tensor, size: Size) -> dict[str, Tensor]:
        """The result of `draw` for given changes, steps of strength and signs, (N,) int64 each."""
        tables = {name: torch.linspace(*ends, NUM_STEPS) for name, ends in RANGES.items()}  # float32, as torchvision's
        tables["posterize"] = tables["posterize"].round()
        strength = torch.stack(list(tables.values()))[change, step].double()
        strength *= torch.where(torch.tensor([name in SIGNED for name in CHANGES])[change], sign, 1)

        def of(name: str) -> Tensor:
            return torch.where(change == CHANGES.index(name), strength, 0.0)

        down, across = (length / 2 for length in size)  # a shear leaves the upper left corner where it is
        theta = inverse_matrix(
            angle=-of("rotate"),
            x=of("translate_x").trunc() - of("shear_x") * down,
            y=of("translate_y").trunc() - of("shear_y") * across,
            scale=torch.ones_like(strength),
            shear_x=of("shear_x").atan().rad2deg(),
            shear_y=of("shear_y").atan().rad2deg(),
            size=size,
        )
        return {"change": change, "strength": strength.float(), "theta": theta}

    def apply(self, images: Tensor, change: Tensor, strength: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = F.grid_sample(images.round(), grid, mode="nearest", padding_mode="zeros", align_corners=False)

        def where(name: str, changed: Tensor) -> Tensor:
            return changed.floor().where((change == CHANGES.index(name))[:, None, None, None], images)

        factor, level = 1 + strength, strength[:, None, None, None]
        images = where("brightness", blend(images, torch.zeros_like(images), factor))
        images = where("color", blend(images, gray(images).floor(), factor))
        images = where("contrast", blend(images, gray(images).floor().mean((1, 2, 3), keepdim=True), factor))
        images = where("sharpness", blend(images, smooth(images), factor))
        step = 2 ** (8 - level.clamp(2, 8))
        images = where("posterize", (images / step).floor() * step)
        images = where("solarize", torch.where(images >= 255 * level, 255 - images, images))
        images = where("autocontrast", stretch(images))
        return where("equalize", equalize(images))


def smooth(images: Tensor) -> Tensor:
    """The mean of the 3x3 neighborhood with weight 5 for the center; pixels at the edge stay."""
    if min(images.shape[2:]) < 3:
        return images
    channels = images.shape[1]
    kernel = constant((1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0), images.device).view(3, 3) / 13
    middle = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
    smoothed = images.clone()
    smoothed[:, :, 1:-1, 1:-1].copy_(middle.round())
    return smoothed


def stretch(images: Tensor) -> Tensor:
    """Stretch the values of every channel to the full range."""
    darkest, brightest = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - darkest) * (255 / (brightest - darkest))
    return stretched.clamp(0, 255).where(brightest > darkest, images)


def equalize(images: Tensor) -> Tensor:
    """Equalize the histogram of every channel, as Pillow's ImageOps.equalize does: whole levels in and out."""
    levels = images.flatten(2).long()  # (B, C, H * W)
    histogram = torch.zeros(*levels.shape[:2], 256, device=images.device, dtype=torch.int64)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = levels.amax(2, keepdim=True)
    num_last = histogram.gather(2, brightest)
    step = (levels.shape[2] - num_last) // 255
    table = ((histogram.cumsum(2) - histogram + step // 2) // step.clamp(min=1)).clamp(0, 255)
    return table.gather(2, levels).view(images.shape).float().where(step[..., None] > 0, images)
