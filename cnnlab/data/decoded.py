"""Images decoded one after the other into a file, which is then mapped: there may be more of them than memory."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

from rich.console import Console
from rich.progress import track

from cnnlab.config.options import UserError
from cnnlab.data.decode import Decoded
from cnnlab.data.images import Images
from cnnlab.runs.wording import duration
from cnnlab.text import say

S = TypeVar("S")
T = TypeVar("T")

TRIED = 64  # images, after which is said how long all of them take
LONG = 10  # seconds: what takes less is not worth a line


def decoded_images(
    folder: Path,
    rows: Iterable[tuple[Decoded | None, int]],
    num: int,
    size: tuple[int, int, int],
    classes: Sequence[str],
    what: str,
) -> Images:
    """Images in a file, mapped. What was lost, and how many were left out, is told.

    While they are made, the file has no name; what is left of it when the process ends is nobody's.

    folder: where the file is, if it can be there. rows: each image, (H, W, C) uint8, or None for one that is left out,
    and its class; `num` in all. size: (H, W, C). what: they are, in words.

    Raises: UserError if the disk has no room for them.
    """
    import numpy as np

    num_bytes = num * math.prod(size)
    needed = f"{what}: {num:,} images of {size[0]}x{size[1]}x{size[2]} take {num_bytes / 1e9:,.1f} GB"
    labels, lost, begun = [], Counter[str](), time.monotonic()
    with _scratch(folder) as file:
        where = os.fstatvfs(file.fileno())
        free = where.f_bavail * where.f_frsize
        room = f"and twice that while they are made; {folder} has {free / 1e9:,.1f}"
        if 2 * num_bytes > free:
            raise UserError(f"{needed}, {room}. Use a smaller data.image_size, or cache_dir=FOLDER on a larger disk.")
        try:
            for done, (image, label) in enumerate(progress(rows, what, num), 1):
                if image:
                    assert image.pixels.shape == size
                    file.write(np.ascontiguousarray(image.pixels).data)
                    labels.append(label)
                    lost[image.lost] += 1
                if done == TRIED and (seconds := (time.monotonic() - begun) / done * num) >= LONG:
                    say(f"{needed}, {room}. Decoding them takes about {duration(seconds)}, once.", file=sys.stderr)
            file.flush()
        except OSError as error:
            raise UserError(f"{needed}, and cannot be written ({error.strerror}). Use cache_dir=FOLDER.") from error
        if not labels:
            raise UserError(f"{what}: no image can be read.")
        pixels = np.asarray(np.memmap(file, np.uint8, "r", shape=(len(labels), *size)))
    if skipped := num - len(labels):
        say(f"{what}: {skipped} unreadable images skipped.")
    for loss, times in lost.items():
        if loss:
            say(f"{what}: {times} images with {loss}.")
    return Images(pixels.transpose(0, 3, 1, 2), np.array(labels, np.int64), tuple(classes))


def _scratch(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError:  # that nothing is kept there is said by the cache
        return tempfile.TemporaryFile()


def in_threads(do: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """What is made of each item, in order; not far ahead of whoever takes it, so that it does not pile up."""
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(items), 64):
            yield from pool.map(do, items[first : first + 64])


def progress(steps: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Show on the terminal how far something is."""
    console = Console(stderr=True)
    return track(steps, description, total, console=console, transient=True, disable=not console.is_terminal)
