"""Images in memory: uint8 pixels, targets, class names; their fingerprint and cache file.

Needs NumPy only, which is imported when images are read, so that a configuration is checked without it. Pixels have the
shape (N, C, H, W) and the memory layout (N, H, W, C), which image files decode to, torch calls channels_last, and
allows a batch to be gathered pixel by pixel.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
        targets: (N,) int64, indices into `classes`; or (N, K) float32, K labels that are 0 or 1, or K numbers.
        classes: the names of the classes, labels or numbers.
        weights: (N,) of training images, for sampling=weighted; None: there are none.
    """

    pixels: np.ndarray  # or cnnlab.data.fetched.Fetched
    targets: np.ndarray
    classes: tuple[str, ...]
    weights: np.ndarray | None = None

    @functools.cached_property
    def task(self) -> str:
        """See `Shape`. Targets (N, K) that are all 0 or 1 are labels."""
        if self.targets.ndim == 1:
            return "multiclass"
        return "multilabel" if ((self.targets == 0) | (self.targets == 1)).all() else "regression"

    def problem(self) -> str:
        """What contradicts the description above, in words; empty if nothing does."""
        pixels, targets = self.pixels, self.targets
        for name, given in (("pixels", pixels), ("targets", targets)):
            if not hasattr(given, "batches") and type(given).__module__ != "numpy":
                return f"{name} are a {type(given).__name__}, not a NumPy array"
        if wrong := [name for name in self.classes if not isinstance(name, str)]:
            return f"the class name {wrong[0]!r} is not text"
        if str(pixels.dtype) != "uint8" or pixels.ndim != 4 or not pixels.shape[1]:
            return f"pixels are {pixels.dtype} of shape {pixels.shape}, not (N, C, H, W) uint8"
        if len(targets) != len(pixels):
            return f"there are {len(pixels)} images and {len(targets)} targets"
        if targets.ndim == 1:
            if str(targets.dtype) != "int64":
                return f"targets (N,) are {targets.dtype}, not int64"
            if len(targets) and not 0 <= targets.min() <= targets.max() < len(self.classes):
                return f"targets are from {targets.min()} to {targets.max()}, but there are {len(self.classes)} classes"
        elif targets.ndim != 2 or str(targets.dtype) != "float32" or targets.shape[1] != len(self.classes):
            names = f"{len(self.classes)} names"
            return f"targets are {targets.dtype} of shape {targets.shape} with {names}, not (N, K) float32 with K names"
        elif not (abs(targets) < 1e30).all():
            return "targets are not finite"
        if len(set(self.classes)) < len(self.classes):
            return f"a name occurs twice among the classes {', '.join(self.classes[:10])}"
        return ""

    def at(self, index: Any) -> np.ndarray:
        """Images as they are drawn, (n, H, W, C) uint8, for an array or a list of their indices."""
        if not is_fetched(self):
            return self.pixels[index].transpose(0, 2, 3, 1)
        import numpy as np
        import torch

        return np.asarray(self.pixels[torch.as_tensor(index)])


def is_fetched(images: Images) -> bool:
    """Whether images are fetched on demand (cnnlab.data.fetched) instead of held in an array."""
    return hasattr(images.pixels, "batches")


def for_evaluation(images: Images) -> Images:
    """The same images without random changes of their own."""
    return replace(images, pixels=getattr(images.pixels, "evaluated", images.pixels)) if is_fetched(images) else images


@dataclass(frozen=True, eq=False)
class DataSet:
    """The official training and test images, and the SHA-256 of both.

    Raises: UserError for different classes, or the same in another order: a target must mean the same in both.
    """

    train: Images
    test: Images
    fingerprint: str

    def __post_init__(self) -> None:
        if self.train.classes != self.test.classes:
            train, test = (", ".join(images.classes[:10]) for images in (self.train, self.test))
            raise UserError(f"Training and test images are of different classes: {train}, and {test}. Use the same.")

    @functools.cached_property
    def shape(self) -> Shape:
        _, channels, height, width = self.train.pixels.shape
        return Shape(len(self.train.classes), channels, height, width, self.train.task)


def fingerprint(*parts: Images) -> str:
    """SHA-256 over shapes, pixels, targets and class names. Raises: UserError for what are no Images."""
    import numpy as np

    sha = hashlib.sha256()
    for images in parts:
        if problem := images.problem():
            raise UserError(f"The images cannot be used: {problem}.")
        sha.update(repr((images.pixels.shape, images.classes)).encode())
        for chunk in _chunks(images):
            sha.update(chunk.data)
        sha.update(np.ascontiguousarray(images.targets).data)
    return sha.hexdigest()


def _chunks(images: Images) -> Iterator[np.ndarray]:
    """The pixels in order, (n, H, W, C), contiguous: for any memory layout, at most one chunk is copied."""
    import numpy as np

    for first in range(0, len(images.pixels), 1000):
        yield np.ascontiguousarray(images.pixels[first : first + 1000].transpose(0, 2, 3, 1))


def cached_data(path: Path, make: Callable[[], tuple[Images, Images]]) -> DataSet:
    """The data set in the cache file `path`; if there is none, `make` returns its training and test images.

    Pixels are memory-mapped: all processes of a machine share them, and they may exceed its memory. If CNNLAB_NODE_DIR
    names a folder on the machine's own disk, all jobs of the machine share a copy there.
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
    """Write all arrays in NumPy's format."""
    import numpy as np

    np.save(file, np.array(data.train.classes))
    np.save(file, np.array(data.fingerprint))
    for images in (data.train, data.test):
        num, channels, height, width = images.pixels.shape
        header = {"descr": "|u1", "fortran_order": False, "shape": (num, height, width, channels)}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in _chunks(images):
            file.write(chunk.data)
        np.save(file, images.targets)


def _read(file: BinaryIO) -> DataSet:
    """Raises: ValueError if the content is not a data set."""
    import numpy as np

    def read() -> Any:
        return np.lib.format.read_array(file, allow_pickle=False)

    classes, sha = read(), read()
    train, test = (
        Images(_mapped(file).transpose(0, 3, 1, 2), read(), tuple(classes.tolist())) for _ in ("train", "test")
    )
    if problem := train.problem() or test.problem():
        raise ValueError(problem)
    return DataSet(train, test, str(sha))


def _mapped(file: BinaryIO) -> np.ndarray:
    """Memory-map the next array of a file, images (N, H, W, C) uint8. Raises: ValueError for anything else."""
    import numpy as np

    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("it contains no images in cnnlab's format")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 4 or by_columns or dtype != np.uint8:
        raise ValueError(f"it contains {dtype} of shape {shape} instead of images")
    offset, size = file.tell(), math.prod(shape)
    array = np.asarray(np.memmap(file, np.uint8, "r", offset, shape)) if size else np.empty(shape, np.uint8)
    file.seek(offset + size)
    return array


class Source(Protocol):
    """What a data set option must offer, without importing torch before `load`.

    It may also have `shape`, a Shape, and `num_train`, the number of training images, if they are known before loading;
    `check()`, which raises a UserError for what is wrong without reading images; `identity()`, which stands for the
    content in the identity of a run, if the arguments name only a location; `prepared`, the file that the first `load`
    writes and later ones read.
    """

    def digest(self) -> str:
        """A SHA-256 of whatever determines images and targets; quick."""
        ...

    def load(self) -> DataSet: ...


_loaded: dict[str, DataSet] = {}


def load_once(source: Source) -> DataSet:
    """The data set of a source, kept for the next job of this process. Raises: UserError."""
    digest = source.digest()
    if digest not in _loaded:
        _loaded.clear()
        data = source.load()
        kind = type(source).__name__
        if not isinstance(data, DataSet):
            raise UserError(f"{kind}.load returns a {type(data).__name__}, not a DataSet of training and test images.")
        if problem := data.train.problem() or data.test.problem():
            raise UserError(f"{kind} returns data that cannot be used: {problem}.")
        for images in (data.train, data.test):
            some = list(range(min(4, len(images.targets)))) if is_fetched(images) else []
            if some and (images.at(some) != images.at(some)).any():
                raise UserError(
                    f"{kind} returns other images each time they are fetched with the same seed. Draw random numbers "
                    f"from the global generators of torch, NumPy or Python, which are seeded for each image."
                )
        if not len(data.test.targets):
            raise UserError(f"{kind} returns no test images.")
        if data.train.targets.ndim != data.test.targets.ndim:
            raise UserError(f"{kind} returns a class for each image of one part, and a list of numbers in the other.")
        declared = getattr(source, "shape", None)
        if declared and declared.task != data.shape.task:
            raise UserError(
                f"{kind} declares targets that are {declared.task}, and loads such that are {data.shape.task}: numbers "
                f"that are all 0 or 1 are taken for labels."
            )
        if data.train.task == "multilabel" != data.test.task:
            raise UserError(f"{kind} returns training targets that are all 0 or 1, and test targets that are not.")
        train, test = (images.pixels.shape[1:] for images in (data.train, data.test))
        if train != test:
            raise UserError(f"{kind} returns training and test images of different shapes: {train} and {test}.")
        _loaded[digest] = data
    return _loaded[digest]
