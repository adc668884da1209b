"""A folder of images: root/train/<class>/** and root/test/<class>/**, or named in root/train.csv and root/test.csv.

The images are decoded once, into a cache named by their content, which is mapped into memory: there may be more of them
than memory.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageColor

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.config.shape import Shape, sides
from cnnlab.data import decode
from cnnlab.data.content import content_digest
from cnnlab.data.decode import SUFFIXES, UNREADABLE, Decoded, described, images_below, read_image
from cnnlab.data.decoded import decoded_images, in_threads
from cnnlab.data.images import DataSet, Images, cached_data
from cnnlab.text import say

PARTS = ("train", "test")


class ImageFolder:
    """Images of any size, resized and converted. An object lists the folder once.

    Args:
        root: the folder that holds train/ and test/, or train.csv and test.csv.
        cache_dir: where the decoded images are kept.
        image_size: height and width in pixels, one number or both; other sizes are resized (bicubic, antialiased).
        channels: 3 for RGB, 1 for grey, 4 for RGBA.
        unreadable: "stop" with an error at an image that cannot be decoded, or "skip" and count it.
        background: what shows where an image is transparent: the name of a color, or #rrggbb.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        unreadable: str = "stop",
        background: str = "black",
    ):
        self.root, self.size, self.channels = expand(str(root)), sides(image_size), channels
        self.unreadable, self.background = unreadable, str(background)
        self.folder = expand(cache_dir) / "image_folder"
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._left_out: Counter[str] = Counter()
        ImageColor.getrgb(self.background)  # ValueError: unknown color specifier

    def check(self) -> None:
        """Find the images; report files that are none.

        Raises: UserError for a missing or unreadable folder or table, a class without images, fewer than two classes,
            or other test classes than training classes.
        """
        layout = (
            f"Expected are images in {self.root}/train/<class>/ and {self.root}/test/<class>/, or their names in "
            f"{self.root}/train.csv and test.csv with the columns file and label"
        )
        for part in PARTS:
            if not (self.root / part).is_dir() and not self._table(part).exists():
                raise UserError(f"data.root={self.root} has no folder {part}/ and no {part}.csv. {layout}.")
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
                f"{layout}; with the same classes."
            )
        if self._left_out:
            say(f"{self.root}: {described(self._left_out)} and were left out.", file=sys.stderr)
            self._left_out.clear()

    @property
    def num_train(self) -> int:
        return sum(map(len, self._files("train").values()))

    @property
    def shape(self) -> Shape:
        return Shape(len(self._files("train")), self.channels, *self.size)

    def _table(self, part: str) -> Path:
        return self.root / f"{part}.csv"

    def _files(self, part: str) -> dict[str, list[str]]:
        """The paths of the images of every class, in the order of the bytes of their names, or in that of the table.

        Raises: UserError for a folder that cannot be listed, and a table that cannot be read.
        """
        if part not in self._listed and self._table(part).exists():
            self._listed[part] = read_table(self._table(part))
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
        files = {
            (f"{part}.csv {number} {name} " if self._table(part).exists() else "")
            + os.path.relpath(file, self.root): file
            for part in PARTS
            for name, listed in self._files(part).items()
            for number, file in enumerate(listed)
        }
        return content_digest(files, (self.size, self.channels, self.unreadable, self.background), self.folder)

    def load(self) -> DataSet:
        """Map the cached arrays; decode the images if there are none."""
        return cached_data(self.prepared, lambda: (self._decode("train"), self._decode("test")))

    @property
    def prepared(self) -> Path:
        decoder = Path(decode.__file__).read_bytes()
        return self.folder / f"{hashlib.sha256(self.digest().encode() + decoder).hexdigest()[:32]}.images"

    def _decode(self, part: str) -> Images:
        by_class = self._files(part)
        files = [file for names in by_class.values() for file in names]
        labels = [label for label, names in enumerate(by_class.values()) for _ in names]
        rows = zip(in_threads(self._read, files), labels, strict=True)
        size = (*self.size, self.channels)
        images = decoded_images(self.folder, rows, len(files), size, list(by_class), str(self.root / part))
        for label in sorted(set(labels) - set(images.targets.tolist())):
            name = images.classes[label]
            raise UserError(f"No image in {self.root / part / name} can be read. Replace them or delete the folder.")
        return images

    def _read(self, file: str) -> Decoded | None:
        """An image; None if it cannot be read and such images are to be skipped."""
        try:
            return read_image(file, self.size, self.background, self.channels)
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


def read_table(path: Path) -> dict[str, list[str]]:
    """The paths of the images of every class, of a table with the columns file, relative to its folder, and label.

    Labels are in alphabetical order, or in that of numbers if all of them are. Raises: UserError.
    """
    expected = f"Expected is a table with the columns file and label, as file,label and then {path.stem}/001.png,cat"
    found: dict[str, list[str]] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            if missing := {"file", "label"} - set(table.fieldnames or ()):
                raise UserError(
                    f"{path} has no column {sorted(missing)[0]}: its first line is {table.fieldnames}. {expected}."
                )
            for row in table:
                if not row["file"] or not row["label"]:
                    raise UserError(f"{path}, line {table.line_num}: the file or its label is missing. {expected}.")
                found.setdefault(row["label"], []).append(os.path.join(path.parent, row["file"]))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}). {expected}, in UTF-8.") from error
    return {label: found[label] for label in sorted(found, key=int if all(map(str.isdecimal, found)) else None)}
