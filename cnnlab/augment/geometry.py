"""Rotation, translation, scaling and shearing, in one bilinear interpolation."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.augment.base import Augmentation, Size, Stage
from cnnlab.augment.crop import checked_padding


class Affine(Augmentation):
    """Rotation, translation, scaling and shearing about the center.

    Args:
        degrees: the angle is uniform between -degrees and degrees.
        translate: along each axis, by whole pixels, uniform up to this share of the image's size.
        scale: smallest and largest scale factor.
        shear: the angles along each axis are uniform between -shear and shear degrees.
        padding_mode: beyond the edge: "reflect", the image mirrored, or "constant", black.
    """

    stage = Stage.GEOMETRY

    def __init__(
        self,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
        shear: float = 0.0,
        padding_mode: str = "reflect",
    ):
        if not (degrees >= 0 and 0 <= translate <= 1 and 0 < scale[0] <= scale[1] and 0 <= shear < 90):
            raise ValueError(
                f"degrees={degrees}, translate={translate}, scale={list(scale)}, shear={shear}: needs degrees >= 0, "
                f"0 <= translate <= 1, 0 < scale[0] <= scale[1] and 0 <= shear < 90"
            )
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear
        self.padding_mode = checked_padding(padding_mode)

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """theta: (N, 2, 3) float32, maps positions in the output to positions in the input, both in [-1, 1]."""

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(num_images, dtype=torch.float64).uniform_(low, high, generator=generator)

        down, across = (self.translate * length for length in size)
        return {
            "theta": inverse_matrix(
                angle=uniform(-self.degrees, self.degrees),
                x=uniform(-across, across).round(),
                y=uniform(-down, down).round(),
                scale=uniform(*self.scale),
                shear_x=uniform(-self.shear, self.shear),
                shear_y=uniform(-self.shear, self.shear),
                size=size,
            )
        }

    def apply(self, images: Tensor, theta: Tensor) -> Tensor:
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        mode = {"reflect": "reflection", "constant": "zeros"}[self.padding_mode]
        return F.grid_sample(images, grid, mode="bilinear", padding_mode=mode, align_corners=False)


def inverse_matrix(
    angle: Tensor, x: Tensor, y: Tensor, scale: Tensor, shear_x: Tensor, shear_y: Tensor, size: Size
) -> Tensor:
    """The matrices (N, 2, 3) float32 for F.affine_grid, with the parameters as torchvision defines them.

    angle, shear_x, shear_y: (N,) degrees; x, y: (N,) pixels; scale: (N,) factors; size: of the images.
    """
    height, width = size
    angle, shear_x, shear_y = (degrees * math.pi / 180 for degrees in (angle, shear_x, shear_y))
    # forward: scale * rotate by (angle - shear_y) * shear along x * rotate by shear_y
    a = (angle - shear_y).cos() / shear_y.cos()
    b = -(angle - shear_y).cos() * shear_x.tan() / shear_y.cos() - angle.sin()
    c = (angle - shear_y).sin() / shear_y.cos()
    d = -(angle - shear_y).sin() * shear_x.tan() / shear_y.cos() + angle.cos()
    # F.affine_grid's coordinates go from -1 to 1 along each axis, whatever its length
    inverse = torch.stack((d, -b * (height / width), -c * (width / height), a), 1).view(-1, 2, 2)
    inverse = inverse / scale[:, None, None]
    moved = torch.stack((x / width, y / height), 1)[:, :, None] * 2
    return torch.cat((inverse, -inverse @ moved), 2).float()
