"""Normalization: pixels in, float32 out, with statistics of the training images only.

Statistics are buffers: they move with the module, are part of the checkpoint, and are used in training, validation,
test and prediction. They are computed on images as evaluation sees them: whole, or cropped to the center.
"""

import hashlib
import io
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnlab.runs.cache import cached
from cnnlab.runs.log import log
from cnnlab.runs.provenance import code_digest


class Normalization(nn.Module):
    """The interface of a normalization. Its attributes are part of the key of cached statistics.

    Attributes:
        once: whether it is so expensive that it is applied to the whole data set once, if nothing random precedes it.
    """

    once = False

    @abstractmethod
    def fit(self, pixels: Tensor) -> None:
        """Compute the statistics of training images, (N, C, H, W) uint8: only `shape` and `split` may be used."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8, or float32 in [0, 255] -> (B, C, H, W) float32, channels_last."""

    @abstractmethod
    def inverse(self, images: Tensor) -> Tensor:
        """Normalized images -> pixels, float32 in [0, 255]."""

    def restore(self, statistics: Mapping[str, Tensor]) -> None:
        """Use these statistics, from `state_dict`."""
        for name, values in statistics.items():
            self.register_buffer(name, values)


def fit_once(norm: Normalization, pixels: Callable[[], Tensor], fingerprint: str, folder: Path) -> None:
    """Compute the statistics, or read them from the cache.

    pixels: returns the images, (N, C, H, W) uint8. fingerprint: identifies the images. folder: of the cache. Statistics
    are those of the same class with the same attributes, in the same code.
    """
    arguments = sorted((name, value) for name, value in vars(norm).items() if name[0] != "_")
    code = code_digest(frozenset({type(norm).__module__}))
    key = hashlib.sha256(f"{type(norm).__qualname__} {arguments} {fingerprint} {code}".encode())

    def fitted() -> bytes:
        norm.fit(pixels())
        content = io.BytesIO()
        torch.save(norm.state_dict(), content)
        return content.getvalue()

    path = folder / f"{key.hexdigest()}.statistics"
    content = cached(path, fitted, lambda content, file: file.write(content), lambda file: file.read())
    norm.restore(torch.load(io.BytesIO(content), weights_only=True))


class Unchanged(Normalization):
    """Pixels scaled to [0, 1]."""

    def fit(self, pixels: Tensor) -> None:
        """There are no statistics."""

    def forward(self, images: Tensor) -> Tensor:
        return (images / 255).contiguous(memory_format=torch.channels_last)

    def inverse(self, images: Tensor) -> Tensor:
        return images * 255


class Scaler(Normalization):
    """(pixel - shift) / scale, with a shift and a scale for every channel or for every pixel position.

    Args:
        per: "channel", or "pixel" for every position of every channel.
        eps: the smallest scale, for pixels in [0, 1]. Where it is smaller, as images do not vary there, it is 1.
    """

    shift: Tensor  # (C, 1, 1) or (C, H, W), of pixels in [0, 255]
    scale: Tensor

    def __init__(self, per: str = "channel", eps: float = 1e-5):
        super().__init__()
        self.per, self.eps = _checked(per), eps

    @abstractmethod
    def measure(self, histogram: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale, (F,) float64, from histograms (F, 256) float64."""

    def fit(self, pixels: Tensor) -> None:
        """Exact, from histograms in float64."""
        _, channels, height, width = pixels.shape
        shift, scale = self.measure(histograms(pixels, self.per).double())
        shape = (1, 1, channels) if self.per == "channel" else (height, width, channels)
        self.register_buffer("shift", shift.view(shape).permute(2, 0, 1).float())
        self.register_buffer("scale", scale.where(scale >= 255 * self.eps, 255).view(shape).permute(2, 0, 1).float())

    def forward(self, images: Tensor) -> Tensor:
        num, channels, height, width = images.shape
        # a line of pixels is one row: broadcasting over the innermost dimension, three channels, is four times slower
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

    def measure(self, histogram: Tensor) -> tuple[Tensor, Tensor]:
        share = histogram / histogram.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64)
        mean = share @ levels
        return mean, (share * (levels - mean[:, None]).square()).sum(1).sqrt()


class MinMax(Scaler):
    """The smallest value of the training images becomes 0, the largest 1."""

    def measure(self, histogram: Tensor) -> tuple[Tensor, Tensor]:
        occurs = histogram > 0
        smallest, largest = occurs.int().argmax(1), 255 - occurs.flip(1).int().argmax(1)
        return smallest.double(), (largest - smallest).double()


class Robust(Scaler):
    """Median 0 and interquartile range 1, which are robust to outliers."""

    def measure(self, histogram: Tensor) -> tuple[Tensor, Tensor]:
        lower, median, upper = (_quantile(histogram, share) for share in (0.25, 0.5, 0.75))
        return median, upper - lower


def histograms(pixels: Tensor, per: str) -> Tensor:
    """The histogram of every channel or pixel position: (N, C, H, W) uint8 -> (C, 256) or (H * W * C, 256) int64."""
    num_features = pixels.shape[1:].numel()
    feature = torch.arange(num_features)
    if per == "channel":
        num_features = pixels.shape[1]
        feature %= num_features
    counts = torch.zeros(num_features * 256, dtype=torch.int64)
    for chunk in map(_rows, pixels.split(max(1, 2**20 // pixels.shape[1:].numel()))):  # 341 of CIFAR's images
        counts += torch.bincount((chunk + 256 * feature).flatten(), minlength=len(counts))
    return counts.view(num_features, 256)


def _quantile(histogram: Tensor, share: float) -> Tensor:
    """A quantile, linearly interpolated, of histograms: (F, 256) -> (F,)."""
    reached = histogram.cumsum(1)
    place = share * (reached[:, -1:] - 1)
    below, above = (torch.searchsorted(reached, rank, right=True).double() for rank in (place.floor(), place.ceil()))
    return torch.lerp(below, above, place - place.floor()).squeeze(1)


class Whitening(Normalization):
    """Mean 0 and uncorrelated components of variance 1, from the eigenvectors of the training images' covariance.

    Args:
        per: "pixel": all values of an image are one vector; "channel": the channels of each pixel are.
        num_components: number of components to keep, those with the largest variance; None: all.
        eps: added to every variance, for pixels in [0, 1], before dividing by its square root, so that components that
            are mostly noise are not amplified.
    """

    mean: Tensor  # (D,) of pixels in [0, 255], in the order (H, W, C)
    variance: Tensor  # (K,) of the components, in descending order
    components: Tensor  # (D, K) eigenvectors
    matrix: Tensor  # whitened = vectors @ matrix + bias
    bias: Tensor
    once = True

    def __init__(self, per: str = "pixel", num_components: int | None = None, eps: float = 1e-3):
        super().__init__()
        self.per, self.num_components, self.eps = _checked(per), num_components, eps

    def fit(self, pixels: Tensor) -> None:
        """In float64; 3,072 dimensions of 45,000 images take 13 s on two cores."""
        num, channels, height, width = pixels.shape
        size = pixels.shape[1:].numel() if self.per == "pixel" else channels
        if self.num_components is not None and self.num_components > size:
            raise ValueError(f"num_components={self.num_components} is more than the {size} values of a vector")
        if size > 1000:
            log.info(f"{type(self).__name__}: computing the covariance of {size:,} values over {num:,} images")
        total, products = (torch.zeros(*shape, dtype=torch.float64) for shape in ((size,), (size, size)))
        for chunk in pixels.split(1000):  # sums of integers below 2**53: exact for any size of chunk
            rows = self._vectors(chunk).double()
            total += rows.sum(0)
            products += rows.T @ rows
        num = num if self.per == "pixel" else num * height * width
        mean = total / num
        variance, vectors = torch.linalg.eigh(products / num - mean.outer(mean))
        variance, vectors = variance.flip(0)[: self.num_components], vectors.flip(1)[:, : self.num_components]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))  # fixes the sign: this value is positive
        statistics = {"mean": mean, "variance": variance.clamp(min=0), "components": vectors * largest.sign()}
        self.restore({name: values.float() for name, values in statistics.items()})

    def restore(self, statistics: Mapping[str, Tensor]) -> None:
        super().restore(statistics)
        scaled = self.components / (self.variance + self.eps * 255**2).sqrt()
        self.register_buffer("matrix", self._matrix(scaled), persistent=False)
        self.register_buffer("bias", -self.mean @ self.matrix, persistent=False)

    @abstractmethod
    def _matrix(self, scaled: Tensor) -> Tensor:
        """The matrix by which centered vectors are multiplied, from the scaled components (D, K)."""

    def _vectors(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H * W * C), or (B * H * W, C) if every pixel is a vector."""
        return _rows(images) if self.per == "pixel" else images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])

    def _whitened(self, images: Tensor) -> Tensor:
        return torch.addmm(self.bias, self._vectors(images).float(), self.matrix)

    def _pixels(self, components: Tensor, shape: torch.Size) -> Tensor:
        """Whitened components (B, K) or (B * H * W, K) -> pixels (B, C, H, W)."""
        num, channels, height, width = shape
        rows = (components * (self.variance + self.eps * 255**2).sqrt()) @ self.components.T + self.mean
        return rows.view(num, height, width, channels).permute(0, 3, 1, 2)


class ZCA(Whitening):
    """Whitening, then rotation back: the whitened images that are closest to the original ones."""

    def _matrix(self, scaled: Tensor) -> Tensor:
        few = 2 * len(self.variance) < len(self.mean)  # two thin products are cheaper than one square one
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
    """Whitened components in place of the pixels, by descending variance, padded with zeros.

    With per=channel they are channels. With per=pixel they fill the image in the order (C, H, W), as with torchvision's
    LinearTransformation: neighboring values are unrelated.
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
    """(B, C, H, W) -> (B, H * W * C), the order in memory."""
    return images.permute(0, 2, 3, 1).flatten(1)


def _checked(per: str) -> str:
    if per not in ("channel", "pixel"):
        raise ValueError(f"per={per} is neither channel nor pixel")
    return per
