"""Constructing the parts of an untrusted configuration: bounded memory, no pickles, no downloads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

SPARE_BYTES = 1 << 28  # on top of four times the weights: constructors build tables and make copies
MIN_BYTES = 1 << 14  # that each tensor counts as, which bounds the number of layers


@contextmanager
def bounded(num_bytes: int) -> Iterator[None]:
    """Within the block, the total size of new tensors is bounded, torch.load reads only tensors, nothing is downloaded.

    Constructors may compute with real values, which they could not on the meta device.

    num_bytes: of the network's weights. Raises: ValueError before an operation that would exceed the limit, and for a
        file that cannot be read or would be downloaded.
    """
    with (
        patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}),
        patch("torch.hub.download_url_to_file", _refuse_download),
        patch("socket.getaddrinfo", _refuse_download),  # with which every other download begins
        _Bounded(4 * num_bytes + SPARE_BYTES),
    ):
        try:
            yield
        except OSError as error:
            raise ValueError(f"a file cannot be read: {error}") from error


def _refuse_download(address: Any, *_: Any, **__: Any) -> NoReturn:
    raise OSError(f"{address} would have to be downloaded")


class _Bounded(TorchDispatchMode):
    def __init__(self, limit: int):
        super().__init__()
        self.limit = self.left = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        results = [value for value in tree_leaves(_on_meta(func, args, kwargs)) if isinstance(value, Tensor)]
        largest = max((value.numel() * value.element_size() for value in results), default=0)
        if not any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs))):
            self.left -= max(largest, MIN_BYTES)
        if largest > self.limit or self.left < 0:
            raise ValueError(f"it takes more than {self.limit:,} bytes, far more than the network's weights")
        return func(*args, **kwargs)


def _on_meta(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation on the meta device; None for one that needs real values."""
    if "device" in str(func._schema):
        kwargs = kwargs | {"device": "meta"}
    kwargs = {name: None if isinstance(value, torch.Generator) else value for name, value in kwargs.items()}
    try:
        args, kwargs = tree_map_only(Tensor, lambda value: torch.empty_like(value, device="meta"), (args, kwargs))
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError):
        # There is no meta result of an operation that reads values, as item and nonzero do (RuntimeError), that is not
        # implemented for the meta device (NotImplementedError), or that takes no argument `device` (TypeError). It is
        # then done without a check of its size: refusing would refuse every constructor that computes with values.
        return None
