"""MNIST and Fashion-MNIST: arrays in the IDX format, compressed.

Sources: Y. LeCun, C. Cortes and C. Burges, The MNIST Database of Handwritten Digits, 1998; H. Xiao, K. Rasul and
R. Vollgraf, Fashion-MNIST, 2017.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from cnnlab.config.shape import Shape
from cnnlab.data.images import Images
from cnnlab.data.published import Published

if TYPE_CHECKING:
    import numpy as np


class MNIST(Published):
    """60,000 training and 10,000 test images of handwritten digits, 28x28, grayscale."""

    title, name = "MNIST", "mnist"
    files = (
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    )
    num_train = 60_000
    shape = Shape(num_classes=10, channels=1, height=28, width=28)
    classes = tuple("0123456789")

    @classmethod
    def read(cls, *files: Path) -> tuple[Images, Images]:
        arrays = [read_idx(file) for file in files]
        train, test = (
            Images(images[:, None], labels.astype("int64"), cls.classes) for images, labels in (arrays[:2], arrays[2:])
        )
        return train, test


class FashionMNIST(MNIST):
    """60,000 training and 10,000 test images of clothing, 28x28, grayscale."""

    title, name = "Fashion-MNIST", "fashion_mnist"
    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes in the IDX format. Raises: ValueError, struct.error for anything else."""
    import numpy as np

    with gzip.open(path) as file:
        content = file.read()
    zero, kind, num_dimensions = struct.unpack_from(">HBB", content)
    if (zero, kind) != (0, 8):
        raise ValueError(f"{path.name} is not an array of bytes")
    shape = struct.unpack_from(f">{num_dimensions}I", content, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(shape)
