"""The network of the lab report and its baselines. Plain torch.

A network maps normalized images to logits. It may have a method `fit(images)`, which is called with training images
before the training starts.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Sequential):
    """Three times convolution and pooling, then two fully connected layers (lab report, question 10).

    Every convolution keeps the size of its input; every pooling halves it. Pooling comes before ReLU: the two commute
    exactly, forwards and backwards, and in this order ReLU processes a quarter of the values.

    (B, in_channels, height, width) float -> logits (B, num_classes).

    If fully convolutional, fc4 and fc5 are equivalent convolutions (question 6), and larger images give a map of
    logits, (B, num_classes, h, w): one for every window of image_size, with a stride of 2**len(channels) pixels.
    Weights of either form load into the other.

    Args:
        num_classes, in_channels, image_size: determined by the data; image_size is one number, or height and width.
        channels: filters of each convolution.
        kernel_size: odd height and width of every filter.
        hidden: neurons of the first fully connected layer, fc4.
        batch_norm: whether batch normalization follows every convolution.
        dropout: probability that a neuron of fc4 is zeroed in training.
        fully_convolutional: whether fc4 and fc5 are convolutions.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int | Sequence[int] = 32,
        channels: Sequence[int] = (32, 64, 64),
        kernel_size: int = 5,
        hidden: int = 1000,
        batch_norm: bool = False,
        dropout: float = 0.0,
        fully_convolutional: bool = False,
    ):
        super().__init__()
        height, width = pair(image_size)
        if min(height, width) >> len(channels) < 1:
            raise ValueError(f"images of {height}x{width} pixels cannot be halved {len(channels)} times")
        for layer, out_channels in enumerate(channels, start=1):
            self.add_module(f"conv{layer}", nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2))
            if batch_norm:
                self.add_module(f"norm{layer}", nn.BatchNorm2d(out_channels))
            self.add_module(f"pool{layer}", nn.MaxPool2d(2))
            self.add_module(f"relu{layer}", nn.ReLU(inplace=True))
            in_channels, height, width = out_channels, height // 2, width // 2
        if fully_convolutional:
            self.add_module("fc4", nn.Conv2d(in_channels, hidden, (height, width)))
        else:
            self.add_module("flatten", nn.Flatten())
            self.add_module("fc4", nn.Linear(in_channels * height * width, hidden))
        self.add_module("relu4", nn.ReLU(inplace=True))
        self.add_module("dropout", nn.Dropout(dropout))
        fc5 = nn.Conv2d(hidden, num_classes, 1) if fully_convolutional else nn.Linear(hidden, num_classes)
        self.add_module("fc5", fc5)
        self.register_load_state_dict_pre_hook(_reshape_weights)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits.flatten(1) if logits.shape[2:] == (1, 1) else logits


def pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def _reshape_weights(network: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the weights of fc4 and fc5 that are loaded the shape that they have in this network."""
    own = network.state_dict(prefix=prefix)
    for name in (f"{prefix}fc4.weight", f"{prefix}fc5.weight"):
        if name in state_dict and state_dict[name].numel() == own[name].numel():
            state_dict[name] = state_dict[name].reshape(own[name].shape)


class Linear(nn.Sequential):
    """One layer from all pixels to the logits: the baseline without convolutions and hidden neurons.

    (B, in_channels, height, width) float -> logits (B, num_classes).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int | Sequence[int] = 32):
        super().__init__()
        height, width = pair(image_size)
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", nn.Linear(in_channels * height * width, num_classes))


class VisualWords(nn.Module):
    """The share of an image's patches that are nearest to each word: (B, C, H, W) float -> (B, num_words).

    The words are the k-means centers of whitened patches of training images (A. Coates, H. Lee and A. Ng, 2011).

    Args:
        num_words: size of the dictionary.
        in_channels: of the images.
        patch_size: height and width of a patch, in pixels.
        stride: pixels from one patch to the next.
    """

    whitening: Tensor  # (D, D), where D = in_channels * patch_size**2
    words: Tensor  # (num_words, D), of whitened patches

    def __init__(self, num_words: int, in_channels: int, patch_size: int, stride: int):
        super().__init__()
        self.num_words, self.patch_size, self.stride = num_words, patch_size, stride
        num_values = in_channels * patch_size**2
        self.register_buffer("whitening", torch.zeros(num_values, num_values))
        self.register_buffer("mean", torch.zeros(num_values))
        self.register_buffer("words", torch.zeros(num_words, num_values))

    def fit(self, images: Tensor, num_patches: int = 100_000, eps: float = 0.1) -> None:
        """Learn the words: normalized training images (N, C, H, W) float32."""
        per_image = math.ceil(num_patches / len(images))
        chosen = []
        for chunk in images.split(500):
            patches = self.patches(chunk)  # (B, P, D)
            places = torch.rand(patches.shape[:2], device=images.device).topk(min(per_image, patches.shape[1])).indices
            chosen.append(patches.gather(1, places[:, :, None].expand(-1, -1, patches.shape[2])).flatten(0, 1))
        samples = torch.cat(chosen)[:num_patches]
        self.mean = samples.mean(0)
        variance, vectors = torch.linalg.eigh((samples - self.mean).T.cov(correction=0).double())
        self.whitening = ((vectors / (variance.clamp(min=0) + eps).sqrt()) @ vectors.T).float()
        self.words = k_means((samples - self.mean) @ self.whitening, self.num_words)

    def patches(self, images: Tensor) -> Tensor:
        """All patches, each with mean 0 and variance 1: (B, C, H, W) -> (B, P, C * patch_size**2)."""
        patches = F.unfold(images.contiguous(), self.patch_size, stride=self.stride).mT
        centered = patches - patches.mean(2, keepdim=True)
        return centered / (centered.square().mean(2, keepdim=True) + 1e-2).sqrt()

    def multiply_adds(self, height: int, width: int) -> int:
        """Multiply-adds for one image: every patch is compared with every word."""
        num_patches = ((height - self.patch_size) // self.stride + 1) * ((width - self.patch_size) // self.stride + 1)
        return num_patches * self.words.numel()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 would confuse similar words
            patches = self.patches(images.float())
            # |x - w|^2 = |x|^2 - 2 x w + |w|^2, where x = (patch - mean) whitening
            projection = 2 * self.whitening @ self.words.T
            offset = self.words.square().sum(1) + self.mean @ projection
            nearest = (patches @ projection - offset).argmax(2)  # (B, P)
        counts = torch.zeros(images.shape[0], self.num_words, device=images.device)
        return counts.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=torch.float32)) / nearest.shape[1]


class BagOfWords(nn.Module):
    """A bag of visual words with a linear support vector machine (lab report, question 12).

    Every patch of an image counts for the nearest of `num_words` words. The standardized counts are classified by
    num_classes * (num_words + 1) learned weights.

    (B, in_channels, height, width) float -> logits (B, num_classes).

    Args:
        num_classes, in_channels: determined by the data.
        num_words, patch_size, stride: see VisualWords.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, num_words: int = 1000, patch_size: int = 6, stride: int = 2
    ):
        super().__init__()
        self.words = VisualWords(num_words, in_channels, patch_size, stride)
        self.standard = nn.BatchNorm1d(num_words, affine=False)
        self.svm = nn.Linear(num_words, num_classes)

    def fit(self, images: Tensor) -> None:
        """Learn the words: normalized training images (N, C, H, W) float32."""
        self.words.fit(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.svm(self.standard(self.words(images)))


def k_means(samples: Tensor, num_centers: int, num_iterations: int = 20) -> Tensor:
    """Lloyd's algorithm, starting from random samples: (N, D) -> (num_centers, D). A center without samples stays."""
    centers = samples[torch.randperm(len(samples))[:num_centers].to(samples.device)]
    for _ in range(num_iterations):
        half_norms = centers.square().sum(1) / 2
        nearest = torch.cat([(chunk @ centers.T - half_norms).argmax(1) for chunk in samples.split(10_000)])
        sums = torch.zeros_like(centers).index_add_(0, nearest, samples)
        sizes = torch.bincount(nearest, minlength=num_centers)[:, None]
        centers = torch.where(sizes > 0, sums / sizes.clamp(min=1), centers)
    return centers


@contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a block, and restore the mode of each layer after it."""
    training = {layer: layer.training for layer in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for layer, before in training.items():
            layer.training = before


def mean_of_views(network: Any, images: Tensor, flips: bool, shifts: int) -> Tensor:
    """The outputs (B, K) of a network for images (B, C, H, W), averaged over views of each image.

    flips: also its mirror image. shifts: also the image shifted by so many pixels up and left, and down and right, and
    continued by reflection.
    """
    views = [images]
    if shifts:
        padded = F.pad(images, (shifts,) * 4, mode="reflect")
        views += [padded[:, :, 2 * shifts :, 2 * shifts :], padded[:, :, : -2 * shifts, : -2 * shifts]]
    if flips:
        views += [view.flip(3) for view in views]
    outputs = network(views[0])
    for view in views[1:]:
        outputs = outputs + network(view)
    return outputs / len(views) if len(views) > 1 else outputs


def first_filters(network: nn.Module) -> Tensor | None:
    """The filters of the first convolution as images, each with its full contrast: (N, k, k, 1 or 3) uint8.

    None if there is no convolution, or its input has neither one nor three channels.
    """
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.in_channels not in (1, 3):
        return None
    weights = first.weight.detach().float().permute(0, 2, 3, 1)
    low, high = weights.amin((1, 2, 3), keepdim=True), weights.amax((1, 2, 3), keepdim=True)
    return ((weights - low) / (high - low).clamp(min=1e-12) * 255).round().byte().cpu()
