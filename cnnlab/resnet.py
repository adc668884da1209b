"""Residual networks for small images: 3x3 first, no max pooling (K. He et al., 2016, section 4.2). Plain torch."""

from collections.abc import Sequence

from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, C, H, W) float -> (B, channels, H / stride, W / stride).

    Args:
        in_channels, channels: of the input, and of the output of both convolutions.
        stride: of the first convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        inner = self.relu(self.norm1(self.conv1(images)))
        return self.relu(self.norm2(self.conv2(inner)) + self.shortcut(images))


class ResNet(nn.Sequential):
    """A residual network whose first convolution keeps the size of the images; with its defaults, ResNet-18.

    (B, in_channels, any, any) float -> logits (B, num_classes).

    Args:
        num_classes, in_channels: determined by the data.
        blocks: residual blocks in every stage; each stage after the first halves height and width.
        width: filters in the first stage; each later stage has twice as many as the one before.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, blocks: Sequence[int] = (2, 2, 2, 2), width: int = 64
    ):
        super().__init__()
        self.add_module("conv", nn.Conv2d(in_channels, width, 3, padding=1, bias=False))
        self.add_module("norm", nn.BatchNorm2d(width))
        self.add_module("relu", nn.ReLU(inplace=True))
        channels = width
        for stage, num_blocks in enumerate(blocks):
            layers = []
            for block in range(num_blocks):
                layers.append(Residual(channels, width << stage, stride=2 if stage and not block else 1))
                channels = width << stage
            self.add_module(f"stage{stage + 1}", nn.Sequential(*layers))
        self.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc", nn.Linear(channels, num_classes))
