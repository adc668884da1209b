"""Normalisation: pixels in, float32 out, with statistics of the training images alone.

Statistics are buffers: they move with the module, are part of the checkpoint, and are used alike in training,
validation, test and prediction. They are measured on images as evaluation sees them: whole, or cropped to the centre.
"""

import hashlib
import inspect
import io
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.runs.cache import cached
from cnnlab.runs.log import log


class Normalization(nn.Module):
    """What every normalisation offers. Its `extra_repr` names its arguments: statistics are kept under them.

    Attributes:
        once: whether it costs so much that it is applied to the whole data set once, where nothing random precedes it.
    """

    once = False

    @abstractmethod
    def fit(self, pixels: Tensor) -> None:
        """Measure the training images, (N, C, H, W) uint8: a tensor, or what has its shape and its `split` alone."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8, or float32 in [0, 255] -> (B, C, H, W) float32, channels_last."""

    @abstractmethod
    def inverse(self, images: Tensor) -> Tensor:
        """Normalised images -> pixels, float32 in [0, 255]."""

    def restore(self, statistics: Mapping[str, Tensor]) -> None:
        """Take over what was measured before, as `state_dict` gave it."""
        for name, values in statistics.items():
            self.register_buffer(name, values)


def fit_once(norm: Normalization, pixels: Callable[[], Tensor], fingerprint: str, folder: Path) -> None:
    """Measure the images, or read what was measured on the same ones before.

    pixels: gives them, (N, C, H, W) uint8. fingerprint: what decides them. folder: where statistics are kept.
    """
    code = b"".join(Path(inspect.getfile(source)).read_bytes() for source in (Normalization, type(norm)))
    key = hashlib.sha256(f"{norm} {fingerprint} ".encode() + code)

    def fitted() -> bytes:
        norm.fit(pixels())
        content = io.BytesIO()
        torch.save(norm.state_dict(), content)
        return content.getvalue()

    path = folder / f"{key.hexdigest()}.statistics"
    content = cached(path, fitted, lambda content, file: file.write(content), lambda file: file.read())
    norm.restore(torch.load(io.BytesIO(content), weights_only=True))


class Unchanged(Normalization):
    """Pixels scaled to [0, 1], no more."""

    def fit(self, pixels: Tensor) -> None:
        """There is nothing to learn."""

    def forward(self, images: Tensor) -> Tensor:
        return (images / 255).contiguous(memory_format=torch.channels_last)

    def inverse(self, images: Tensor) -> Tensor:
        return images * 255


class Scaler(Normalization):
    """(pixel - shift) / scale, with a shift and a scale for every channel or for every pixel position.

    Args:
        per: "channel", or "pixel": every position of every channel by itself.
        eps: the smallest scale, for pixels in [0, 1]: what does not vary is not divided by zero.
    """

    shift: Tensor  # (C, 1, 1) or (C, H, W), of pixels in [0, 255]
    scale: Tensor

    def __init__(self, per: str = "channel", eps: float = 1e-5):
        super().__init__()
        self.per, self.eps = _known(per), eps

    def extra_repr(self) -> str:
        return f"per={self.per}, eps={self.eps}"

    @abstractmethod
    def measure(self, frequency: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, (F,) float64, from how often each of the 256 values occurs, (F, 256) float64."""

    def fit(self, pixels: Tensor) -> None:
        """Exact: in float64, from how often each value occurs."""
        _, channels, height, width = pixels.shape
        shift, scale = self.measure(frequencies(pixels, self.per).double())
        shape = (1, 1, channels) if self.per == "channel" else (height, width, channels)
        self.register_buffer("shift", shift.view(shape).permute(2, 0, 1).float())
        self.register_buffer("scale", scale.clamp(min=255 * self.eps).view(shape).permute(2, 0, 1).float())

    def forward(self, images: Tensor) -> Tensor:
        num, channels, height, width = images.shape
        # a line of pixels is one row: broadcasting over three channels, the innermost ones, costs four times as much
        rows = images.permute(0, 2, 3, 1).reshape(num, height, width * channels)
        shift, scale = (
            values.expand(channels, height, width).permute(1, 2, 0).reshape(height, width * channels)
            for values in (self.shift, self.scale)
        )
        return (rows - shift).div_(scale).view(num, height, width, channels).permute(0, 3, 1, 2)

    def inverse(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


class Standard(Scaler):
    """Mean 0 and standard deviation 1."""

    def measure(self, frequency: Tensor) -> tuple[Tensor, Tensor]:
        share = frequency / frequency.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64)
        mean = share @ levels
        return mean, (share * (levels - mean[:, None]).square()).sum(1).sqrt()


class MinMax(Scaler):
    """The smallest value of the training images becomes 0, the largest 1."""

    def measure(self, frequency: Tensor) -> tuple[Tensor, Tensor]:
        occurs = frequency > 0
        smallest, largest = occurs.int().argmax(1), 255 - occurs.flip(1).int().argmax(1)
        return smallest.double(), (largest - smallest).double()


class Robust(Scaler):
    """Median 0 and interquartile range 1: a few outliers change neither."""

    def measure(self, frequency: Tensor) -> tuple[Tensor, Tensor]:
        lower, median, upper = (_quantile(frequency, share) for share in (0.25, 0.5, 0.75))
        return median, upper - lower


def frequencies(pixels: Tensor, per: str) -> Tensor:
    """How often each value occurs in every channel or at every pixel position.

    pixels: (N, C, H, W) uint8 -> (C, 256) or (H * W * C, 256) int64.
    """
    num_features = pixels.shape[1:].numel()
    feature = torch.arange(num_features)
    if per == "channel":
        num_features = pixels.shape[1]
        feature %= num_features
    counts = torch.zeros(num_features * 256, dtype=torch.int64)
    for chunk in map(_rows, pixels.split(max(1, 3_072_000 // pixels.shape[1:].numel()))):  # 1,000 of CIFAR's images
        counts += torch.bincount((chunk + 256 * feature).flatten(), minlength=len(counts))
    return counts.view(num_features, 256)


def _quantile(frequency: Tensor, share: float) -> Tensor:
    """The value below which a share of the others lies, between two values interpolated: (F, 256) -> (F,)."""
    reached = frequency.cumsum(1)
    place = share * (reached[:, -1:] - 1)
    below, above = (torch.searchsorted(reached, rank, right=True).double() for rank in (place.floor(), place.ceil()))
    return torch.lerp(below, above, place - place.floor()).squeeze(1)


class Whitening(Normalization):
    """Mean 0 and uncorrelated components of variance 1, by the eigenvectors of the training images' covariance.

    Args:
        per: "pixel": all values of an image are one vector; "channel": the channels of a pixel are.
        num_components: keep so many components, those of the largest variance; null: all.
        eps: added to every variance, for pixels in [0, 1], before dividing by its square root: what hardly varies,
            noise for the most part, is not blown up.
    """

    mean: Tensor  # (D,) of pixels in [0, 255], in the order (H, W, C)
    variance: Tensor  # (K,) of the components, falling
    components: Tensor  # (D, K) eigenvectors
    matrix: Tensor  # what vectors are multiplied by, and
    bias: Tensor  # what is added then
    once = True

    def __init__(self, per: str = "pixel", num_components: int | None = None, eps: float = 1e-3):
        super().__init__()
        self.per, self.num_components, self.eps = _known(per), num_components, eps

    def extra_repr(self) -> str:
        return f"per={self.per}, num_components={self.num_components}, eps={self.eps}"

    def fit(self, pixels: Tensor) -> None:
        """In float64; 3,072 dimensions of 45,000 images take 13 s on two cores."""
        num, channels, height, width = pixels.shape
        size = pixels.shape[1:].numel() if self.per == "pixel" else channels
        if self.num_components is not None and self.num_components > size:
            raise ValueError(f"num_components={self.num_components} is more than the {size} that there are")
        if size > 1000:
            log.info(f"{type(self).__name__}: the covariance of {size:,} values in {num:,} images")
        total, products = (torch.zeros(*shape, dtype=torch.float64) for shape in ((size,), (size, size)))
        for chunk in pixels.split(1000):  # whole numbers below 2**53: exact, whatever the chunks
            rows = self._vectors(chunk).double()
            total += rows.sum(0)
            products += rows.T @ rows
        num = num if self.per == "pixel" else num * height * width
        mean = total / num
        variance, vectors = torch.linalg.eigh(products / num - mean.outer(mean))
        variance, vectors = variance.flip(0)[: self.num_components], vectors.flip(1)[:, : self.num_components]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # the sign is free: this value is positive
        statistics = {"mean": mean, "variance": variance.clamp(min=0), "components": vectors * largest.sign()}
        self.restore({name: values.float() for name, values in statistics.items()})

    def restore(self, statistics: Mapping[str, Tensor]) -> None:
        super().restore(statistics)
        scaled = self.components / (self.variance + self.eps * 255**2).sqrt()
        self.register_buffer("matrix", self._matrix(scaled), persistent=False)
        self.register_buffer("bias", -self.mean @ self.matrix, persistent=False)

    @abstractmethod
    def _matrix(self, scaled: Tensor) -> Tensor:
        """What centred vectors are multiplied by, from the scaled components (D, K)."""

    def _vectors(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H * W * C), or (B * H * W, C) where every pixel is a vector."""
        return _rows(images) if self.per == "pixel" else images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])

    def _whitened(self, images: Tensor) -> Tensor:
        return torch.addmm(self.bias, self._vectors(images).float(), self.matrix)

    def _pixels(self, components: Tensor, shape: torch.Size) -> Tensor:
        """Whitened components (B, K) or (B * H * W, K) -> pixels (B, C, H, W)."""
        num, channels, height, width = shape
        rows = (components * (self.variance + self.eps * 255**2).sqrt()) @ self.components.T + self.mean
        return rows.view(num, height, width, channels).permute(0, 3, 1, 2)


class ZCA(Whitening):
    """Whitened, and turned back: of all whitened images the closest to the original ones, still pictures."""

    def _matrix(self, scaled: Tensor) -> Tensor:
        few = 2 * len(self.variance) < len(self.mean)  # two thin products cost less than one square one
        return scaled if few else scaled @ self.components.T

    def forward(self, images: Tensor) -> Tensor:
        num, channels, height, width = images.shape
        rows = self._whitened(images)
        if self.matrix.shape[1] < len(self.mean):
            rows = rows @ self.components.T
        return rows.view(num, height, width, channels).permute(0, 3, 1, 2)

    def inverse(self, images: Tensor) -> Tensor:
        return self._pixels(self._vectors(images) @ self.components, images.shape)


class PCA(Whitening):
    """Whitened components, in the places of the pixels, largest variance first; the places without one are zero.

    With per=channel they are three pictures. With per=pixel they take the places of the values in the order
    (C, H, W), as with torchvision's LinearTransformation: neighbours mean nothing any more.
    """

    def _matrix(self, scaled: Tensor) -> Tensor:
        return scaled

    def forward(self, images: Tensor) -> Tensor:
        num, channels, height, width = images.shape
        components = self._whitened(images)
        components = F.pad(components, (0, len(self.mean) - components.shape[1]))
        if self.per == "channel":
            return components.view(num, height, width, channels).permute(0, 3, 1, 2)
        return components.view(num, channels, height, width).contiguous(memory_format=torch.channels_last)

    def inverse(self, images: Tensor) -> Tensor:
        components = images.flatten(1) if self.per == "pixel" else self._vectors(images)
        return self._pixels(components[:, : len(self.variance)], images.shape)


def _rows(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W * C), the order in which they lie in memory."""
    return images.permute(0, 2, 3, 1).flatten(1)


def _known(per: str) -> str:
    if per not in ("channel", "pixel"):
        raise ValueError(f"per={per}: choose channel or pixel")
    return per
