"""Making a network as somebody else's configuration says: no larger than its weights, and no pickles of theirs."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

SPARE = 1 << 28  # bytes, besides four times the weights: constructors make tables, and copies
LEAST = 1 << 14  # bytes that a tensor counts as: the number of layers is bounded too


@contextmanager
def bounded(num_bytes: int) -> Iterator[None]:
    """Within the block, tensors are made up to some bytes in sum, and torch.load reads nothing but tensors.

    A constructor may compute, which it could not on the meta device.

    num_bytes: of the weights that the network is to have. Raises: ValueError from the operation that is too much,
    before it takes memory.
    """
    with patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}), _Bounded(4 * num_bytes + SPARE):
        yield


class _Bounded(TorchDispatchMode):
    def __init__(self, limit: float):
        super().__init__()
        self.limit = self.left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args, kwargs or {}
        made_of_nothing = not any(isinstance(value, Tensor) for value in tree_leaves(given))
        largest = max((_num_bytes(value) for value in tree_leaves(_result_on_meta(func, *given))), default=0)
        if made_of_nothing:
            self.left -= max(largest, LEAST)
        if largest > self.limit or self.left < 0:
            raise ValueError(f"the network takes more than {self.limit:,} bytes, and its weights do not")
        return func(*args, **given[1])


def _result_on_meta(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, without its content; None for one that needs content."""
    if "device" in str(func._schema):
        kwargs = kwargs | {"device": "meta"}
    kwargs = {name: None if isinstance(value, torch.Generator) else value for name, value in kwargs.items()}
    try:
        return func(*tree_map(_on_meta, args), **tree_map(_on_meta, kwargs))
    except (RuntimeError, NotImplementedError, TypeError):
        return None


def _on_meta(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def _num_bytes(value: Any) -> float:
    if not isinstance(value, Tensor):
        return 0
    return math.prod(value.shape) * value.element_size()
