"""A network layer by layer: sizes, weights, multiply-adds, receptive fields (lab report, questions 1 and 7 to 12)."""

from dataclasses import dataclass

import torch
from torch import nn

from cnnlab.config.shape import Shape
from cnnlab.networks import VisualWords
from cnnlab.train.parts import on_black


@dataclass
class Layer:
    """One layer applied to one image.

    Attributes:
        name, kind: its path in the network and the name of its class.
        output: size without the batch, (C, H, W) or (features,).
        weights: number of learned values, including biases.
        multiply_adds: multiplications of a weight with a value.
        receptive_field: side of the square of pixels that one output depends on; it may extend beyond the image.
        stride: pixels of the image between neighboring outputs.
        fully_connected: weights, without biases, of a fully connected layer between the same sizes.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    weights: int
    multiply_adds: int
    receptive_field: int
    stride: int
    fully_connected: int


def layers(network: nn.Module, shape: Shape) -> list[Layer]:
    """The layers without submodules, in the order in which an image of this shape passes through them."""
    found: list[Layer] = []
    field, stride = 1, 1  # r_0

    def visit(name: str, layer: nn.Module, source: torch.Tensor, output: torch.Tensor) -> None:
        nonlocal field, stride
        weights = sum(values.numel() for values in layer.parameters())
        multiply_adds = 0
        if isinstance(layer, nn.Linear):
            multiply_adds = layer.weight.numel()
        elif isinstance(layer, nn.Conv2d):
            multiply_adds = layer.weight[0].numel() * output[0].numel()
        elif isinstance(layer, VisualWords):
            multiply_adds = layer.multiply_adds(*source.shape[2:])
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            field += (_first(layer.kernel_size) - 1) * stride  # r_k = r_{k-1} + (f_k - 1) s_1 ... s_{k-1}
            stride *= _first(layer.stride)
        elif isinstance(layer, nn.Flatten | VisualWords):  # every output depends on the whole input
            field += (source.shape[-1] - 1) * stride
            stride *= source.shape[-1]
        dense = source[0].numel() * output[0].numel() if multiply_adds else 0
        size = tuple(output.shape[1:])
        found.append(Layer(name, type(layer).__name__, size, weights, multiply_adds, field, stride, dense))

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: visit(name, layer, inputs[0], output))
        for name, layer in network.named_modules()
        if not list(layer.children())
    ]
    try:
        on_black(network, shape)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
