"""Image files: which files are images, and how one becomes an array of pixels. Imports NumPy when a file is decoded."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from PIL import Image, ImageOps

from cnnlab.config.options import UserError
from cnnlab.runs.readers import open_regular

if TYPE_CHECKING:
    import numpy as np

FORMATS = {  # as Pillow names them; it tries no other, whatever a file is called: some run programs
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_SIDE = 65_535  # pixels, JPEG's own limit
MAX_PIXELS = 89_478_485  # Pillow's own limit
MAX_BYTES = 3 * MAX_PIXELS
LARGE = 16_000_000  # pixels: larger images are decoded one at a time, as each may need a gigabyte
_large = threading.Lock()
Image.core.set_block_size(64 << 20)  # above 32 MiB, glibc gives memory back when it is freed: 0.4 GB instead of 1.9

# What Pillow raises for a file that is no image, or half of one. 245,000 files of these formats, damaged at random,
# gave OSError, ValueError, SyntaxError, IndexError and DecompressionBombError; the plugins' own code, which parses with
# struct and zlib and has assertions, can raise the rest. Not MemoryError: the size is bounded, so it is a fault of the
# machine, and a sound image would be skipped for it.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, AttributeError, AssertionError),
    *(ArithmeticError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `read_image` refuses such images


class Decoded(NamedTuple):
    """An image, (H, W, C) uint8, and what was lost when it was decoded, in words."""

    pixels: np.ndarray
    lost: str


MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of images of so many channels, as Pillow names them


def read_image(
    path: str | os.PathLike[str], size: tuple[int, int], background: str = "black", channels: int = 3
) -> Decoded:
    """Decode an image file of any size and mode, see `decode`. Raises: one of UNREADABLE."""
    with open_image(path) as file:
        return decode(file, size, background, channels)


def decode(file: BinaryIO, size: tuple[int, int], background: str = "black", channels: int = 3) -> Decoded:
    """An image of any size and mode, as `converted` has it; 16 bits of grey are scaled to 8.

    Raises: one of UNREADABLE, also for grey values of 32 bits or floating point, whose range nobody knows.
    """
    with Image.open(file, formats=list(FORMATS)) as image:
        if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}, or than {MAX_SIDE:,} on a side"
            )
        lost = ""
        if image.format != "MPO" and getattr(image, "is_animated", False):  # an MPO holds one photo several times
            lost = "several frames, of which only the first is used"
        elif image.mode == "CMYK":
            lost = "CMYK colors, which are converted without a color profile"
        with _large if image.width * image.height > LARGE else nullcontext():
            return Decoded(converted(image, size, background, channels), lost)


def converted(image: Image.Image, size: tuple[int, int], background: str = "black", channels: int = 3) -> np.ndarray:
    """The pixels of an image, (H, W, C) uint8.

    It is upright, as its EXIF data say. Transparent parts show the background. It is resized by Pillow's bicubic
    filter, antialiased, and squeezed if it has other proportions.

    size: height and width. background: a name or #rrggbb, as CSS has them. channels: 3 for RGB, 1 for grey, 4 for RGBA.
    """
    import numpy as np

    upright = _upright(image, background, MODES[channels])
    if upright.size != size[::-1]:
        upright = upright.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(upright).reshape(*size, channels)


def _upright(image: Image.Image, background: str, mode: str) -> Image.Image:
    import numpy as np

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F"):
        raise ValueError(f"grey values of 32 bits (Pillow's mode {image.mode}): save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # rounded; 65,535 becomes 255
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image if image.mode == mode else image.convert(mode)


def open_image(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file as far as it can be an image at all. Raises: OSError, ValueError."""
    file = open_regular(path)
    if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
        file.close()
        raise ValueError(f"{size:,} bytes are more than {MAX_BYTES:,}")
    return file


class Found(NamedTuple):
    """Image files, in order; and how many other files there were, by suffix."""

    images: list[str]
    others: Counter[str]


def images_below(folder: str | os.PathLike[str]) -> Found:
    """The image files in a folder and in its sub-folders, each of which is listed once.

    Links are followed. Names that begin with a dot are hidden, and so is what lies below them. The order is that of
    the names' bytes, folder by folder, in any locale.

    Raises: OSError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = Found([], Counter())
    listed = set()
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in listed:
            folders.clear()
            continue
        listed.add((status.st_dev, status.st_ino))
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=os.fsencode)
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                found.images.append(os.path.join(parent, name))
            else:
                found.others[suffix or "no suffix"] += 1
    found.images.sort(key=lambda path: os.fsencode(path).split(b"/"))
    return found


def images_in(paths: Sequence[Path]) -> Found:
    """The images that are named, and those below the folders that are named, in order.

    Raises: UserError for a path that does not exist and a folder without an image.
    """
    images, others = Found([], Counter())
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist. Pass images, or folders with images.")
        below = images_below(path) if path.is_dir() else Found([str(path)], Counter())
        if not below.images:
            raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)}).")
        images += below.images
        others += below.others
    return Found(images, others)


def described(others: Counter[str]) -> str:
    """Files that are no images, in words: "12 files are not images (.txt 10, .heic 2)"."""
    kinds = ", ".join(f"{suffix} {num:,}" for suffix, num in others.most_common(5))
    return f"{others.total():,} files are not images ({kinds}{', ...' if len(others) > 5 else ''})"
