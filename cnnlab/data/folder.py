"""A folder of images: root/train/<class>/** and root/test/<class>/**, or listed in root/train.csv and root/test.csv."""

import csv
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.config.shape import Shape
from cnnlab.data.content import AnyPath, in_threads
from cnnlab.data.decode import SUFFIXES, Decoded, described, images_below
from cnnlab.data.decoded import EncodedImages
from cnnlab.data.images import Images
from cnnlab.text import say

PARTS = ("train", "test")


class ImageFolder(EncodedImages):
    """Image files of any size. The folder is listed once per object.

    Args:
        root: the folder that contains train/ and test/, or train.csv and test.csv.
        cache_dir: where the decoded images are kept.
        image_size, channels, unreadable, background: see EncodedImages.
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
        super().__init__(expand(cache_dir) / "image_folder", image_size, channels, background, unreadable)
        self.root = expand(str(root))
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._left_out: Counter[str] = Counter()

    def check(self) -> None:
        """Find the images; report other files.

        Raises: UserError for a missing or unreadable folder or table, a class without images, fewer than two classes,
            or different classes in training and test images.
        """
        layout = (
            f"Expected are images in {self.root}/train/<class>/ and {self.root}/test/<class>/, or their names in "
            f"{self.root}/train.csv and test.csv with the columns file and label"
        )
        for part in PARTS:
            if not (self.root / part).is_dir() and not self._table(part).exists():
                raise UserError(f"data.root={self.root} has no folder {part}/ and no {part}.csv. {layout}.")
            files = self._files(part)
            if len(files) < 2:
                found = f"only the class {next(iter(files))}" if files else "no class"
                raise UserError(f"{self.root / part} has {found}; a classifier needs two or more. {layout}.")
            if empty := [name for name, images in files.items() if not images]:
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
        """The image files of every class, sorted by the bytes of their names, or in the order of the table.

        Raises: UserError for a folder that cannot be listed, and a table that cannot be read.
        """
        if part not in self._listed:
            self._listed[part] = read_table(self._table(part)) if self._table(part).exists() else self._list(part)
        return self._listed[part]

    def _list(self, part: str) -> dict[str, list[str]]:
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
        return {name: one.images for name, one in found.items()}

    def _content(self) -> tuple[Mapping[str, AnyPath], object]:
        files = {
            (f"{part}.csv {number} {name} " if self._table(part).exists() else "")
            + os.path.relpath(file, self.root): file
            for part in PARTS
            for name, listed in self._files(part).items()
            for number, file in enumerate(listed)
        }
        return files, (self.size, self.channels, self.unreadable, self.background)

    def _decode(self) -> tuple[Images, Images]:
        return self._decode_part("train"), self._decode_part("test")

    def _decode_part(self, part: str) -> Images:
        by_class = self._files(part)
        files = [file for images in by_class.values() for file in images]
        labels = [label for label, images in enumerate(by_class.values()) for _ in images]
        rows = zip(in_threads(self._read, files), labels, strict=True)
        images = self.decode_all(rows, len(files), list(by_class), str(self.root / part))
        for label in sorted(set(labels) - set(images.targets.tolist())):
            folder = self.root / part / images.classes[label]
            raise UserError(f"None of the images in {folder} can be read. Replace them or delete the folder.")
        return images

    def _read(self, file: str) -> Decoded | None:
        try:
            return self.decode_one(file, file, "Replace or delete it, or set")
        except UserError as error:
            if os.path.lexists(file):
                raise
            raise UserError(
                f"{file} does not exist. {self._correct(file)}et data.unreadable=skip to leave such images out."
            ) from error

    def _correct(self, file: str) -> str:
        """Names the row of the table that names a file: "Correct /data/train.csv, line 14, or s"."""
        for path in filter(Path.exists, map(self._table, PARTS)):
            with open(path, encoding="utf-8-sig", newline="") as opened:
                table = csv.DictReader(opened)
                for row in table:
                    if os.path.join(path.parent, row["file"]) == file:
                        return f"Correct {path}, line {table.line_num}, or s"
        return "S"


def as_text(name: str) -> str:
    """The name of a class from that of its folder: decoded as UTF-8 in any locale, other bytes as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_table(path: Path) -> dict[str, list[str]]:
    """The image files of every class, from a table with the columns file, relative to the table's folder, and label.

    Labels are sorted as numbers if all of them are, and otherwise alphabetically. Raises: UserError.
    """
    expected = f"Expected is a table with the columns file and label, such as file,label and then {path.stem}/1.png,cat"
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
    numbers = all(map(str.isdecimal, found))
    return {label: found[label] for label in sorted(found, key=lambda label: (int(label) if numbers else 0, label))}
