"""Finding image files, and decoding them into arrays of pixels. Does not import NumPy before a file is decoded."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from PIL import Image, ImageOps

from cnnlab.config.options import UserError
from cnnlab.runs.readers import open_regular

if TYPE_CHECKING:
    import numpy as np

FORMATS = {  # Pillow's names; no other format is tried, whatever a file's suffix: some start programs
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
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names by number of channels
_large = threading.Lock()
Image.core.set_block_size(64 << 20)  # glibc returns freed blocks above 32 MiB: 0.4 GB of memory instead of 1.9

# What Pillow raises for files that are not images, or damaged. 245,000 randomly damaged files of these formats raised
# OSError, ValueError, SyntaxError, IndexError and DecompressionBombError; the plugins, which use struct, zlib and
# assertions, can raise the rest. Not MemoryError: sizes are bounded, so it is the machine's fault, not the image's.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, AttributeError, AssertionError),
    *(ArithmeticError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `read_image` refuses such images


class Decoded(NamedTuple):
    """An image, (H, W, C) uint8, and what was lost in decoding it, in words."""

    pixels: np.ndarray
    lost: str


def read_image(
    path: str | os.PathLike[str], size: tuple[int, int], background: str = "black", channels: int = 3
) -> Decoded:
    """Decode an image file, see `decode`. Raises: one of UNREADABLE."""
    with open_regular(path) as file:
        if (num_bytes := os.fstat(file.fileno()).st_size) > MAX_BYTES:
            raise ValueError(f"{num_bytes:,} bytes are more than {MAX_BYTES:,}")
        return decode(file, size, background, channels)


def decode(file: BinaryIO, size: tuple[int, int], background: str = "black", channels: int = 3) -> Decoded:
    """Decode an image of any size and mode, see `converted`. Raises: one of UNREADABLE."""
    with Image.open(file, formats=list(FORMATS)) as image:
        if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}, or than {MAX_SIDE:,} on a side"
            )
        lost = ""
        if image.format != "MPO" and getattr(image, "is_animated", False):  # an MPO holds several versions of one photo
            lost = "several frames, of which only the first is used"
        elif image.mode == "CMYK":
            lost = "CMYK colors, which are converted without a color profile"
        with _large if image.width * image.height > LARGE else nullcontext():
            return Decoded(converted(image, size, background, channels), lost)


def converted(image: Image.Image, size: tuple[int, int], background: str = "black", channels: int = 3) -> np.ndarray:
    """The pixels of an image, (H, W, C) uint8.

    It is rotated upright by its EXIF data and resized, without keeping its aspect ratio, by Pillow's antialiased
    bicubic filter. Transparent parts show the background. 16-bit gray is scaled to 8 bits.

    size: height and width. background: a name or #rrggbb, as in CSS. channels: 3 for RGB, 1 for gray, 4 for RGBA.

    Raises: ValueError for 32-bit or floating-point gray, whose range is unknown.
    """
    import numpy as np

    mode = MODES[channels]
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F"):
        raise ValueError(f"gray values of 32 bits (Pillow's mode {image.mode}): save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((gray + 128) // 257).astype(np.uint8))  # rounded; 65,535 becomes 255
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(*size, channels)


class Found(NamedTuple):
    """Image files in order, and the number of other files by suffix."""

    images: list[str]
    others: Counter[str]


def images_below(folder: str | os.PathLike[str]) -> Found:
    """The image files in a folder and its sub-folders, each of which is listed once.

    Links are followed, and hidden files and folders skipped. Files are sorted by the bytes of their names, folder by
    folder, which is the same order in any locale.

    Raises: OSError for a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise error

    found = Found([], Counter())
    listed = set()
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
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
    """The given images, and those below the given folders, in order.

    Raises: UserError for a path that does not exist, or a folder without images.
    """
    images, others = Found([], Counter())
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist. Pass images, or folders with images.")
        below = images_below(path) if path.is_dir() else Found([str(path)], Counter())
        if not below.images:
            raise UserError(f"{path} contains no images ({', '.join(SUFFIXES)}).")
        images += below.images
        others += below.others
    return Found(images, others)


def described(others: Counter[str]) -> str:
    """Files that are not images, in words: "12 files are not images (.txt 10, .heic 2)"."""
    kinds = ", ".join(f"{suffix} {num:,}" for suffix, num in others.most_common(5))
    return f"{others.total():,} files are not images ({kinds}{', ...' if len(others) > 5 else ''})"
