"""Images that are fetched on demand: a torch Dataset that is too large for memory, or decoded on the fly.

They replace the array of all images, under the same plan: order, split, crops, augmentations, resuming. Random numbers
in the dataset itself are seeded by the run's seed, the epoch and the image. So they are the same for any number of
workers and processes, and when a run is resumed in the middle of an epoch.
"""

import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cnnlab.config.options import UserError
from cnnlab.runs.signals import STOPPING

Item = tuple[int, int]  # index of an image, and the seed of its random numbers


class Fetched:
    """The images of a torch Dataset, for `Images` in place of an array of pixels.

    Args:
        dataset: its items are images, (C, H, W) uint8 tensors or arrays, or tuples that begin with one: (image, label).
        shape: (C, H, W).
        num_workers: processes that fetch images during training; 0: this process fetches them.
        evaluated: the same images in the same order without random changes: held-out images and the statistics of a
            normalization are taken from there; None: from `dataset`.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(
        self,
        dataset: Dataset,
        shape: tuple[int, int, int],
        num_workers: int = 2,
        evaluated: Dataset | None = None,
    ):
        self.dataset, self.num_workers = dataset, num_workers
        self.shape = (len(cast(Any, dataset)), *shape)
        self.evaluated = Fetched(evaluated, shape, num_workers) if evaluated is not None else self
        if len(self.evaluated) != len(self):
            raise UserError(f"Fetched: evaluated has {len(self.evaluated)} images, and dataset {len(self)}.")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Tensor) -> Tensor:
        """(B,) int64 -> (B, H, W, C) uint8, fetched by this process."""
        items = _Items(self)
        return torch.stack([items[place, place] for place in index.tolist()])

    def batches(self, batches: Sequence[Sequence[Item]]) -> Iterator[Tensor]:
        """Batches (B, H, W, C) uint8 in order, prefetched by the workers."""
        loaded = iter(
            DataLoader(
                _Items(self),
                batch_sampler=cast(Any, batches),
                num_workers=min(self.num_workers, len(batches)),
                worker_init_fn=_ignore_signals,
                generator=torch.Generator(),
            )
        )
        try:
            yield from loaded
        except UserError as error:  # a worker's, whose text is preceded by its traceback
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
        finally:  # the traceback of an error would keep the workers, which ignore the signal that ends them at exit
            if end := getattr(loaded, "_shutdown_workers", None):
                end()


class _Items(Dataset):
    def __init__(self, images: Fetched):
        self.images = images

    def __getitem__(self, item: Item) -> Tensor:
        index, seed = item
        with seeded(seed):
            found = self.images.dataset[index]
        image = torch.as_tensor(np.asarray(found[0] if isinstance(found, tuple | list) else found))
        if image.dtype != torch.uint8 or image.shape != self.images.shape[1:]:
            raise UserError(
                f"Item {index} of {type(self.images.dataset).__name__} is {tuple(image.shape)} {image.dtype}, but "
                f"should be {self.images.shape[1:]} torch.uint8."
            )
        return image.permute(1, 2, 0)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of torch, NumPy and Python for a block, and restore their states after it."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU only: those of GPUs are not restored here
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _ignore_signals(worker: int) -> None:
    """A signal may be sent to the whole process group, but the run ends its workers itself."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
