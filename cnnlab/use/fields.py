"""Receptive fields, followed from operation to operation: through branches, dilation and pooling of any kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# besides pointwise operations, those whose outputs depend on the inputs at the same place
SAME = {aten.detach, aten._to_copy, aten.cat, aten.native_batch_norm, aten.hardswish, aten._prelu_kernel}


@dataclass(frozen=True)
class Field:
    """The pixels that a tensor depends on, by rows and by columns.

    The first value depends on those from `first` to `last`, which may be outside of the image; each next value on those
    that are `stride` pixels further.
    """

    first: int = 0
    last: int = 0
    stride: int = 1

    @property
    def side(self) -> int:
        return self.last - self.first + 1

    def window(self, size: int, stride: int, padding: int, dilation: int) -> "Field":
        """After a convolution or pooling: r_k = r_{k-1} + (f_k - 1) s_1 ... s_{k-1}."""
        first = self.first - padding * self.stride
        return Field(first, first + self.side - 1 + (size - 1) * dilation * self.stride, self.stride * stride)

    def whole(self, size: Sequence[int]) -> "Field":
        """Of a value that depends on all places of feature maps of this size, if any."""
        return self.window(max(size, default=1), max(size, default=1), 0, 1)


class Fields(TorchDispatchMode):
    """Follows the pixels on which tensors depend. After an operation that is not known here, they are not known."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, Field | None]] = {}  # by id, with the tensor, so that its id is not reused

    def of(self, values: Tensor) -> Field | None:
        return self.known[id(values)][1] if id(values) in self.known else None

    def set(self, values: Tensor, field: Field | None) -> None:
        self.known[id(values)] = values, field

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and id(one) in self.known]
        if inputs:
            outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
            fields = [field for one in inputs if (field := self.of(one))]
            field = _after(func, args, inputs, fields, outputs[0]) if len(fields) == len(inputs) else None
            for one in outputs:
                self.set(one, field)
        return result


def _after(func: Any, args: Any, inputs: list[Tensor], fields: list[Field], output: Tensor) -> Field | None:
    """The field of an operation's output. inputs: those that depend on the image, with their fields."""
    kind, source, field = func.overloadpacket, inputs[0], fields[0]
    if torch.Tag.pointwise in func.tags or kind in SAME:
        mixes = (kind is aten.cat and args[1:] != (1,)) or (kind is aten.native_batch_norm and args[5])
        if mixes or any(one.stride != field.stride for one in fields) or len({one.shape[2:] for one in inputs}) > 1:
            return None
        return Field(min(one.first for one in fields), max(one.last for one in fields), field.stride)
    if len(inputs) > 1 or source is not args[kind is aten.addmm]:
        return None
    places = source.shape[2:]
    if kind in (aten.mm, aten.addmm):
        return field if source.shape[:-1] == (1,) else None
    if kind in (aten.view, aten._unsafe_view):
        return field.whole(places) if output.shape[:-1] == source.shape[:1] else None
    if kind in (aten.mean, aten.amax):
        return field.whole(places) if args[1:] and {axis % source.ndim for axis in args[1]} == {2, 3} else None
    if kind is aten.as_strided_:
        return field if set(places) == {1} else None
    if kind is aten.convolution and not args[6]:
        return _window(field, places, args[1].shape[2:], *args[3:6])
    if kind is aten.max_pool2d_with_indices:
        return _window(field, places, *_pooling(args, [], [0], [1]))
    if kind is aten.avg_pool2d:
        return _window(field, places, *_pooling(args, [], [0]), [1])
    return None


def _pooling(args: Any, *defaults: list[int]) -> list[Sequence[int]]:
    """Size, stride, padding and so on of a pooling; its stride is its size by default."""
    given = list(args[1 : len(defaults) + 2])
    given += defaults[len(given) - 1 :]
    return [given[0], given[1] or given[0], *given[2:]]


def _window(field: Field, places: Sequence[int], size: Sequence[int], *settings: Sequence[int]) -> Field | None:
    """The field after a window of this size. settings: its stride, padding and dilation; all by axis."""
    if all(len(set(values)) == 1 for values in (size, *settings)):
        return field.window(size[0], *(values[0] for values in settings))
    _, padding, _ = settings
    return field.whole(places) if list(size) == list(places) and not any(padding) else None
