"""Images in memory: uint8 pixels, labels, class names; their fingerprint, cache file and stratified split.

NumPy alone, imported when pictures are read: checking a configuration takes neither it nor torch. Pixels have the shape
(N, C, H, W) and the memory layout (N, H, W, C), which is what pictures decode to, what torch calls channels_last, and
what lets a batch be gathered pixel by pixel.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cnnlab.config import UserError
from cnnlab.records import atomic_path, lock_file

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
    """A folder of the cache. Raises: UserError if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {path} cannot be made ({error.strerror}). Type cache_dir=FOLDER, or set CNNLAB_CACHE."
        ) from error


def cached(path: Path, make: Callable[[], tuple[Images, Images]]) -> DataSet:
    """The data set kept in the file `path`; `make` is called once for it, by one process."""
    import numpy as np

    if not path.exists():
        make_folder(path.parent)
        with lock_file(Path(f"{path}.lock")):
            if not path.exists():
                train, test = make()
                with atomic_path(path) as partial, open(partial, "wb") as file:
                    np.savez(
                        file,
                        train_pixels=train.pixels.transpose(0, 2, 3, 1),
                        train_labels=train.labels,
                        test_pixels=test.pixels.transpose(0, 2, 3, 1),
                        test_labels=test.labels,
                        classes=np.array(train.classes),
                        fingerprint=np.array(fingerprint(train, test)),
                    )
    with np.load(on_this_machine(path), allow_pickle=False) as arrays:
        classes = tuple(arrays["classes"].tolist())
        train, test = (
            Images(arrays[f"{part}_pixels"].transpose(0, 3, 1, 2), arrays[f"{part}_labels"], classes)
            for part in ("train", "test")
        )
        return DataSet(train, test, str(arrays["fingerprint"]))


def on_this_machine(path: Path) -> Path:
    """The file, or its copy in the folder that CNNLAB_NODE_DIR names: one for all jobs of a machine, on its disk."""
    if not (folder := os.environ.get("CNNLAB_NODE_DIR")):
        return path
    copy = expand(folder) / path.name  # which is a digest of the content
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(Path(f"{copy}.lock")):
            if not copy.exists():
                with atomic_path(copy) as partial:
                    shutil.copyfile(path, partial)
    return copy


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
        """What decides the pictures, as a SHA-256; quick."""
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
    """A path as a user types it, made absolute."""
    return Path(path).expanduser().absolute()
