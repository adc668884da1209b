"""The report's network. Plain torch; a network takes normalised images and returns logits."""

from collections.abc import Sequence

from torch import nn


class ConvNet(nn.Sequential):
    """Convolution and pooling, three times, then two fully connected layers (lab report, question 10).

    Every convolution keeps the size of its input; every pooling halves it. Pooling stands before ReLU: the two commute
    exactly, forwards and backwards, and in this order ReLU sees a quarter of the values.

    (B, in_channels, image_size, image_size) float -> logits (B, num_classes).

    Args:
        num_classes, in_channels, image_size: given by the data.
        channels: filters of each convolution.
        kernel_size: odd height and width of every filter.
        hidden: neurons of the first fully connected layer, fc4.
        batch_norm: whether batch normalisation follows every convolution.
        dropout: probability that a neuron of fc4 is zeroed in training.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        channels: Sequence[int] = (32, 64, 64),
        kernel_size: int = 5,
        hidden: int = 1000,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        for layer, out_channels in enumerate(channels, start=1):
            self.add_module(f"conv{layer}", nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2))
            if batch_norm:
                self.add_module(f"norm{layer}", nn.BatchNorm2d(out_channels))
            self.add_module(f"pool{layer}", nn.MaxPool2d(2))
            self.add_module(f"relu{layer}", nn.ReLU(inplace=True))
            in_channels, image_size = out_channels, image_size // 2
        self.add_module("flatten", nn.Flatten())
        self.add_module("fc4", nn.Linear(in_channels * image_size**2, hidden))
        self.add_module("relu4", nn.ReLU(inplace=True))
        self.add_module("dropout", nn.Dropout(dropout))
        self.add_module("fc5", nn.Linear(hidden, num_classes))
