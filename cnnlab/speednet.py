"""A network that needs few epochs on small images, after K. Jordan's airbench94 (2024). Plain torch.

Its first layer is fixed: 2x2 filters that whiten patches of the training images, and their negatives. Three groups of
two 3x3 convolutions follow, which are initialized as the identity. Their batch norm has no trained scales, and its
biases have a much higher learning rate.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Whitening(nn.Conv2d):
    """A convolution that maps patches to uncorrelated components of variance 1, and to their negatives.

    (B, in_channels, H, W) float -> (B, 2 * in_channels * patch_size**2, H - patch_size + 1, W - patch_size + 1).

    Args:
        in_channels: of the images.
        patch_size: height and width of a patch, in pixels.
        eps: added to the variance of each component.
    """

    def __init__(self, in_channels: int, patch_size: int, eps: float):
        super().__init__(in_channels, 2 * in_channels * patch_size**2, patch_size)
        self.eps = eps
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Learn the filters: normalized training images (N, C, H, W) float32."""
        size, count = self.kernel_size[0], 0
        second = torch.zeros(self.in_channels * size**2, self.in_channels * size**2, dtype=torch.float64)
        for chunk in images.split(1000):
            patches = F.unfold(chunk.contiguous(), size).mT.flatten(0, 1)  # (B * P, C * size**2)
            second += (patches.mT @ patches).double().cpu()
            count += len(patches)
        variance, vectors = torch.linalg.eigh(second / count)
        filters = (vectors / (variance + self.eps).sqrt()).mT.flip(0).unflatten(1, (-1, size, size))  # largest first
        self.weight.copy_(torch.cat((filters, -filters)))
        assert self.bias is not None
        self.bias.zero_()


class Convolution(nn.Sequential):
    """A 3x3 convolution initialized as the identity, optional pooling, batch norm without a scale, and GELU."""

    def __init__(self, in_channels: int, channels: int, momentum: float, pool: bool):
        super().__init__()
        convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        nn.init.dirac_(convolution.weight[: min(channels, in_channels)].detach())  # further filters stay random
        self.add_module("conv", convolution)
        if pool:
            self.add_module("pool", nn.MaxPool2d(2))
        norm = nn.BatchNorm2d(channels, momentum=momentum)
        norm.weight.requires_grad_(False)
        self.add_module("norm", norm)
        self.add_module("gelu", nn.GELU())


class SpeedNet(nn.Sequential):
    """Whitening, three groups of two convolutions, global max pooling, one linear layer.

    (B, in_channels, H, W) float -> logits (B, num_classes). Height and width must be at least
    (patch_size - 1) + 2**len(widths).

    Args:
        num_classes, in_channels: determined by the data.
        widths: filters in every group; each group halves height and width.
        patch_size: height and width of the whitening filters.
        eps: added to the variance of each whitened component.
        momentum: of the running statistics of batch norm.
        bias_lr: learning rate of the biases of batch norm, as a multiple of optim.lr.
        scale: of the logits.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 256, 256),
        patch_size: int = 2,
        eps: float = 5e-4,
        momentum: float = 0.4,
        bias_lr: float = 64.0,
        scale: float = 1 / 9,
    ):
        super().__init__()
        self.bias_lr, self.scale = bias_lr, scale
        self.whitening = Whitening(in_channels, patch_size, eps)
        self.add_module("gelu", nn.GELU())
        channels = self.whitening.out_channels
        for number, width in enumerate(widths, start=1):
            self.add_module(f"conv{number}a", Convolution(channels, width, momentum, pool=True))
            self.add_module(f"conv{number}b", Convolution(width, width, momentum, pool=False))
            channels = width
        self.add_module("pool", nn.AdaptiveMaxPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", nn.Linear(channels, num_classes, bias=False))

    def fit(self, images: Tensor) -> None:
        """Learn the first layer: normalized training images (N, C, H, W) float32."""
        self.whitening.fit(images)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.scale

    def parameter_groups(self) -> list[dict[str, object]]:
        """Weights, and the biases of batch norm with their own learning rate."""
        biases = [layer.bias for layer in self.modules() if isinstance(layer, nn.BatchNorm2d)]
        others = [weights for weights in self.parameters() if all(weights is not bias for bias in biases)]
        return [{"params": others}, {"params": biases, "lr_scale": self.bias_lr}]
