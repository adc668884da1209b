"""A folder of pictures, one sub-folder per class: root/train/<class>/* and root/test/<class>/*.

The pictures are decoded once, into a cache named by their content. Reading all files to see whether they changed
takes seconds, so sizes and times of change are compared first, as make does.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import struct
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from PIL import Image, ImageOps

from cnnlab.config import UserError
from cnnlab.data.images import DataSet, Images, cached, expand, make_folder
from cnnlab.records import write_text

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

SUFFIXES = (".jpg", ".jpeg", ".png")
OTHERS = (*SUFFIXES, ".webp", ".bmp", ".gif", ".tif", ".tiff")  # that are looked for to be labelled


class ImageFolder:
    """Pictures of any size, resized and converted to RGB. An object lists the folder once.

    Args:
        root: the folder that holds train/ and test/.
        cache_dir: where the decoded pictures are kept.
        image_size: height and width in pixels; other sizes are resized (bicubic, antialiased).
        unreadable: "stop" with an error at a picture that cannot be decoded, or "skip" and count it.
    """

    name = "image_folder"

    def __init__(self, root: str, cache_dir: str, image_size: int = 32, unreadable: str = "stop"):
        self.root, self.image_size, self.unreadable = expand(root), image_size, unreadable
        self.folder = expand(cache_dir) / "image_folder"
        self._listed: dict[str, dict[str, list[os.DirEntry[str]]]] = {}

    def check(self) -> None:
        """Find the pictures.

        Raises: UserError for a missing folder, a class without pictures, fewer than two classes, or other classes in
            test/ than in train/.
        """
        layout = f"Expected are pictures in {self.root}/train/<class>/ and {self.root}/test/<class>/"
        for part in ("train", "test"):
            if not (self.root / part).is_dir():
                raise UserError(f"data.root={self.root} has no folder {part}/. {layout}.")
            counts = {name: len(files) for name, files in self._files(part).items()}
            if len(counts) < 2:
                found = f"only the class {next(iter(counts))}" if counts else "no class"
                raise UserError(f"{self.root / part} has {found}; a classifier needs two or more. {layout}.")
            if empty := [name for name, count in counts.items() if count == 0]:
                raise UserError(
                    f"{self.root / part / empty[0]} has no picture ({', '.join(SUFFIXES)}). {layout}; delete the folder"
                    f" if the class is not wanted."
                )
        train, test = set(self._files("train")), set(self._files("test"))
        if train != test:
            raise UserError(
                f"The classes in {self.root}/train and {self.root}/test differ: {', '.join(sorted(train ^ test))}. "
                f"{layout}, with the same classes."
            )

    @property
    def num_train(self) -> int:
        return sum(map(len, self._files("train").values()))

    @property
    def num_classes(self) -> int:
        return len(self._files("train"))

    def _files(self, part: str) -> dict[str, list[os.DirEntry[str]]]:
        """The pictures of every class, sorted by name."""
        if part not in self._listed:
            folders = [folder for folder in os.scandir(self.root / part) if folder.is_dir() and folder.name[0] != "."]
            self._listed[part] = {
                folder.name: sorted(filter(is_picture, os.scandir(folder)), key=lambda file: file.name)
                for folder in sorted(folders, key=lambda folder: folder.name)
            }
        return self._listed[part]

    def digest(self) -> str:
        """SHA-256 over names and contents of all pictures, and over how they are converted."""
        return self._digest

    @functools.cached_property
    def _digest(self) -> str:
        files = [file for part in ("train", "test") for names in self._files(part).values() for file in names]
        state = hashlib.sha256(f"{self.image_size} {self.unreadable}".encode())
        for file in files:
            state.update(f"\0{file.path} {self._or_skipped(file, changed)}".encode())
        known = self.folder / f"{state.hexdigest()[:16]}.digest"
        if not known.exists():
            content = hashlib.sha256(f"{self.image_size} {self.unreadable}".encode())
            for file in files:
                content.update(f"\0{Path(file.path).relative_to(self.root)}\0".encode())
                content.update(self._or_skipped(file, lambda file: Path(file.path).read_bytes()) or b"")
            make_folder(self.folder)
            write_text(known, content.hexdigest())
        return known.read_text()

    def load(self) -> DataSet:
        """Read the cached arrays; decode the pictures if there are none."""
        return cached(self.prepared, lambda: (self._decode("train"), self._decode("test")))

    @property
    def prepared(self) -> Path:
        return self.folder / f"{self.digest()[:16]}.npz"

    def _decode(self, part: str) -> Images:
        import numpy as np
        from rich.progress import track

        by_class = self._files(part)
        files = [(file, label) for label, names in enumerate(by_class.values()) for file in names]
        with ThreadPoolExecutor() as pool:
            decoded = list(
                track(
                    pool.map(self._read, (file for file, _ in files)),
                    description=f"decoding {part}",
                    total=len(files),
                )
            )
        labels = np.array([label for (_, label), pixels in zip(files, decoded, strict=True) if pixels is not None])
        for label, name in enumerate(by_class):
            if label not in labels:
                raise UserError(
                    f"No picture in {self.root / part / name} can be read. Replace them or delete the folder."
                )
        pixels = np.stack([pixels for pixels in decoded if pixels is not None])
        if skipped := len(files) - len(pixels):
            print(f"{self.root / part}: {skipped} unreadable pictures skipped.")
        return Images(pixels.transpose(0, 3, 1, 2), labels.astype(np.int64), tuple(by_class))

    def _read(self, file: os.DirEntry[str]) -> np.ndarray | None:
        """One picture as (image_size, image_size, 3) uint8."""
        return self._or_skipped(file, lambda file: read_picture(file.path, self.image_size))

    def _or_skipped(self, file: os.DirEntry[str], read: Callable[[os.DirEntry[str]], T]) -> T | None:
        """What is read from a picture; None if that fails and such pictures are to be skipped."""
        try:
            return read(file)
        except UNREADABLE as error:
            if self.unreadable == "skip":
                return None
            raise UserError(
                f"{file.path} cannot be read as a picture ({type(error).__name__}: {error}). Replace or delete it, "
                f"or type data.unreadable=skip to leave such pictures out."
            ) from error


def is_picture(file: os.DirEntry[str]) -> bool:
    return file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".") and not file.is_dir()


def changed(file: os.DirEntry[str]) -> str:
    """What differs when a file has changed."""
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


# what Pillow raises for a file that is no picture, or half of one
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, struct.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `read_picture` refuses such pictures


def read_picture(path: str | Path, image_size: int) -> np.ndarray:
    """A picture of any size and mode: (image_size, image_size, 3) uint8.

    Upright, as its EXIF data say; transparent parts over black; resized by Pillow's bicubic filter, antialiased, and
    squeezed if it is not square.

    Raises: one of UNREADABLE.
    """
    import numpy as np

    with Image.open(path) as picture:
        if picture.width * picture.height > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"{picture.width} x {picture.height} pixels are more than {Image.MAX_IMAGE_PIXELS:,}")
        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I;16"):  # bits of grey
            upright = Image.fromarray((np.asarray(upright) / 257).clip(0, 255).round().astype(np.uint8))
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "black"), upright)
        rgb = upright.convert("RGB")
    size = (image_size, image_size)
    return np.asarray(rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BICUBIC))


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """The pictures that are named, and those below the folders that are named, in order.

    Raises: UserError for a path that does not exist and a folder without a picture.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist. Type pictures, or folders with pictures.")
        below = sorted(file for file in path.rglob("*") if file.suffix.lower() in OTHERS) if path.is_dir() else [path]
        if not below:
            raise UserError(f"{path} holds no picture ({', '.join(OTHERS)}).")
        found += below
    return found
