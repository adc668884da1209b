"""Augmentations of batches of images, each in two halves: drawing, and applying what was drawn.

`draw` asks a generator for the parameters of all images of an epoch (cnnlab.data.plan). `apply` is a pure function of
images and parameters and runs on the device. An augmentation belongs to a stage, and stages run in this order,
however the options are listed:

    Crop    takes pixels out of the data set: uint8
    Mixer   combines images and labels after normalisation, each image with the one before it in the batch
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


class Augmentation(ABC):
    """What every augmentation offers."""

    @abstractmethod
    def draw(self, generator: torch.Generator, num_images: int, image_size: int) -> dict[str, Tensor]:
        """Random parameters for all images of an epoch: tensors of num_images rows, named as `apply` takes them."""

    def output_size(self, image_size: int) -> int:
        """Height and width of what comes out, in pixels."""
        return image_size


class Crop(Augmentation):
    """Takes the pixels of a batch out of the data set."""

    apply: Callable[..., Tensor]  # images (N, H, W, C) uint8, index (B,) int64, **drawn -> (B, h, w, C) uint8

    @abstractmethod
    def center(self, images: Tensor) -> Tensor:
        """What is seen at evaluation: (B, H, W, C) -> (B, h, w, C)."""


class Mixer(Augmentation):
    """Combines every image and its label with a partner's."""

    # images, partners (B, C, H, W); labels, partner_labels (B, num_classes); **drawn -> images, labels
    apply: Callable[..., tuple[Tensor, Tensor]]


class CropFlip(Crop):
    """Random square crops and left-right mirror images; the centre crop at evaluation.

    Args:
        size: height and width of the crop, in pixels.
        padding: pixels put around the image first.
        padding_mode: what they are: "reflect", the image mirrored at its edge, or "constant", black. Black borders
            shift the statistics of batch normalisation away from those of the whole images seen at evaluation.
        flip_probability: how often an image is mirrored.
    """

    def __init__(self, size: int = 28, padding: int = 0, padding_mode: str = "reflect", flip_probability: float = 0.5):
        if size < 1 or padding < 0 or not 0 <= flip_probability <= 1:
            raise ValueError(
                f"size={size}, padding={padding}, flip_probability={flip_probability}: a crop takes size >= 1, "
                f"padding >= 0 and a flip_probability from 0 to 1"
            )
        if padding_mode not in ("reflect", "constant"):
            raise ValueError(f"padding_mode={padding_mode}: choose reflect or constant")
        self.size, self.padding, self.padding_mode = size, padding, padding_mode
        self.flip_probability = flip_probability

    def draw(self, generator: torch.Generator, num_images: int, image_size: int) -> dict[str, Tensor]:
        """top, left: (N,) int64, the crop's corner in the padded image; flip: (N,) bool."""
        places = image_size + 2 * self.padding - self.size + 1
        return {
            "top": torch.randint(places, (num_images,), generator=generator),
            "left": torch.randint(places, (num_images,), generator=generator),
            "flip": torch.rand(num_images, generator=generator) < self.flip_probability,
        }

    def output_size(self, image_size: int) -> int:
        return self.size

    def apply(self, images: Tensor, index: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """Crops of the images `index`, in one gather.

        images: (N, H, W, C) uint8; index, top, left: (B,) int64; flip: (B,) bool -> (B, size, size, C) uint8.
        """
        _, height, width, _ = images.shape
        along = torch.arange(self.size, device=images.device)
        rows = (top - self.padding)[:, None] + along  # (B, size)
        columns = (left - self.padding)[:, None] + torch.where(flip[:, None], self.size - 1 - along, along)
        if not self.padding:
            return _gather(images, index, rows, columns)
        if self.padding_mode == "reflect":
            return _gather(images, index, _reflect(rows, height), _reflect(columns, width))
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        return _gather(images, index, rows.clamp(0, height - 1), columns.clamp(0, width - 1)) * inside[..., None]

    def center(self, images: Tensor) -> Tensor:
        """The centre of each image: (B, H, W, C) -> (B, size, size, C); a smaller image stays as it is."""
        margin = images.shape[1] - self.size
        if margin <= 0:
            return images
        first = round(margin / 2)
        return images[:, first : first + self.size, first : first + self.size]


def _reflect(place: Tensor, size: int) -> Tensor:
    """Places outside 0 ... size-1 mirrored at the edge pixel: -1 -> 1, size -> size - 2."""
    return (size - 1 - (size - 1 - place.abs()).abs()).clamp_(0)


def _gather(images: Tensor, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images (N, H, W, C); index (B,); rows (B, h); columns (B, w) -> (B, h, w, C)."""
    _, height, width, channels = images.shape
    pixel = ((index * height)[:, None] + rows)[:, :, None] * width + columns[:, None, :]  # (B, h, w)
    return images.view(-1, channels).index_select(0, pixel.flatten()).view(*pixel.shape, channels)


class CutMix(Mixer):
    """A random box of every image is replaced by that of the image before it; labels mix by area.

    Source: S. Yun et al., CutMix, ICCV 2019, with a box for every image; torchvision draws one for a whole batch.

    Args:
        alpha: the images' shares are drawn from the distribution Beta(alpha, alpha).
    """

    def __init__(self, alpha: float = 1.0):
        if alpha <= 0:
            raise ValueError(f"alpha={alpha}: Beta(alpha, alpha) takes alpha > 0")
        self.alpha = alpha

    def draw(self, generator: torch.Generator, num_images: int, image_size: int) -> dict[str, Tensor]:
        """box: (N, 4) int64, left, top, right, bottom, with right and bottom outside."""
        share = _beta(self.alpha, num_images, generator)
        half = (0.5 * (1 - share).sqrt() * image_size).long()
        x = torch.randint(image_size, (num_images,), generator=generator)
        y = torch.randint(image_size, (num_images,), generator=generator)
        return {"box": torch.stack((x - half, y - half, x + half, y + half), dim=1).clamp(0, image_size)}

    def apply(
        self, images: Tensor, labels: Tensor, partners: Tensor, partner_labels: Tensor, box: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images with a box of their partners, and their mixed labels.

        images, partners: (B, C, H, W); labels, partner_labels: (B, num_classes) float; box: (B, 4) int64 -> the same
        shapes and dtypes.
        """
        height, width = images.shape[2:]
        left, top, right, bottom = box[:, :, None].unbind(1)  # (B, 1) each
        x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
        inside = ((y >= top) & (y < bottom))[:, None, :, None] & ((x >= left) & (x < right))[:, None, None, :]
        area = ((right - left) * (bottom - top)) / (height * width)  # (B, 1) float
        return torch.where(inside, partners, images), torch.lerp(labels, partner_labels, area)


def _beta(alpha: float, num: int, generator: torch.Generator) -> Tensor:
    """num draws from Beta(alpha, alpha), (num,) float64, by way of two gamma variates."""
    if alpha == 1:
        return torch.rand(num, generator=generator, dtype=torch.float64)
    concentration = torch.full((2, num), alpha, dtype=torch.float64)
    first, second = torch._standard_gamma(concentration, generator=generator)
    return first / (first + second)


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(B,) int64 -> (B, num_classes) float32."""
    return F.one_hot(labels, num_classes).float()


STAGES = (Crop, Mixer)


def in_order(augmentations: dict[str, Augmentation]) -> dict[str, Augmentation]:
    """Sorted by stage, and by name within one."""

    def stage(augmentation: Augmentation) -> int:
        return next(number for number, kind in enumerate(STAGES) if isinstance(augmentation, kind))

    return dict(sorted(augmentations.items(), key=lambda item: (stage(item[1]), item[0])))
