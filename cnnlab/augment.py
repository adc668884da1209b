"""Augmentations of batches of images, each in two halves: drawing, and applying what was drawn.

`draw` asks a generator for the parameters of all images of an epoch (cnnlab.data.plan). `apply` is a pure function of
images and parameters and runs on the device. However the options are listed, they are applied in this order, and
within one stage by name:

    CROP       takes pixels out of the data set
    GEOMETRY   moves pixels
    COLOR      changes their values
    QUALITY    what a camera does to them: blur, noise
               (normalisation)
    ERASE      removes parts
    MIX        combines images and labels, each image with the one before it in the batch
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height and width, in pixels


class Stage(IntEnum):
    CROP = 0
    GEOMETRY = 1
    COLOR = 2
    QUALITY = 3
    ERASE = 4
    MIX = 5


class Augmentation(ABC):
    """What every augmentation offers.

    `apply` takes and gives, but for crops and mixers, images (B, C, H, W) float32: pixels in [0, 255] before
    normalisation. Its other arguments are those of the same name in what `draw` gave, with B rows.
    """

    stage: ClassVar[Stage]
    apply: Callable[..., Any]

    @abstractmethod
    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """Random parameters for all images of an epoch: tensors of num_images rows, named as `apply` takes them.

        size: of the images that come in.
        """

    def output_size(self, size: Size) -> Size:
        """Height and width of what comes out, from those of what comes in.

        Raises: ValueError for images that it cannot be applied to.
        """
        return size


class Crop(Augmentation):
    """Takes the pixels of a batch out of the data set."""

    stage = Stage.CROP
    apply: Callable[..., Tensor]  # images (N, H, W, C) uint8, index (B,) int64, **drawn -> (B, h, w, C) uint8

    @abstractmethod
    def center(self, images: Tensor) -> Tensor:
        """What is seen at evaluation: (B, H, W, C) -> (B, h, w, C)."""


class Mixer(Augmentation):
    """Combines every image and its target with a partner's.

    Attributes:
        tasks: what targets are mixed, see cnnlab.data.images.Shape.
    """

    stage = Stage.MIX
    tasks: ClassVar[tuple[str, ...]] = ("multiclass", "multilabel")
    # images, partners (B, C, H, W); labels, partner_labels (B, num_classes); **drawn -> images, labels
    apply: Callable[..., tuple[Tensor, Tensor]]


def in_order(augmentations: dict[str, Augmentation]) -> dict[str, Augmentation]:
    """Sorted by stage, and by name within one."""
    return dict(sorted(augmentations.items(), key=lambda item: (item[1].stage, item[0])))


class CropFlip(Crop):
    """Random crops and left-right mirror images; the centre crop at evaluation.

    Args:
        size: height and width of the crop, in pixels: one number, or two.
        padding: pixels put around the image first.
        padding_mode: what they are: "reflect", the image mirrored at its edge, or "constant", black. Black borders
            shift the statistics of batch normalisation away from those of the whole images seen at evaluation.
        flip_probability: how often an image is mirrored.
    """

    def __init__(
        self,
        size: int | Sequence[int] = 28,
        padding: int = 0,
        padding_mode: str = "reflect",
        flip_probability: float = 0.5,
    ):
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1 or padding < 0 or not 0 <= flip_probability <= 1:
            raise ValueError(
                f"size={size}, padding={padding}, flip_probability={flip_probability}: a crop takes size >= 1, "
                f"padding >= 0 and a flip_probability from 0 to 1"
            )
        self.size, self.padding, self.padding_mode = (height, width), padding, _known_padding(padding_mode)
        self.flip_probability = flip_probability

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """top, left: (N,) int64, the crop's corner in the padded image; flip: (N,) bool."""
        down, across = (whole + 2 * self.padding - part + 1 for whole, part in zip(size, self.size, strict=True))
        return {
            "top": torch.randint(down, (num_images,), generator=generator),
            "left": torch.randint(across, (num_images,), generator=generator),
            "flip": torch.rand(num_images, generator=generator) < self.flip_probability,
        }

    def output_size(self, size: Size) -> Size:
        if self.size[0] > size[0] or self.size[1] > size[1]:  # padding is for training; evaluation sees the image alone
            raise ValueError(f"a crop of {_by(self.size)} pixels does not fit into images of {_by(size)}")
        if self.padding_mode == "reflect" and self.padding >= min(size):
            raise ValueError(
                f"images of {_by(size)} pixels cannot be reflected into {self.padding} pixels of padding: use less, or "
                f"padding_mode=constant"
            )
        return self.size

    def apply(self, images: Tensor, index: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """Crops of the images `index`, in one gather.

        images: (N, H, W, C) uint8; index, top, left: (B,) int64; flip: (B,) bool -> (B, h, w, C) uint8.
        """
        _, height, width, _ = images.shape
        down, across = (torch.arange(length, device=images.device) for length in self.size)
        rows = (top - self.padding)[:, None] + down  # (B, h)
        columns = (left - self.padding)[:, None] + torch.where(flip[:, None], self.size[1] - 1 - across, across)
        if not self.padding:
            return _gather(images, index, rows, columns)
        if self.padding_mode == "reflect":
            return _gather(images, index, _reflect(rows, height), _reflect(columns, width))
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        return _gather(images, index, rows.clamp(0, height - 1), columns.clamp(0, width - 1)) * inside[..., None]

    def center(self, images: Tensor) -> Tensor:
        """The centre of each image: (B, H, W, C) -> (B, h, w, C)."""
        top, left = (round((whole - part) / 2) for whole, part in zip(images.shape[1:3], self.size, strict=True))
        return images[:, top : top + self.size[0], left : left + self.size[1]]


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _known_padding(mode: str) -> str:
    if mode not in ("reflect", "constant"):
        raise ValueError(f"padding_mode={mode}: choose reflect or constant")
    return mode


def _reflect(place: Tensor, size: int) -> Tensor:
    """Places outside 0 ... size-1 mirrored at the edge pixel: -1 -> 1, size -> size - 2."""
    return (size - 1 - (size - 1 - place.abs()).abs()).clamp_(0)


def _gather(images: Tensor, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images (N, H, W, C); index (B,); rows (B, h); columns (B, w) -> (B, h, w, C)."""
    _, height, width, channels = images.shape
    pixel = ((index * height)[:, None] + rows)[:, :, None] * width + columns[:, None, :]  # (B, h, w)
    return images.view(-1, channels).index_select(0, pixel.flatten()).view(*pixel.shape, channels)


class Affine(Augmentation):
    """Turning, moving, scaling and shearing about the centre, in one bilinear interpolation.

    Args:
        degrees: the angle is uniform between -degrees and degrees.
        translate: along each axis, moved by a whole number of pixels, uniform up to this share of the image's size.
        scale: smallest and largest factor of the size.
        shear: the angles along each axis are uniform between -shear and shear degrees.
        padding_mode: what is seen beyond the edge: "reflect", the image mirrored, or "constant", black.
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
                f"degrees={degrees}, translate={translate}, scale={list(scale)}, shear={shear}: takes degrees >= 0, "
                f"translate from 0 to 1, scale from small to large, both positive, and shear from 0 to below 90"
            )
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear
        self.padding_mode = _known_padding(padding_mode)

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """theta: (N, 2, 3) float32, from places in the new image to places in the old one, both in [-1, 1]."""

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
    """The matrices (N, 2, 3) float32 that F.affine_grid takes, with torchvision's meaning of the parameters.

    angle, shear_x, shear_y: (N,) degrees; x, y: (N,) pixels; scale: (N,) factors; size: of the images.
    """
    height, width = size
    angle, shear_x, shear_y = (degrees * math.pi / 180 for degrees in (angle, shear_x, shear_y))
    # forwards: scale * turn by (angle - shear_y) * shear along x * turn by shear_y, as torchvision defines it
    a = (angle - shear_y).cos() / shear_y.cos()
    b = -(angle - shear_y).cos() * shear_x.tan() / shear_y.cos() - angle.sin()
    c = (angle - shear_y).sin() / shear_y.cos()
    d = -(angle - shear_y).sin() * shear_x.tan() / shear_y.cos() + angle.cos()
    # F.affine_grid counts along each axis from -1 to 1, whatever its length
    inverse = torch.stack((d, -b * (height / width), -c * (width / height), a), 1).view(-1, 2, 2)
    inverse = inverse / scale[:, None, None]
    moved = torch.stack((x / width, y / height), 1)[:, :, None] * 2
    return torch.cat((inverse, -inverse @ moved), 2).float()


class Color(Augmentation):
    """Brightness, contrast and saturation, in this order, each times a factor of its own.

    Args:
        brightness, contrast, saturation: the factor is uniform between 1 - x, not below 0, and 1 + x.
    """

    stage = Stage.COLOR

    def __init__(self, brightness: float = 0.3, contrast: float = 0.3, saturation: float = 0.3):
        if min(brightness, contrast, saturation) < 0:
            raise ValueError(
                f"brightness={brightness}, contrast={contrast}, saturation={saturation}: takes numbers from 0"
            )
        self.ranges = {"brightness": brightness, "contrast": contrast, "saturation": saturation}

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """brightness, contrast, saturation: (N,) float32 factors."""
        return {
            name: torch.empty(num_images).uniform_(max(0.0, 1 - reach), 1 + reach, generator=generator)
            for name, reach in self.ranges.items()
        }

    def apply(self, images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
        images = blend(images, torch.zeros_like(images), brightness)
        images = blend(images, grey(images).mean((1, 2, 3), keepdim=True), contrast)
        return blend(images, grey(images), saturation)


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Away from another image (factor above 1) or towards it (below): factor (B,); within [0, 255]."""
    return torch.lerp(other, images, factor[:, None, None, None]).clamp_(0, 255)


def grey(images: Tensor) -> Tensor:
    """Luma, ITU-R BT.601: (B, 3, H, W) -> (B, 1, H, W). Images of other than three channels: their mean."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * constant((0.2989, 0.587, 0.114), images.device)[:, None, None]).sum(1, keepdim=True)


@functools.lru_cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device, moved there once: a CUDA graph cannot record that."""
    return torch.tensor(values, device=device)


class Noise(Augmentation):
    """Gaussian noise on every value, cut off at black and white.

    The noise is a fixed table of a million normal numbers, and what is drawn is where each image starts to read it: so
    a plan stays small, and the device draws nothing.

    Args:
        std: standard deviation, as a fraction of the full range.
    """

    stage = Stage.QUALITY

    def __init__(self, std: float = 0.05):
        if std < 0:
            raise ValueError(f"std={std}: takes a number from 0")
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
    """Convolution with a Gaussian of each image's own width; the image is mirrored at its edge.

    Args:
        kernel_size: odd height and width of the filter, in pixels.
        sigma: smallest and largest standard deviation, in pixels.
    """

    stage = Stage.QUALITY

    def __init__(self, kernel_size: int = 5, sigma: Sequence[float] = (0.1, 1.0)):
        if kernel_size < 1 or kernel_size % 2 == 0 or not 0 < sigma[0] <= sigma[1]:
            raise ValueError(
                f"kernel_size={kernel_size}, sigma={list(sigma)}: takes an odd kernel_size, and sigma from small to "
                f"large, both positive"
            )
        self.kernel_size, self.sigma = kernel_size, sigma

    def output_size(self, size: Size) -> Size:
        if self.kernel_size // 2 >= min(size):
            raise ValueError(f"kernel_size={self.kernel_size} reaches over images of {_by(size)} pixels")
        return size

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """sigma: (N,) float32, pixels."""
        return {"sigma": torch.empty(num_images).uniform_(*self.sigma, generator=generator)}

    def apply(self, images: Tensor, sigma: Tensor) -> Tensor:
        reach = self.kernel_size // 2
        place = torch.arange(-reach, reach + 1, device=images.device)
        weights = (-(place**2) / (2 * sigma[:, None] ** 2)).exp()
        weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)[:, None, :, None]
        padded = F.pad(images, [reach] * 4, mode="reflect").flatten(0, 1)[None]  # (1, B * C, H, W), a filter each
        blurred = F.conv2d(padded, weights, groups=len(weights))
        return F.conv2d(blurred, weights.mT, groups=len(weights)).view(images.shape)


class Cutout(Augmentation):
    """A square of every image is set to 0, after normalisation: with norm=standard to the mean colour.

    Source: T. DeVries and G. Taylor, Improved Regularization of CNNs with Cutout, 2017.

    Args:
        size: height and width of the square, in pixels; its centre is anywhere, so a part may lie outside.
    """

    stage = Stage.ERASE

    def __init__(self, size: int = 8):
        if size < 1:
            raise ValueError(f"size={size}: takes a whole number from 1")
        self.size = size

    def output_size(self, size: Size) -> Size:
        if self.size >= 2 * max(size):
            raise ValueError(
                f"size={self.size} erases all of an image of {_by(size)} pixels, wherever it lies: use less than "
                f"{2 * max(size)}"
            )
        return size

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """box: (N, 4) int64, left, top, right, bottom, with right and bottom outside."""
        height, width = size
        axes = [(width, 2)] if height == width else [(width, 1), (height, 1)]  # of a square, both in one draw
        drawn = [torch.randint(length, (num_images, num), generator=generator) for length, num in axes]
        first = torch.cat(drawn, 1) - self.size // 2
        return {"box": _within(torch.cat((first, first + self.size), 1), size)}

    def apply(self, images: Tensor, box: Tensor) -> Tensor:
        return torch.where(inside(box, *images.shape[2:]), 0, images)  # channels_last, which masked_fill loses


def _within(box: Tensor, size: Size) -> Tensor:
    """Boxes as far as they lie in the image: (N, 4) int64, left, top, right, bottom."""
    height, width = size
    return box.clamp(min=0).minimum(torch.tensor([width, height, width, height]))


def inside(box: Tensor, height: int, width: int) -> Tensor:
    """Which pixels the boxes hold: (B, 4) int64, left, top, right, bottom -> (B, 1, height, width) bool."""
    left, top, right, bottom = box[:, :, None].unbind(1)  # (B, 1) each
    x, y = torch.arange(width, device=box.device), torch.arange(height, device=box.device)
    return ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]


class CutMix(Mixer):
    """A random box of every image is replaced by that of the image before it; labels mix by area.

    Source: S. Yun et al., CutMix, ICCV 2019, with a box for every image; torchvision draws one for a whole batch.

    Args:
        alpha: the images' shares are drawn from the distribution Beta(alpha, alpha).
    """

    def __init__(self, alpha: float = 1.0):
        self.alpha = _positive(alpha)

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """box: (N, 4) int64, left, top, right, bottom, with right and bottom outside."""
        share = _beta(self.alpha, num_images, generator)
        height, width = size
        half = 0.5 * (1 - share).sqrt()
        along, down = (half * width).long(), (half * height).long()
        x = torch.randint(width, (num_images,), generator=generator)
        y = torch.randint(height, (num_images,), generator=generator)
        return {"box": _within(torch.stack((x - along, y - down, x + along, y + down), dim=1), size)}

    def apply(
        self, images: Tensor, labels: Tensor, partners: Tensor, partner_labels: Tensor, box: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images with a box of their partners, and their mixed labels.

        images, partners: (B, C, H, W); labels, partner_labels: (B, num_classes) float; box: (B, 4) int64 -> the same
        shapes and dtypes.
        """
        height, width = images.shape[2:]
        left, top, right, bottom = box[:, :, None].unbind(1)  # (B, 1) each
        area = ((right - left) * (bottom - top)) / (height * width)  # (B, 1) float
        mixed = torch.where(inside(box, height, width), partners, images)
        return mixed, torch.lerp(labels, partner_labels, area)


class MixUp(Mixer):
    """The weighted mean of every image and the one before it, and of their labels.

    Source: H. Zhang et al., mixup, ICLR 2018, with a weight for every image; torchvision draws one for a whole batch.

    Args:
        alpha: the images' weights are drawn from the distribution Beta(alpha, alpha).
    """

    def __init__(self, alpha: float = 1.0):
        self.alpha = _positive(alpha)

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """share: (N,) float32, the partner's."""
        return {"share": _beta(self.alpha, num_images, generator).float()}

    def apply(
        self, images: Tensor, labels: Tensor, partners: Tensor, partner_labels: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Shapes and dtypes as for CutMix."""
        mixed = torch.lerp(images, partners, share[:, None, None, None])
        return mixed, torch.lerp(labels, partner_labels, share[:, None])


def _positive(alpha: float) -> float:
    if alpha <= 0:
        raise ValueError(f"alpha={alpha}: Beta(alpha, alpha) takes alpha > 0")
    return alpha


def _beta(alpha: float, num: int, generator: torch.Generator) -> Tensor:
    """num draws from Beta(alpha, alpha), (num,) float64, by way of two gamma variates."""
    if alpha == 1:
        return torch.rand(num, generator=generator, dtype=torch.float64)
    concentration = torch.full((2, num), alpha, dtype=torch.float64)
    first, second = torch._standard_gamma(concentration, generator=generator)
    coin = torch.rand(num, generator=generator, dtype=torch.float64).round()
    return torch.where(first == second, coin, first / (first + second))  # both too small for a number: one end or other


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(B,) int64 -> (B, num_classes) float32."""
    return F.one_hot(labels, num_classes).float()
