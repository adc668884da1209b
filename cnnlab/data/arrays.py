"""Images and labels in NumPy files, .npz or .npy, which are memory-mapped in place. Nothing is unpickled."""

from __future__ import annotations

import functools
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.config.shape import Shape
from cnnlab.data.content import content_digest
from cnnlab.data.images import DataSet, Images, cached_data, fingerprint
from cnnlab.runs.cache import cached
from cnnlab.runs.readers import open_regular

if TYPE_CHECKING:
    import numpy as np

NAMES = (("{}_images", "{}_labels"), ("x_{}", "y_{}"), ("images", "labels"), ("x", "y"))  # in an .npz; {} is the part
# What reading raises for a file that is not there, has another format (ValueError, BadZipFile), is cut off (EOFError),
# lacks an array (KeyError), has an unknown compression (NotImplementedError) or is damaged (zlib.error): the file is
# at fault, and is named. Nothing else is caught.
UNREADABLE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class Arrays:
    """Images and labels as arrays.

    Args:
        train: an .npz file with images and labels, named train_images and train_labels, x_train and y_train, images and
            labels, or x and y; or two .npy files, images and labels.
        cache_dir: where converted arrays are kept.
        test: the same for test images; None: they are in the .npz file of the training images.
        classes: the names of the classes, labels or numbers; None: 0, 1, ...
    """

    def __init__(
        self,
        train: str | Sequence[str],
        cache_dir: str,
        test: str | Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
    ):
        self.given, self.shared = {"train": train, "test": train if test is None else test}, test is None
        self.classes, self.folder = classes, expand(cache_dir) / "arrays"
        if isinstance(classes, str) or not isinstance(classes, Sequence | None):
            raise ValueError(f"classes={classes} is not a list of names, [cat,dog]")
        for part, given in self.given.items():
            if not isinstance(given, str) and len(given) != 2:
                raise ValueError(f"{part}={given} is neither an .npz file nor two .npy files, [images.npy,labels.npy]")
        if test is None and not isinstance(train, str):
            raise ValueError("test=null is for test images in the same .npz file. Use test=[images.npy,labels.npy]")

    def check(self) -> None:
        """Check the headers of the arrays, and the labels. Raises: UserError."""
        for part, (images, _) in self._found.items():
            if images.dtype != "uint8" or len(images.shape) not in (3, 4) or not all(images.shape[1:]):
                raise UserError(
                    f"data.{part}: the images in {images} are {images.dtype} of shape {images.shape}, and should be "
                    f"uint8 from 0 to 255, of shape (N,H,W), (N,H,W,C) or (N,C,H,W). Convert them, for example with "
                    f"(255 * images).round().astype('uint8') if they are from 0 to 1."
                )
            self._targets(part)
        targets, numbers = self._targets("train"), self._found["train"][1]
        if targets.ndim == 1 and self.classes is None and len(targets) and targets.min() != 0:
            raise UserError(
                f"data.train: the labels in {numbers} are from {targets.min()} to {targets.max()}, but classes are "
                f"counted from 0. Subtract {targets.min()} from the labels, or give all names, data.classes=[...]."
            )

    @property
    def num_train(self) -> int:
        return self._found["train"][0].shape[0]

    @property
    def shape(self) -> Shape:
        _, *size = self._found["train"][0].shape
        height, width, channels = size if len(size) == 3 else (*size, 1)
        if channels_first(size):
            channels, height, width = size
        targets, names = self._targets("train"), self._names
        return Shape(len(names), channels, height, width, Images(targets, targets, names).task)

    def digest(self) -> str:
        """A digest of the content of the files."""
        return self._digest

    identity = digest  # the location of the files does not matter

    @functools.cached_property
    def _digest(self) -> str:
        files = {
            f"{part} {number} {array.member}": array.path
            for part, found in self._found.items()
            for number, array in enumerate(found)
        }
        return content_digest(files, self.classes, self.folder)

    @property
    def prepared(self) -> Path:
        return self.folder / f"{self.digest()[:32]}.images"

    def load(self) -> DataSet:
        """Memory-map the arrays; those that cannot be mapped are converted once."""
        if all(images.offset is not None and images.as_stored for images, _ in self._found.values()):
            train, test = self._images()
            known = cached(
                self.prepared.with_suffix(".fingerprint"),
                lambda: fingerprint(train, test).encode(),
                lambda sha, file: file.write(sha),
                lambda file: file.read(64),
            )
            return DataSet(train, test, known.decode())
        return cached_data(self.prepared, self._images)

    def _images(self) -> tuple[Images, Images]:
        train, test = (
            Images(images.pixels().transpose(0, 3, 1, 2), self._targets(part), self._names)
            for part, (images, _) in self._found.items()
        )
        return train, test

    @functools.cached_property
    def _found(self) -> dict[str, tuple[Stored, Stored]]:
        """Images and labels of each part. Raises: UserError for files that cannot be read."""
        return {part: self._find(part, given) for part, given in self.given.items()}

    def _find(self, part: str, given: str | Sequence[str]) -> tuple[Stored, Stored]:
        paths = [expand(path) for path in ([given] if isinstance(given, str) else given)]
        try:
            if len(paths) == 2:
                return stored(paths[0]), stored(paths[1])
            with open_regular(paths[0]) as file, zipfile.ZipFile(file) as archive:
                members = [name.removesuffix(".npy") for name in archive.namelist()]
            names = NAMES[:2] if part == "test" and self.shared else NAMES  # the others are the training images
            wanted = [(images.format(part), labels.format(part)) for images, labels in names]
            for images, labels in wanted:
                if images in members and labels in members:
                    return stored(paths[0], images), stored(paths[0], labels)
        except UNREADABLE as error:
            raise UserError(
                f"data.{part}={given} cannot be read ({type(error).__name__}: {error}). Give an .npz file with images "
                f"and labels, or two .npy files, data.{part}=[images.npy,labels.npy]."
            ) from error
        raise UserError(
            f"data.{part}={given} contains {', '.join(members)}, and needs images and labels called "
            f"{', or '.join(' and '.join(pair) for pair in wanted)}"
            f"{'; or set data.test to another file' * (part == 'test' and self.shared)}."
        )

    def _targets(self, part: str) -> np.ndarray:
        """(N,) int64 or (N, K) float32."""
        import numpy as np

        numbers = self._found[part][1]
        if numbers.dtype.kind not in "biuf" or len(numbers.shape) not in (1, 2):
            raise UserError(
                f"data.{part}: the labels in {numbers} are {numbers.dtype} of shape {numbers.shape}, and should be "
                f"numbers of shape (N,), or (N,K) for several labels or numbers. Convert names to numbers, and give "
                f"data.classes."
            )
        array = numbers.array()
        if array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "biu":
            array = array[:, 0]
        if array.ndim == 1 and array.dtype.kind in "biu":
            return array.astype(np.int64)
        return array.astype(np.float32) if array.ndim == 2 else array.astype(np.float32)[:, None]

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        targets = self._targets("train")
        num = targets.shape[1] if targets.ndim == 2 else int(targets.max(initial=-1)) + 1
        return tuple(map(str, range(num) if self.classes is None else self.classes))


class Stored(NamedTuple):
    """An array in a file.

    Attributes:
        path, member: the file, and the array's name in it if it is an .npz.
        by_columns: whether it is in Fortran order.
        offset: of the data, in bytes; None: it is compressed and cannot be mapped.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool
    offset: int | None

    def __str__(self) -> str:
        return f"{self.path}{self.member and f', {self.member},'}"

    @property
    def as_stored(self) -> bool:
        """Whether images are stored as (N, H, W, C)."""
        return not self.by_columns and not channels_first(self.shape[1:])

    def array(self) -> np.ndarray:
        import numpy as np

        if self.offset is None:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.member}.npy") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        shape = self.shape[::-1] if self.by_columns else self.shape
        mapped: Any = np.memmap(self.path, self.dtype, "r", self.offset, shape)
        return np.asarray(mapped.T if self.by_columns else mapped)

    def pixels(self) -> np.ndarray:
        """(N, H, W, C) uint8."""
        array = self.array()
        if array.ndim == 3:
            return array[..., None]
        return array.transpose(0, 2, 3, 1) if channels_first(self.shape[1:]) else array


def channels_first(size: Sequence[int]) -> bool:
    """Whether the shape of an image is (C, H, W), and not (H, W, C) or (H, W): it is square, or has few channels."""
    if len(size) != 3:
        return False
    first, middle, last = size
    if first == middle > 4:  # fewer are channels
        return False
    return first < last or middle == last > 4


def stored(path: Path, member: str = "") -> Stored:
    """Read the header of an array. Raises: one of UNREADABLE."""
    import numpy as np

    def header(opened: IO[bytes], start: int | None) -> Stored:
        version = np.lib.format.read_magic(opened)
        if version != (1, 0):
            raise ValueError(f"version {version} of the format is not supported")
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(opened)
        if dtype.hasobject:
            raise ValueError("it holds objects, whose pickles can run code, and not numbers")
        return Stored(path, member, shape, dtype, by_columns, None if start is None else start + opened.tell())

    with open_regular(path) as file:
        if not member:
            return header(file, 0)
        with zipfile.ZipFile(file) as archive, archive.open(f"{member}.npy") as inside:
            info = archive.getinfo(f"{member}.npy")
            file.seek(info.header_offset + 26)  # of the local file header, where the lengths of its last fields are
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            start = info.header_offset + 30 + name_length + extra_length
            return header(inside, start if info.compress_type == zipfile.ZIP_STORED else None)
