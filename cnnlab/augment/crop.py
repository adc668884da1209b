"""Random crops and flips, in one gather from the data set."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cnnlab.augment.base import Crop, Size, by


class CropFlip(Crop):
    """Random crops and left-right flips; the center crop at evaluation.

    Args:
        size: height and width of the crop, in pixels: one number, or two.
        padding: pixels added around the image before cropping.
        padding_mode: "reflect", mirrored at the edge, or "constant", black. Black borders shift the statistics of batch
            normalization away from those of the whole images seen at evaluation.
        flip_probability: probability that an image is flipped.
        alternating_flips: whether each image is flipped in every other epoch, starting with a random half of them,
            instead of at random, so that two epochs show it both ways (K. Jordan, 2024).
    """

    def __init__(
        self,
        size: int | Sequence[int] = 28,
        padding: int = 0,
        padding_mode: str = "reflect",
        flip_probability: float = 0.5,
        alternating_flips: bool = False,
    ):
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1 or padding < 0 or not 0 <= flip_probability <= 1:
            raise ValueError(
                f"size={size}, padding={padding}, flip_probability={flip_probability}: a crop needs size >= 1, "
                f"padding >= 0 and a flip_probability from 0 to 1"
            )
        self.size, self.padding, self.padding_mode = (height, width), padding, checked_padding(padding_mode)
        if alternating_flips and flip_probability != 0.5:
            raise ValueError(f"alternating_flips flips half of the images, but flip_probability={flip_probability}")
        self.flip_probability, self.alternating_flips = flip_probability, alternating_flips

    def draw(self, generator: torch.Generator, num_images: int, size: Size) -> dict[str, Tensor]:
        """top, left: (N,) int64, corner of the crop in the padded image; flip: (N,) bool."""
        down, across = (whole + 2 * self.padding - part + 1 for whole, part in zip(size, self.size, strict=True))
        return {
            "top": torch.randint(down, (num_images,), generator=generator),
            "left": torch.randint(across, (num_images,), generator=generator),
            "flip": torch.rand(num_images, generator=generator) < self.flip_probability,
        }

    def of_images(self, generator: torch.Generator, index: Tensor, epoch: int) -> dict[str, Tensor]:
        """flip: (N,) bool, if flips alternate."""
        if not self.alternating_flips:
            return {}
        first = torch.rand(int(index.max()) + 1, generator=generator) < 0.5  # of all images in the first epoch
        return {"flip": first[index] ^ bool(epoch % 2)}

    def output_size(self, size: Size) -> Size:
        if self.size[0] > size[0] or self.size[1] > size[1]:  # padding is for training; evaluation has none
            raise ValueError(f"a crop of {by(self.size)} pixels does not fit into images of {by(size)}")
        if self.padding_mode == "reflect" and self.padding >= min(size):
            raise ValueError(
                f"padding={self.padding} is too large to reflect images of {by(size)} pixels: use less, or "
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
        """The center of each image: (B, H, W, C) -> (B, h, w, C)."""
        top, left = (round((whole - part) / 2) for whole, part in zip(images.shape[1:3], self.size, strict=True))
        return images[:, top : top + self.size[0], left : left + self.size[1]]


def checked_padding(mode: str) -> str:
    if mode not in ("reflect", "constant"):
        raise ValueError(f"padding_mode={mode} is neither reflect nor constant")
    return mode


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions outside 0 ... size-1 at the edge pixel: -1 -> 1, size -> size - 2."""
    return (size - 1 - (size - 1 - position.abs()).abs()).clamp_(0)


def _gather(images: Tensor, index: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images (N, H, W, C); index (B,); rows (B, h); columns (B, w) -> (B, h, w, C)."""
    _, height, width, channels = images.shape
    pixel = ((index * height)[:, None] + rows)[:, :, None] * width + columns[:, None, :]  # (B, h, w)
    return images.view(-1, channels).index_select(0, pixel.flatten()).view(*pixel.shape, channels)
