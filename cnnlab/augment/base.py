"""The interface of augmentations, and the order in which they are applied."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from cnnlab.config.options import UserError

Size = tuple[int, int]  # height and width, in pixels


class Stage(IntEnum):
    CROP = 0
    GEOMETRY = 1
    COLOR = 2
    QUALITY = 3
    ERASE = 4
    MIX = 5


class Augmentation(ABC):
    """The interface of an augmentation.

    `apply` takes and returns images (B, C, H, W) float32, except for crops and mixers; before normalization they are
    pixels in [0, 255]. Its other arguments are what `draw` returned under their names, with B rows.

    An augmentation may also have `of_images(generator, index, epoch)`, like `draw` for parameters that depend on the
    image and the epoch: index (N,) int64 are the images, and the generator is the same in every epoch.
    """

    stage: ClassVar[Stage]
    apply: Callable[..., Any]

    @abstractmethod
    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """Random parameters for all images of an epoch: tensors of num_images rows, named as the arguments of `apply`.

        size: of the input images.
        """

    def output_size(self, size: Size) -> Size:
        """Size of the output for an input size. Raises: ValueError if it cannot be applied to such images."""
        return size


class Crop(Augmentation):
    """Takes the pixels of a batch from the data set."""

    stage = Stage.CROP
    apply: Callable[..., Tensor]  # images (N, H, W, C) uint8, index (B,) int64, **drawn -> (B, h, w, C) uint8

    @abstractmethod
    def center(self, images: Tensor) -> Tensor:
        """The crop at evaluation: (B, H, W, C) -> (B, h, w, C)."""


def center_digest(crop: Crop, size: Size, channels: int) -> str:
    """Identifies the part of an image that a crop takes at evaluation, by what it takes from a random one."""
    noise = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, *size, channels), generator=noise, dtype=torch.uint8)
    return hashlib.sha256(crop.center(image).contiguous().numpy().tobytes()).hexdigest()


class Mixer(Augmentation):
    """Combines every image and its target with those of a partner.

    Attributes:
        tasks: for which targets it is defined, see cnnlab.config.shape.Shape.
    """

    stage = Stage.MIX
    tasks: ClassVar[tuple[str, ...]] = ("multiclass", "multilabel")
    # images, partners (B, C, H, W); labels, partner_labels (B, num_classes); **drawn -> images, labels
    apply: Callable[..., tuple[Tensor, Tensor]]


def in_order(augmentations: dict[str, Augmentation]) -> dict[str, Augmentation]:
    """Sorted by stage, and by name within one."""
    return dict(sorted(augmentations.items(), key=lambda item: (item[1].stage, item[0])))


def by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def output_size(augmentations: Mapping[str, Augmentation], size: Size) -> Size:
    """Size of the network's input. Raises: UserError if an augmentation cannot be applied to such images."""
    for name, augmentation in augmentations.items():
        try:
            size = augmentation.output_size(size)
        except ValueError as error:
            raise UserError(f"aug={name}: {error}.") from error
    return size
