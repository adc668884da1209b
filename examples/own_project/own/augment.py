"""A crop and a mixer of a project. `draw` makes the random numbers of a whole epoch; `apply` is a pure function."""

import torch
from torch import Tensor

from cnnlab.augment import Crop, Mixer, Size


class Rows(Crop):
    """Crops a random band of adjacent rows; at evaluation, the middle one.

    Args:
        num_rows: height of the band.
    """

    def __init__(self, num_rows: int = 20):
        self.num_rows = num_rows

    def output_size(self, size: Size) -> Size:
        if self.num_rows > size[0]:
            raise ValueError(f"num_rows={self.num_rows} is more than the {size[0]} rows of the images")
        return self.num_rows, size[1]

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """top: (N,) int64."""
        return {"top": torch.randint(size[0] - self.num_rows + 1, (num_images,), generator=generator)}

    def apply(self, images: Tensor, index: Tensor, top: Tensor) -> Tensor:
        rows = top[:, None] + torch.arange(self.num_rows, device=images.device)  # (B, num_rows)
        return images[index[:, None], rows]

    def center(self, images: Tensor) -> Tensor:
        top = (images.shape[1] - self.num_rows) // 2
        return images[:, top : top + self.num_rows]


class Halves(Mixer):
    """Replaces the left part of every image, and a corresponding share of its target, by those of another image."""

    tasks = ("multiclass", "multilabel")

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """share: (N,) float32."""
        return {"share": torch.rand(num_images, generator=generator) / 2}

    def apply(
        self, images: Tensor, labels: Tensor, partners: Tensor, partner_labels: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        column = torch.arange(images.shape[3], device=images.device)
        left = column < (share * images.shape[3])[:, None]  # (B, W)
        mixed = torch.where(left[:, None, None, :], partners, images)
        return mixed, torch.lerp(labels, partner_labels, share[:, None])
