"""STL-10: an archive of raw bytes, with each channel of an image stored column by column.

Source: A. Coates, H. Lee and A. Ng, An Analysis of Single-Layer Networks in Unsupervised Feature Learning, 2011.
"""

import tarfile
from pathlib import Path

from cnnlab.config.shape import Shape
from cnnlab.data.images import Images
from cnnlab.data.published import Published


class STL10(Published):
    """5,000 training and 8,000 test images of 96x96 in ten classes. The 100,000 images without labels are not used."""

    title, name, files = "STL-10", "stl10", ("stl10_binary.tar.gz",)
    num_train = 5_000
    shape = Shape(num_classes=10, channels=3, height=96, width=96)

    @staticmethod
    def read(*files: Path) -> tuple[Images, Images]:
        import numpy as np

        wanted = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "class_names.txt")
        content: dict[str, bytes] = {}
        with tarfile.open(files[0], "r|gz") as tar:
            for member in tar:
                name = member.name.removeprefix("stl10_binary/")
                if name in wanted and (file := tar.extractfile(member)):
                    content[name] = file.read()
                if len(content) == len(wanted):
                    break
        classes = tuple(content["class_names.txt"].decode().split())

        def images(part: str) -> Images:
            stored = np.frombuffer(content[f"{part}_X.bin"], np.uint8).reshape(-1, 3, 96, 96)  # (N, C, W, H)
            labels = np.frombuffer(content[f"{part}_y.bin"], np.uint8).astype(np.int64) - 1
            return Images(np.ascontiguousarray(stored.transpose(0, 3, 2, 1)).transpose(0, 3, 1, 2), labels, classes)

        return images("train"), images("test")
