"""Images in memory: uint8 pixels, targets, class names; their fingerprint, cache file and stratified split.

NumPy alone, imported when pictures are read: checking a configuration takes neither it nor torch. Pixels have the shape
(N, C, H, W) and the memory layout (N, H, W, C), which is what pictures decode to, what torch calls channels_last, and
what lets a batch be gathered pixel by pixel.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.config.shape import Shape
from cnnlab.runs.cache import cached

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size with their targets.

    Attributes:
        pixels: (N, C, H, W) uint8.
        targets: (N,) int64, an index into `classes`; or (N, K) float32: 1 for every label that an image has and 0 for
            the others, or K numbers.
        classes: the names of the classes, the labels, or the numbers.
        weights: (N,) of training images, for sampling=weighted; None: there are none.
    """

    pixels: np.ndarray  # or cnnlab.data.fetched.Fetched
    targets: np.ndarray
    classes: tuple[str, ...]
    weights: np.ndarray | None = None

    @functools.cached_property
    def task(self) -> str:
        """See `Shape`. Targets of which every one is 0 or 1 are labels."""
        if self.targets.ndim == 1:
            return "multiclass"
        return "multilabel" if ((self.targets == 0) | (self.targets == 1)).all() else "regression"

    def wrong(self) -> str:
        """What is not as described above, in words; empty if nothing is."""
        pixels, targets = self.pixels, self.targets
        if str(pixels.dtype) != "uint8" or pixels.ndim != 4 or not pixels.shape[1]:
            return f"pixels are {pixels.dtype} of shape {pixels.shape}, not (N, C, H, W) uint8"
        if len(targets) != len(pixels):
            return f"there are {len(pixels)} images and {len(targets)} targets"
        if targets.ndim == 1:
            if str(targets.dtype) != "int64":
                return f"targets (N,) are {targets.dtype}, not int64"
            if len(targets) and not 0 <= targets.min() <= targets.max() < len(self.classes):
                return f"targets are from {targets.min()} to {targets.max()}, and there are {len(self.classes)} classes"
        elif targets.ndim != 2 or str(targets.dtype) != "float32" or targets.shape[1] != len(self.classes):
            names = f"{len(self.classes)} names"
            return f"targets are {targets.dtype} of shape {targets.shape} with {names}, not (N, K) float32 with K names"
        elif not (abs(targets) < 1e30).all():
            return "targets are not finite"
        return ""


def fetches(images: Images) -> bool:
    """Whether images are fetched when they are needed (cnnlab.data.fetched), and not held in an array."""
    return hasattr(images.pixels, "batches")


def at_places(images: Images) -> Callable[[Any], np.ndarray]:
    """A function that gives images as they are drawn, (n, H, W, C) uint8, for an array of their places."""

    def found(places: Any) -> np.ndarray:
        import numpy as np

        if not fetches(images):
            return images.pixels[places].transpose(0, 2, 3, 1)
        import torch

        return np.asarray(images.pixels[torch.as_tensor(places)])

    return found


@dataclass(frozen=True, eq=False)
class DataSet:
    """The official training and test images, and the SHA-256 of both."""

    train: Images
    test: Images
    fingerprint: str

    @functools.cached_property
    def shape(self) -> Shape:
        _, channels, height, width = self.train.pixels.shape
        return Shape(len(self.train.classes), channels, height, width, self.train.task)


def fingerprint(*parts: Images) -> str:
    """SHA-256 over shapes, pixels, targets and class names."""
    import numpy as np

    sha = hashlib.sha256()
    for images in parts:
        sha.update(repr((images.pixels.shape, images.classes)).encode())
        for some in in_pieces(images):
            sha.update(some.data)
        sha.update(np.ascontiguousarray(images.targets).data)
    return sha.hexdigest()


def in_pieces(images: Images) -> Iterator[np.ndarray]:
    """The pixels of all images in order, (n, H, W, C): however they lie, no more than a piece is copied."""
    import numpy as np

    for first in range(0, len(images.pixels), 1000):
        yield np.ascontiguousarray(images.pixels[first : first + 1000].transpose(0, 2, 3, 1))


def cached_data(path: Path, make: Callable[[], tuple[Images, Images]]) -> DataSet:
    """The data set kept in the file `path`; `make` gives its training and test images, and is called once for it.

    Pixels are mapped into memory and not read: all processes of a machine share them, and they may exceed its memory.
    All jobs of a machine share a copy in the folder that CNNLAB_NODE_DIR names, on the machine's own disk.
    """

    def made() -> DataSet:
        train, test = make()
        return DataSet(train, test, fingerprint(train, test))

    def shared() -> DataSet:
        return cached(path, made, _write, _read)

    if not (node := os.environ.get("CNNLAB_NODE_DIR")):
        return shared()
    return cached(expand(node) / path.name, shared, _write, _read)


def _write(data: DataSet, file: BinaryIO) -> None:
    """Arrays one after the other, in NumPy's format."""
    import numpy as np

    np.save(file, np.array(data.train.classes))
    np.save(file, np.array(data.fingerprint))
    for images in (data.train, data.test):
        num, channels, height, width = images.pixels.shape
        header = {"descr": "|u1", "fortran_order": False, "shape": (num, height, width, channels)}
        np.lib.format.write_array_header_1_0(file, header)
        for some in in_pieces(images):
            file.write(some.data)
        np.save(file, images.targets)


def _read(file: BinaryIO) -> DataSet:
    """Raises: ValueError for what is no data set."""
    import numpy as np

    def read() -> Any:
        return np.lib.format.read_array(file, allow_pickle=False)

    classes, sha = read(), read()
    train, test = (
        Images(mapped_array(file).transpose(0, 3, 1, 2), read(), tuple(classes.tolist())) for _ in ("train", "test")
    )
    if wrong := train.wrong() or test.wrong():
        raise ValueError(wrong)
    return DataSet(train, test, str(sha))


def mapped_array(file: BinaryIO) -> np.ndarray:
    """The images (N, H, W, C) uint8 that a file holds next, in NumPy's format, mapped into memory.

    Raises: ValueError for anything else.
    """
    import numpy as np

    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it holds no images of ours")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 4 or by_columns or dtype != np.uint8:
        raise ValueError(f"it holds {dtype} of shape {shape}, and not images")
    offset, size = file.tell(), math.prod(shape)
    array = np.asarray(np.memmap(file, np.uint8, "r", offset, shape)) if size else np.empty(shape, np.uint8)
    file.seek(offset + size)
    return array


def stratified_split(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images kept and held out: `fraction` of each class, rounded, is held out.

    targets: (N,) int64, or (N, K): then all images are one class -> two sorted arrays of int64, together 0 ... N-1.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    labels = targets if targets.ndim == 1 else np.zeros(len(targets), dtype=np.int64)
    held_out = [
        generator.permutation(indices)[: round(fraction * len(indices))]
        for indices in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    mask = np.zeros(len(labels), dtype=bool)
    mask[np.concatenate(held_out)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


class Source(Protocol):
    """What a data set option must offer; what it may offer besides, see `offered`. To be checked it needs no torch."""

    def digest(self) -> str:
        """What decides images and targets, as a SHA-256; quick."""
        ...

    def load(self) -> DataSet:
        """Images and targets, prepared if need be."""
        ...


_loaded: dict[str, DataSet] = {}


def load_once(source: Source) -> DataSet:
    """The data set of a source, kept for the next job of this process."""
    digest = source.digest()
    if digest not in _loaded:
        _loaded.clear()
        data = source.load()
        if wrong := data.train.wrong() or data.test.wrong():
            raise UserError(f"{type(source).__name__} gives data that cannot be used: {wrong}.")
        if len({images.pixels.shape[1:] for images in (data.train, data.test)}) > 1:
            sizes = " and ".join(str(images.pixels.shape[1:]) for images in (data.train, data.test))
            raise UserError(f"{type(source).__name__} gives training and test images of different shapes: {sizes}.")
        _loaded[digest] = data
    return _loaded[digest]
