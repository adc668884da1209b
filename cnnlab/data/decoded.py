"""Data sets of encoded images: decoded one by one into a file, which is memory-mapped and may exceed the memory."""

import functools
import hashlib
import math
import os
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from PIL import ImageColor
from rich.filesize import decimal

from cnnlab.config.options import UserError
from cnnlab.config.shape import sides
from cnnlab.console import announce_once
from cnnlab.data import decode
from cnnlab.data.content import AnyPath, content_digest, progress
from cnnlab.data.decode import UNREADABLE, Decoded
from cnnlab.data.images import DataSet, Images, cached_data
from cnnlab.runs.wording import duration
from cnnlab.text import say

TRIED = 64  # images, after which the time for all of them is estimated
LONG = 10  # seconds of decoding that are worth a message


class EncodedImages(ABC):
    """Encoded images of any size, which are decoded once and cached under a digest of their content.

    Args:
        folder: of the cache.
        image_size: height and width in pixels, one number or both; other sizes are resized (bicubic, antialiased).
        channels: 3 for RGB, 1 for gray, 4 for RGBA.
        background: color behind transparent images: a name, or #rrggbb.
        unreadable: "stop" with an error at an image that cannot be decoded, or "skip" and count it.
    """

    def __init__(
        self, folder: Path, image_size: int | Sequence[int], channels: int, background: str, unreadable: str = "stop"
    ):
        self.folder, self.size, self.channels = folder, sides(image_size), channels
        self.background, self.unreadable = str(background), unreadable
        ImageColor.getrgb(self.background)  # ValueError: unknown color specifier

    @abstractmethod
    def _content(self) -> tuple[Mapping[str, AnyPath], object]:
        """The files by name, and the settings that decide how they are converted."""

    @abstractmethod
    def _decode(self) -> tuple[Images, Images]:
        """Decode the training and test images."""

    @functools.cached_property
    def _digest(self) -> str:
        announce_once(f"Listing the files of {type(self).__name__}")
        return content_digest(*self._content(), self.folder)

    def digest(self) -> str:
        """SHA-256 over the content of the files, and over how they are converted."""
        return self._digest

    identity = digest  # the location of the files does not matter

    @property
    def prepared(self) -> Path:
        decoder = Path(decode.__file__).read_bytes()
        return self.folder / f"{hashlib.sha256(self.digest().encode() + decoder).hexdigest()[:32]}.images"

    def load(self) -> DataSet:
        """Memory-map the cached arrays; decode the images if there are none."""
        return cached_data(self.prepared, self._decode)

    def decode_one(self, file: BinaryIO | str, name: str, advice: str) -> Decoded | None:
        """Decode an image; None if it is unreadable and to be skipped. Raises: UserError if it is unreadable."""
        target = self.size, self.background, self.channels
        try:
            return decode.read_image(file, *target) if isinstance(file, str) else decode.decode(file, *target)
        except UNREADABLE as error:
            if self.unreadable == "skip":
                return None
            raise UserError(
                f"{name} cannot be read as an image ({type(error).__name__}: {error}). {advice} data.unreadable=skip "
                f"to leave such images out."
            ) from error

    def decode_all(
        self, rows: Iterable[tuple[Decoded | None, int]], num: int, classes: Sequence[str], title: str
    ) -> Images:
        """Write decoded images to an unnamed file and memory-map it; report what was lost and how many were skipped.

        rows: each image, or None for one that is skipped, and its class; `num` in all. title: of the images, for
        messages.

        Raises: UserError if there is not enough disk space.
        """
        import numpy as np

        shape = (*self.size, self.channels)
        num_bytes = num * math.prod(shape)
        needed = f"{title}: {num:,} images of {'x'.join(map(str, shape))} take {decimal(num_bytes)}"
        labels, lost, started = [], Counter[str](), time.monotonic()
        with _unnamed_file(self.folder) as file:
            disk = os.fstatvfs(file.fileno())
            free = disk.f_bavail * disk.f_frsize
            room = f"and twice that while they are decoded; {self.folder} has {decimal(free)}"
            if 2 * num_bytes > free:
                raise UserError(
                    f"{needed}, {room}. Use a smaller data.image_size, or cache_dir=FOLDER on a larger disk."
                )
            try:
                for done, (image, label) in enumerate(progress(rows, title, num), 1):
                    if image:
                        file.write(np.ascontiguousarray(image.pixels).data)
                        labels.append(label)
                        lost[image.lost] += 1
                    if done == TRIED and (seconds := (time.monotonic() - started) / done * num) >= LONG:
                        say(f"{needed}, {room}. Decoding them takes about {duration(seconds)}, once.", file=sys.stderr)
                file.flush()
            except OSError as error:
                raise UserError(f"{needed}, and cannot be written ({error.strerror}). Use cache_dir=FOLDER.") from error
            if not labels:
                raise UserError(f"{title}: none of the images can be read.")
            pixels = np.asarray(np.memmap(file, np.uint8, "r", shape=(len(labels), *shape)))
        if skipped := num - len(labels):
            say(f"{title}: {skipped} unreadable images skipped.")
        for loss, times in lost.items():
            if loss:
                say(f"{title}: {times} images with {loss}.")
        return Images(pixels.transpose(0, 3, 1, 2), np.array(labels, np.int64), tuple(classes))


def _unnamed_file(folder: Path) -> IO[bytes]:
    """A temporary file, in the folder if possible, which vanishes with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:  # the cache reports that nothing can be kept there
        return tempfile.TemporaryFile()
