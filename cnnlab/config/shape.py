"""What is known about a data set before it is read. Does not import NumPy or torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

MAX_SIDE = 4096  # pixels


@dataclass(frozen=True)
class Shape:
    """The facts about the data on which networks and other options depend. Option files refer to them as data.NAME.

    Attributes:
        num_classes: number of classes, of labels, or of target values: the network's outputs.
        channels, height, width: of the images.
        task: "multiclass", one class per image; "multilabel", any number of labels; or "regression", numbers.
    """

    num_classes: int
    channels: int
    height: int
    width: int
    task: str = "multiclass"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def image_size(self) -> int | list[int]:
        """The height of a square image; otherwise [height, width]."""
        return self.height if self.height == self.width else [*self.size]

    def resized(self, size: tuple[int, int]) -> Shape:
        return replace(self, height=size[0], width=size[1])

    def facts(self) -> dict[str, Any]:
        """The facts by the names that option files use after `data.`."""
        return {**asdict(self), "image_size": self.image_size}

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"


def sides(image_size: object) -> tuple[int, int]:
    """Height and width from one number for both or from [height, width]. Raises: ValueError."""
    if not is_size(image_size):
        raise ValueError(f"image_size={image_size} is neither a whole number from 1 to {MAX_SIDE} nor [height,width]")
    height, width = image_size if isinstance(image_size, list | tuple) else (image_size, image_size)
    return height, width


def fits(size: int | Sequence[int], height: int, width: int) -> bool:
    """Whether a size, one number or [height, width], is not larger than an image."""
    first, second = (size, size) if isinstance(size, int) else size
    return first <= height and second <= width


def is_size(value: object) -> bool:
    """One whole number from 1 to 4096, or two of them: [height,width]."""
    both = value if isinstance(value, list | tuple) else [value, value]
    return len(both) == 2 and all(type(side) is int and 1 <= side <= MAX_SIDE for side in both)
