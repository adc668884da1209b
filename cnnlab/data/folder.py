"""A folder of images, one sub-folder per class: root/train/<class>/** and root/test/<class>/**.

The images are decoded once, into a cache named by their content. Reading all files to see whether they have changed
takes seconds, so sizes and times of change are compared first, as make does.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import ImageColor
from rich.console import Console
from rich.progress import track

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.config.shape import Shape
from cnnlab.data import decode
from cnnlab.data.decode import SUFFIXES, UNREADABLE, Decoded, described, images_below, open_image, read_image
from cnnlab.data.images import DataSet, Images, cached_data
from cnnlab.runs.cache import cached
from cnnlab.text import say

PARTS = ("train", "test")


class ImageFolder:
    """Images of any size, resized and converted to RGB. An object lists the folder once.

    Args:
        root: the folder that holds train/ and test/.
        cache_dir: where the decoded images are kept.
        image_size: height and width in pixels; other sizes are resized (bicubic, antialiased).
        unreadable: "stop" with an error at an image that cannot be decoded, or "skip" and count it.
        background: what shows where an image is transparent: the name of a color, or #rrggbb.
    """

    def __init__(
        self, root: str, cache_dir: str, image_size: int = 32, unreadable: str = "stop", background: str = "black"
    ):
        self.root, self.image_size = expand(str(root)), image_size
        self.unreadable, self.background = unreadable, str(background)
        self.folder = expand(cache_dir) / "image_folder"
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._left_out: Counter[str] = Counter()
        ImageColor.getrgb(self.background)  # ValueError: unknown color specifier

    def check(self) -> None:
        """Find the images; report files that are none.

        Raises: UserError for a missing or unreadable folder, a class without images, fewer than two classes, or other
            classes in test/ than in train/.
        """
        layout = f"Expected are images in {self.root}/train/<class>/ and {self.root}/test/<class>/"
        for part in PARTS:
            if not (self.root / part).is_dir():
                raise UserError(f"data.root={self.root} has no folder {part}/. {layout}.")
            counts = {name: len(files) for name, files in self._files(part).items()}
            if len(counts) < 2:
                found = f"only the class {next(iter(counts))}" if counts else "no class"
                raise UserError(f"{self.root / part} has {found}; a classifier needs two or more. {layout}.")
            if empty := [name for name, count in counts.items() if count == 0]:
                raise UserError(
                    f"{self.root / part / empty[0]} has no image ({', '.join(SUFFIXES)}). {layout}; delete the folder"
                    f" if the class is not wanted."
                )
        train, test = set(self._files("train")), set(self._files("test"))
        if train != test:
            raise UserError(
                f"The classes in {self.root}/train and {self.root}/test differ: {', '.join(sorted(train ^ test))}. "
                f"{layout}, with the same classes."
            )
        if self._left_out:
            say(f"{self.root}: {described(self._left_out)} and were left out.", file=sys.stderr)
            self._left_out.clear()

    @property
    def num_train(self) -> int:
        return sum(map(len, self._files("train").values()))

    @property
    def shape(self) -> Shape:
        return Shape(len(self._files("train")), 3, self.image_size, self.image_size)

    def _files(self, part: str) -> dict[str, list[str]]:
        """The paths of the images of every class, in the order of the bytes of their names.

        Raises: UserError for a folder that cannot be listed.
        """
        if part not in self._listed:
            try:
                entries = [entry for entry in os.scandir(self.root / part) if not entry.name.startswith(".")]
                folders = sorted((entry for entry in entries if entry.is_dir()), key=lambda entry: os.fsencode(entry))
                found = {as_text(folder.name): images_below(folder) for folder in folders}
            except OSError as error:
                raise UserError(
                    f"{error.filename} cannot be read ({error.strerror}). Images are looked for in all folders of "
                    f"data.root={self.root}: make it readable, or use another data.root."
                ) from error
            for one in found.values():
                self._left_out += one.others
            if outside := len(entries) - len(folders):
                self._left_out["outside the folders of the classes"] += outside
            self._listed[part] = {name: one.images for name, one in found.items()}
        return self._listed[part]

    def digest(self) -> str:
        """SHA-256 over names and contents of all image files, and over how they are converted."""
        return self._digest

    identity = digest  # where the folder is does not matter

    @functools.cached_property
    def _digest(self) -> str:
        files = [file for part in PARTS for names in self._files(part).values() for file in names]
        settings = f"{self.image_size} {self.unreadable} {self.background}".encode()
        state = hashlib.sha256(settings)
        for file in files:
            state.update(b"\0" + os.fsencode(file) + b"\0" + (_tried(changed, file) or b""))

        def content() -> bytes:
            whole = hashlib.sha256(settings)
            with ThreadPoolExecutor() as pool:
                contents = _progress(pool.map(lambda file: _tried(file_digest, file), files), "reading", len(files))
                for file, one in zip(files, contents, strict=True):
                    whole.update(b"\0" + os.fsencode(os.path.relpath(file, self.root)) + b"\0" + (one or b"unreadable"))
            return whole.hexdigest().encode()

        path = self.folder / f"{state.hexdigest()[:32]}.digest"
        return cached(path, content, lambda digest, file: file.write(digest), lambda file: file.read(64)).decode()

    def load(self) -> DataSet:
        """Read the cached arrays; decode the images if there are none."""
        num = sum(len(files) for part in PARTS for files in self._files(part).values())
        size = num * 3 * self.image_size**2
        fits = f"{num:,} images of {self.image_size}x{self.image_size} pixels take {size / 1e9:,.1f} GB of memory"
        if size > (total := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
            raise UserError(f"{fits}, and this machine has {total / 1e9:,.1f}. Use a smaller data.image_size.")
        try:
            return cached_data(self.prepared, lambda: (self._decode("train"), self._decode("test")))
        except MemoryError as error:
            raise UserError(f"{fits}, and there is not so much. Use a smaller data.image_size.") from error

    @property
    def prepared(self) -> Path:
        decoder = Path(decode.__file__).read_bytes()
        return self.folder / f"{hashlib.sha256(self.digest().encode() + decoder).hexdigest()[:32]}.images"

    def _decode(self, part: str) -> Images:
        import numpy as np

        by_class = self._files(part)
        files = [(file, label) for label, names in enumerate(by_class.values()) for file in names]
        with ThreadPoolExecutor() as pool:
            made = pool.map(self._read, (file for file, _ in files))
            decoded = list(_progress(made, f"decoding {part}", len(files)))
        labels = np.array([label for (_, label), one in zip(files, decoded, strict=True) if one is not None])
        for label, name in enumerate(by_class):
            if label not in labels:
                raise UserError(
                    f"No image in {self.root / part / name} can be read. Replace them or delete the folder."
                )
        read = [one for one in decoded if one is not None]
        if skipped := len(files) - len(read):
            say(f"{self.root / part}: {skipped} unreadable images skipped.")
        for lost, num in Counter(one.lost for one in read if one.lost).items():
            say(f"{self.root / part}: {num} images with {lost}.")
        pixels = np.stack([one.pixels for one in read])
        return Images(pixels.transpose(0, 3, 1, 2), labels.astype(np.int64), tuple(by_class))

    def _read(self, file: str) -> Decoded | None:
        """An image; None if it cannot be read and such images are to be skipped."""
        try:
            return read_image(file, (self.image_size, self.image_size), self.background)
        except UNREADABLE as error:
            if self.unreadable == "skip":
                return None
            raise UserError(
                f"{file} cannot be read as an image ({type(error).__name__}: {error}). Replace or delete it, or set "
                f"data.unreadable=skip to leave such images out."
            ) from error


def as_text(name: str) -> str:
    """The name of a class from that of its folder, which is bytes: UTF-8 in any locale, other bytes as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def changed(file: str) -> bytes:
    """What differs when a file has changed."""
    status = os.stat(file)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode()


def file_digest(file: str) -> bytes:
    with open_image(file) as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _tried(read: Callable[[str], bytes], file: str) -> bytes | None:
    """What is read from a file; None for one that cannot be opened as an image, about which decoding has its say."""
    try:
        return read(file)
    except (OSError, ValueError):
        return None


def _progress(steps, description: str, total: int):
    """Show on the terminal how far something is."""
    console = Console(stderr=True)
    return track(steps, description, total, console=console, transient=True, disable=not console.is_terminal)
