"""Images in memory: uint8 pixels, labels, class names; their fingerprint, cache file and stratified split.

NumPy alone, imported when pictures are read: checking a configuration takes neither it nor torch. Pixels have the shape
(N, C, H, W) and the memory layout (N, H, W, C), which is what pictures decode to, what torch calls channels_last, and
what lets a batch be gathered pixel by pixel.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from cnnlab.cache import cached
from cnnlab.config import UserError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class Images:
    """Pictures of one size with their classes.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64, an index into `classes`.
        classes: the class names.
    """

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class DataSet:
    """The official training and test images, and the SHA-256 of both."""

    train: Images
    test: Images
    fingerprint: str


def fingerprint(*parts: Images) -> str:
    """SHA-256 over shapes, pixels, labels and class names."""
    import numpy as np

    sha = hashlib.sha256()
    for images in parts:
        sha.update(repr((images.pixels.shape, images.classes)).encode())
        sha.update(np.ascontiguousarray(images.pixels.transpose(0, 2, 3, 1)).data)
        sha.update(np.ascontiguousarray(images.labels).data)
    return sha.hexdigest()


def make_folder(path: Path) -> None:
    """A folder of the cache. Raises: UserError if it is not there and cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {path} cannot be made ({error.strerror}). Set cache_dir=FOLDER, or CNNLAB_CACHE."
        ) from error


def cached_data(path: Path, make: Callable[[], tuple[Images, Images]]) -> DataSet:
    """The data set kept in the file `path`; `make` gives its training and test images, and is called once for it.

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
        np.save(file, images.pixels.transpose(0, 2, 3, 1))
        np.save(file, images.labels)


def _read(file: BinaryIO) -> DataSet:
    """Raises: ValueError for what is no data set."""
    import numpy as np

    classes, sha, *arrays = (np.lib.format.read_array(file, allow_pickle=False) for _ in range(6))
    for pixels, labels in (arrays[:2], arrays[2:]):
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or labels.dtype != np.int64 or labels.shape != pixels.shape[:1]:
            raise ValueError("it holds no images with labels")
        if labels.min(initial=0) < 0 or labels.max(initial=0) >= len(classes):
            raise ValueError("it has labels without a class")
    train, test = (
        Images(pixels.transpose(0, 3, 1, 2), labels, tuple(classes.tolist()))
        for pixels, labels in (arrays[:2], arrays[2:])
    )
    return DataSet(train, test, str(sha))


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images kept and held out: `fraction` of each class, rounded, is held out.

    labels: (N,) int64 -> two sorted arrays of int64, together 0 ... N-1.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    held_out = [
        generator.permutation(indices)[: round(fraction * len(indices))]
        for indices in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    mask = np.zeros(len(labels), dtype=bool)
    mask[np.concatenate(held_out)] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


class Source(Protocol):
    """What every data set option offers. Nothing here takes torch, but for pictures that torch draws.

    Attributes:
        prepared: the file that is made by the first `load` and read by every other one; None: there is none.
    """

    name: str
    image_size: int

    @property
    def prepared(self) -> Path | None: ...

    @property
    def num_train(self) -> int: ...

    @property
    def num_classes(self) -> int: ...

    def check(self) -> None:
        """Refuse, with a UserError, what can be seen to be wrong without reading pictures."""

    def digest(self) -> str:
        """What decides the pictures, as a SHA-256; quick.

        A source whose arguments name a place, and not what lies there, has a method `identity` as well: it returns what
        stands for the content in the identity of a run.
        """
        ...

    def load(self) -> DataSet:
        """The pictures, prepared if need be."""
        ...


_loaded: dict[str, DataSet] = {}


def load_once(source: Source) -> DataSet:
    """The data set of a source, kept for the next job of this process."""
    digest = source.digest()
    if digest not in _loaded:
        _loaded.clear()
        _loaded[digest] = source.load()
    return _loaded[digest]


def expand(path: str | os.PathLike) -> Path:
    """A path as a user types it, made absolute.

    Raises: UserError for an empty one, and for ~ where there is no home.
    """
    if not os.fspath(path):
        raise UserError("cache_dir is empty. Set it to a folder; set CNNLAB_CACHE to one, or not at all.")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"{path} names a home, and there is none ({error}). Set cache_dir=FOLDER or CNNLAB_CACHE to a folder that "
            f"you may write to."
        ) from error
