"""Images decoded one after the other into a file, which is then mapped: there may be more of them than memory."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import track

from cnnlab.config.options import UserError
from cnnlab.text import say

if TYPE_CHECKING:
    import numpy as np

S = TypeVar("S")
T = TypeVar("T")

TRIED = 64  # images, after which is said how long all of them take
LONG = 10  # seconds: what takes less is not worth a line


def decoded_into(
    folder: Path, images: Iterable[np.ndarray | None], num: int, size: tuple[int, int, int], what: str
) -> np.ndarray:
    """The images, mapped: (n, H, W, C) uint8.

    While they are made, they are in a file without a name; what is left of it when the process ends is nobody's.

    folder: where the file is, if it can be there. images: each (H, W, C) uint8, or None for one that is left out; `num`
    in all. size: (H, W, C). what: they are, in words.

    Raises: UserError if the disk has no room for them.
    """
    import numpy as np

    num_bytes = num * size[0] * size[1] * size[2]
    needed = f"{what}: {num:,} images of {size[0]}x{size[1]}x{size[2]} take {num_bytes / 1e9:,.1f} GB"
    kept, begun = 0, time.monotonic()
    with _scratch(folder) as file:
        where = os.fstatvfs(file.fileno())
        free = where.f_bavail * where.f_frsize
        room = f"and twice that while they are made; {folder} has {free / 1e9:,.1f}"
        if 2 * num_bytes > free:
            raise UserError(f"{needed}, {room}. Use a smaller data.image_size, or cache_dir=FOLDER on a larger disk.")
        try:
            for done, image in enumerate(progress(images, what, num), 1):
                if image is not None:
                    assert image.shape == size
                    assert image.dtype == np.uint8
                    file.write(image.data if image.flags.c_contiguous else image.tobytes())
                    kept += 1
                if done == TRIED and (seconds := (time.monotonic() - begun) / done * num) >= LONG:
                    say(f"{needed}, {room}. Decoding them takes about {duration(seconds)}, once.", file=sys.stderr)
            file.flush()
        except OSError as error:
            raise UserError(f"{needed}, and cannot be written ({error.strerror}). Use cache_dir=FOLDER.") from error
        if not kept:
            return np.empty((0, *size), np.uint8)
        return np.asarray(np.memmap(file, np.uint8, "r", shape=(kept, *size)))


def _scratch(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:  # that nothing is kept there is said by the cache
        return tempfile.TemporaryFile()


def in_threads(do: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """What is made of each item, in order; not far ahead of whoever takes it, so that it does not pile up."""
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(items), 1024):
            yield from pool.map(do, items[first : first + 1024])


def duration(seconds: float) -> str:
    """Roughly, in words."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def progress(steps: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Show on the terminal how far something is."""
    console = Console(stderr=True)
    return track(steps, description, total, console=console, transient=True, disable=not console.is_terminal)
