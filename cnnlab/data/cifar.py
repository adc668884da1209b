"""CIFAR-10 and CIFAR-100: archives of pickles. Even from verified archives, only arrays are unpickled.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.config.shape import Shape
from cnnlab.data.guard import ARRAYS
from cnnlab.data.images import Images
from cnnlab.data.published import Published

if TYPE_CHECKING:
    import numpy as np


class CIFAR10(Published):
    """50,000 training and 10,000 test images of 32x32 in ten classes."""

    title, name, files = "CIFAR-10", "cifar10", ("cifar-10-python.tar.gz",)
    num_train = 50_000
    shape = Shape(num_classes=10, channels=3, height=32, width=32)

    @staticmethod
    def read(*files: Path) -> tuple[Images, Images]:
        batches = [f"data_batch_{number}" for number in range(1, 6)]
        return read_archive(files[0], batches, ["test_batch"], "batches.meta", "labels", "label_names")


class CIFAR100(Published):
    """50,000 training and 10,000 test images of 32x32 in the hundred fine classes."""

    title, name, files = "CIFAR-100", "cifar100", ("cifar-100-python.tar.gz",)
    num_train = 50_000
    shape = Shape(num_classes=100, channels=3, height=32, width=32)

    @staticmethod
    def read(*files: Path) -> tuple[Images, Images]:
        return read_archive(files[0], ["train"], ["test"], "meta", "fine_labels", "fine_label_names")


class _Array:
    """Replaces NumPy's arrays and types in a pickle, which can be made to read foreign memory."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state  # of an array: version, shape, type, whether in Fortran order, bytes

    def rows(self) -> np.ndarray:
        import numpy as np

        return np.frombuffer(self.state[4], np.uint8).reshape(self.state[1])


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers, bytes and arrays of bytes, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of images")
        if name == "encode":  # how Python 3 pickles bytes for Python 2
            return lambda text, encoding: text.encode("latin1")
        return _Array


def read_archive(
    archive: Path, train: Sequence[str], test: Sequence[str], meta: str, labels: str, label_names: str
) -> tuple[Images, Images]:
    """Training and test images from a verified archive in the official format, without writing to disk.

    train, test, meta: the names of its files. labels, label_names: keys in these files.
    """
    import numpy as np

    files: dict[str, dict[Any, Any]] = {}
    with tarfile.open(archive, "r|gz") as tar:  # in one pass: 1.8 s; file by file, 5.4 s
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            if folder.startswith("cifar-") and name in (*train, *test, meta) and (file := tar.extractfile(member)):
                files[name] = _ArrayUnpickler(io.BytesIO(file.read()), encoding="bytes").load()
    classes = tuple(name.decode() for name in files[meta][label_names.encode()])

    def images(names: Sequence[str]) -> Images:
        pixels = np.concatenate([files[name][b"data"].rows() for name in names]).reshape(-1, 3, 32, 32)
        targets = np.concatenate([files[name][labels.encode()] for name in names]).astype(np.int64)
        return Images(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), targets, classes)

    return images(train), images(test)
