"""Networks of a project. Some of their arguments have names that other options use for something else; that is fine."""

from collections.abc import Sequence

from torch import Tensor, nn


class Tower(nn.Sequential):
    """Three convolutions of stride 2 and global average pooling: (B, planes, H, W) -> logits (B, labels).

    Args:
        labels: number of classes.
        planes: number of channels of the images.
        size: "small" or "large".
        hidden: filters of the second and third convolution.
        scale: factor of the logits.
        time: slope of the leaky ReLUs for negative values.
        momentum: of the running statistics of batch norm; None: the mean over all batches.
        padding: of the convolutions, a number or "valid".
        head_rate: learning rate of the last layer, as a multiple of optim.lr.
    """

    def __init__(
        self,
        labels: int,
        planes: int,
        size: str = "small",
        hidden: Sequence[int] = (32, 64),
        scale: float = 1.0,
        time: float = 0.0,
        momentum: float | None = 1.0,
        padding: int | str = 1,
        head_rate: float = 1.0,
    ):
        super().__init__()
        widths = {"small": 16, "large": 64}
        if size not in widths:
            raise ValueError(f"size={size} is not one of {', '.join(widths)}")
        width = widths[size]
        for number, (before, after) in enumerate(((planes, width), (width, hidden[0]), (hidden[0], hidden[1]))):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, stride=2, padding=padding))
            self.add_module(f"norm{number}", nn.BatchNorm2d(after, momentum=momentum))
            self.add_module(f"relu{number}", nn.LeakyReLU(time))
        self.add_module("mean", nn.AdaptiveAvgPool2d(1))
        self.add_module("flatten", nn.Flatten())
        self.add_module("linear", nn.Linear(hidden[1], labels))
        self.scale, self.head_rate = scale, head_rate

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * super().forward(images)

    def parameter_groups(self) -> list[dict[str, object]]:
        """The last layer has a learning rate of its own: lr_scale times optim.lr."""
        head = self.get_submodule("linear")
        body = [weight for name, weight in self.named_parameters() if not name.startswith("linear.")]
        return [{"params": body}, {"params": head.parameters(), "lr_scale": self.head_rate}]


class Hourglass(nn.Sequential):
    """Down to a quarter of the size and up again: (B, planes, H, W) -> the same shape, for H and W divisible by 4."""

    def __init__(self, planes: int, hidden: int = 16):
        super().__init__(
            nn.Conv2d(planes, hidden, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(hidden, planes, 3, padding=1),
        )
