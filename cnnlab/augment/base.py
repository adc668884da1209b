"""What every augmentation offers, and the order in which they are applied."""

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
    """What every augmentation offers.

    It may have `of_images(generator, index, epoch)` besides, for what depends on the image and on the epoch: as `draw`,
    for the images index (N,) int64, with a generator that is the same in every epoch.

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
        tasks: what targets are mixed, see cnnlab.config.shape.Shape.
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
    """Height and width of what the network sees. Raises: UserError for images that one cannot be applied to."""
    for name, augmentation in augmentations.items():
        try:
            size = augmentation.output_size(size)
        except ValueError as error:
            raise UserError(f"aug={name}: {error}.") from error
    return size
