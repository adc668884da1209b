"""A data set of one's own: images of any number of channels, height and width, for any kind of target."""

import hashlib
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from cnnlab.data.fetched import Fetched
from cnnlab.data.images import DataSet, Images, fingerprint


class Bars:
    """One bright vertical bar on noise, down to the lower edge, and what is asked about it.

    Args:
        channels, height, width: of the images.
        num_classes: places of the bar's upper end, row by row; there are width of them in a row.
        task: what is asked: "multiclass", which place it has; "multilabel", whether it is left of the middle, and
            whether it is bright; "regression", where it is, from 0 to 1, and how bright.
        num_train, num_test: numbers of images.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        num_classes: int,
        task: str,
        num_train: int = 2000,
        num_test: int = 400,
    ):
        if task not in ("multiclass", "multilabel", "regression"):
            raise ValueError(f"task={task} is none of multiclass, multilabel, regression")
        self.channels, self.height, self.width = channels, height, width
        self.num_classes, self.task, self.num_train, self.num_test = num_classes, task, num_train, num_test

    def digest(self) -> str:
        """What decides the images: the arguments and this file."""
        return hashlib.sha256(repr(sorted(vars(self).items())).encode() + Path(__file__).read_bytes()).hexdigest()

    def load(self) -> DataSet:
        parts = [
            self._draw(np.random.default_rng(seed), num) for seed, num in enumerate((self.num_train, self.num_test))
        ]
        return DataSet(*parts, fingerprint(*parts))

    def _draw(self, generator: np.random.Generator, num: int) -> Images:
        row, column = np.divmod(np.arange(num) % self.num_classes, self.width)  # where it begins
        place = column / self.width
        brightness = generator.uniform(100, 200, num)
        pixels = generator.integers(0, 60, (num, self.channels, self.height, self.width)).astype(np.float64)
        below = np.arange(self.height) >= 4 * row[:, None]  # (N, H)
        pixels[np.arange(num), :, :, column] += (below * brightness[:, None])[:, None]
        images = pixels.astype(np.uint8)
        if self.task == "multiclass":
            names = tuple(f"place {number}" for number in range(self.num_classes))
            return Images(images, np.arange(num) % self.num_classes, names)
        if self.task == "multilabel":
            labels = np.stack((place < 0.5, brightness > 150), 1)
            return Images(images, labels.astype(np.float32), ("left", "bright"))
        return Images(images, np.stack((place, brightness / 200), 1).astype(np.float32), ("place", "brightness"))


class Moved(Dataset):
    """Images that are made when they are asked for, each moved sideways at random; files would be decoded here."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images.targets)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.roll(self.images.pixels[index], np.random.randint(-2, 3), axis=2)


class OnTheFly(Bars):
    """The same bars, fetched by worker processes.

    Args:
        num_workers: how many.
    """

    def __init__(self, num_workers: int = 2, num_train: int = 2000, num_test: int = 400):
        super().__init__(3, 24, 32, 32, "multiclass", num_train, num_test)
        self.num_workers = num_workers

    def digest(self) -> str:
        return hashlib.sha256(f"{self.num_train} {self.num_test}".encode() + Path(__file__).read_bytes()).hexdigest()

    def load(self) -> DataSet:
        whole = super().load()
        parts = [
            Images(Fetched(Moved(images), images.pixels.shape[1:], self.num_workers), images.targets, images.classes)
            for images in (whole.train, whole.test)
        ]
        return DataSet(*parts, self.digest())
