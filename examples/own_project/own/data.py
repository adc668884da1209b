"""Data sets of a project: generated images of any number of channels, height and width, with any kind of target."""

import hashlib
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from cnnlab.data.fetched import Fetched
from cnnlab.data.images import DataSet, Images, fingerprint


class Bars:
    """Noise with one bright vertical bar that reaches down to the lower edge.

    Args:
        channels, height, width: of the images.
        num_classes: number of positions of the bar's upper end, counted row by row, `width` of them in each row.
        task: what the targets are. "multiclass": the position; "multilabel": whether the bar is left of the middle, and
            whether it is bright; "regression": its column, from 0 to 1, and its brightness.
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
            raise ValueError(f"task={task} is not one of multiclass, multilabel, regression")
        self.channels, self.height, self.width = channels, height, width
        self.num_classes, self.task, self.num_train, self.num_test = num_classes, task, num_train, num_test

    def digest(self) -> str:
        """A hash of everything that decides the images: the arguments and this file."""
        return hashlib.sha256(repr(sorted(vars(self).items())).encode() + Path(__file__).read_bytes()).hexdigest()

    def load(self) -> DataSet:
        train = self._draw(np.random.default_rng(0), self.num_train)
        test = self._draw(np.random.default_rng(1), self.num_test)
        return DataSet(train, test, fingerprint(train, test))

    def _draw(self, generator: np.random.Generator, num: int) -> Images:
        row, column = np.divmod(np.arange(num) % self.num_classes, self.width)  # of the upper end
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
    """Images made on demand, each shifted sideways at random. A real data set would decode files here."""

    def __init__(self, images: Images, most: int = 2):
        self.images, self.most = images, most

    def __len__(self) -> int:
        return len(self.images.targets)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.roll(self.images.pixels[index], np.random.randint(-self.most, self.most + 1), axis=2)


class OnTheFly(Bars):
    """The same bars, loaded by worker processes.

    Args:
        num_workers: number of worker processes.
    """

    def __init__(self, num_workers: int = 2, num_train: int = 2000, num_test: int = 400):
        super().__init__(3, 24, 32, 32, "multiclass", num_train, num_test)
        self.num_workers = num_workers

    def digest(self) -> str:
        return hashlib.sha256(f"{self.num_train} {self.num_test}".encode() + Path(__file__).read_bytes()).hexdigest()

    def load(self) -> DataSet:
        whole = super().load()
        shape, still = whole.train.pixels.shape[1:], Moved(whole.train, most=0)
        train = Fetched(Moved(whole.train), shape, self.num_workers, evaluated=still)
        test = Fetched(Moved(whole.test, most=0), shape, self.num_workers)
        return DataSet(
            Images(train, whole.train.targets, whole.train.classes),
            Images(test, whole.test.targets, whole.test.classes),
            self.digest(),
        )
