"""A network layer by layer: sizes, weights, multiply-adds, receptive fields (lab report, questions 1 and 7 to 12)."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cnnlab.config.shape import Shape
from cnnlab.networks import VisualWords
from cnnlab.train.parts import on_black
from cnnlab.use.fields import Field, Fields


@dataclass
class Layer:
    """One layer applied to one image.

    Attributes:
        name, kind: its path in the network and the name of its class.
        output: size without the batch, (C, H, W) or (features,).
        weights: number of learned values, including biases; 0 if they are counted for an earlier layer.
        multiply_adds: multiplications of a weight with a value.
        receptive_field: side of the square of pixels that one output depends on; it may extend beyond the image.
        stride: pixels of the image between neighboring outputs. Both are None after operations that are not followed.
        fully_connected: weights, without biases, of a fully connected layer between the same sizes.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    weights: int
    multiply_adds: int
    receptive_field: int | None
    stride: int | None
    fully_connected: int


def layers(network: nn.Module, shape: Shape) -> list[Layer]:
    """The layers without submodules, in the order in which an image of this shape passes through them."""
    found: list[Layer] = []
    counted: set[nn.Parameter] = set()  # a layer may be used twice
    fields = Fields()

    def visit(name: str, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
        source, output = first_tensor((inputs, named)), first_tensor(made)
        new = set(layer.parameters()) - counted
        counted.update(new)
        multiply_adds = 0
        if isinstance(layer, nn.Linear):
            multiply_adds = layer.weight.numel() * (output[0].numel() // output.shape[-1])
        elif isinstance(layer, nn.Conv2d):
            multiply_adds = layer.weight[0].numel() * output[0].numel()
        elif isinstance(layer, VisualWords):
            multiply_adds = layer.multiply_adds(*source.shape[2:])
            fields.set(output, (before := fields.of(source)) and before.whole(source.shape[2:]))
        dense = source[0].numel() * output[0].numel() if multiply_adds else 0
        field, size = fields.of(output), tuple(output.shape[1:])
        side, stride = (field.side, field.stride) if field else (None, None)
        weights = sum(values.numel() for values in new)
        found.append(Layer(name, type(layer).__name__, size, weights, multiply_adds, side, stride, dense))

    with ExitStack() as hooks, fields:
        hooks.enter_context(network.register_forward_pre_hook(lambda _, inputs: fields.set(inputs[0], Field())))
        for name, layer in network.named_modules():
            if not list(layer.children()):
                hooks.enter_context(layer.register_forward_hook(partial(visit, name), with_kwargs=True))
        on_black(network, shape)
    return found


def first_tensor(values: Any) -> Tensor:
    """Of what a layer is given, or returns."""
    return next(value for value in tree_leaves(values) if isinstance(value, Tensor))
