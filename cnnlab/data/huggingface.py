"""Data sets of Hugging Face on disk: tables of encoded images and labels, in parquet or Arrow files.

Read by pyarrow alone, of which `datasets` is a layer: from version 17 on it runs no code that a file brings.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageColor

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.config.shape import Shape, sides
from cnnlab.data import decode
from cnnlab.data.content import content_digest
from cnnlab.data.decode import UNREADABLE, Decoded
from cnnlab.data.decoded import decoded_images, in_threads
from cnnlab.data.images import DataSet, Images, cached_data

ROWS = 256  # of a parquet file, read at once


class HuggingFace:
    """Images and labels in the columns of tables. An object looks for the files once.

    Args:
        root: the folder that holds the files, in sub-folders too.
        cache_dir: where the decoded images are kept.
        train, test: the splits: words in the names of their files or folders, as in data/train-00000-of-00002.parquet.
        image, label: the names of the columns.
        image_size: height and width in pixels, one number or both; other sizes are resized (bicubic, antialiased).
        channels: 3 for RGB, 1 for grey, 4 for RGBA.
        unreadable: "stop" with an error at an image that cannot be decoded, or "skip" and count it.
        background: what shows where an image is transparent: the name of a color, or #rrggbb.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        train: str = "train",
        test: str = "test",
        image: str = "image",
        label: str = "label",
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        unreadable: str = "stop",
        background: str = "black",
    ):
        importlib.import_module("pyarrow")  # `instantiate` says which package an option lacks; later it is a traceback
        self.root, self.splits = expand(str(root)), {"train": str(train), "test": str(test)}
        self.image, self.label = image, label
        self.size, self.channels = sides(image_size), channels
        self.unreadable, self.background = unreadable, str(background)
        self.folder = expand(cache_dir) / "huggingface"
        ImageColor.getrgb(self.background)  # ValueError: unknown color specifier

    def check(self) -> None:
        """Look for the files, and read the labels. Raises: UserError."""
        for part in self.splits:
            self._labels(part)

    @property
    def num_train(self) -> int:
        return len(self._values["train"])

    @property
    def shape(self) -> Shape:
        return Shape(len(self._classes), self.channels, *self.size)

    def digest(self) -> str:
        """What the files hold, and how it is read."""
        return self._digest

    identity = digest  # where they are does not matter

    @functools.cached_property
    def _digest(self) -> str:
        files = {f"{part} {path.relative_to(self.root)}": path for part in self.splits for path in self._files[part]}
        columns = (self.image, self.label)
        return content_digest(files, (columns, self.size, self.channels, self.unreadable, self.background), self.folder)

    @property
    def prepared(self) -> Path:
        decoder = Path(decode.__file__).read_bytes()
        return self.folder / f"{hashlib.sha256(self.digest().encode() + decoder).hexdigest()[:32]}.images"

    def load(self) -> DataSet:
        """Map the cached arrays; decode the images if there are none."""
        return cached_data(self.prepared, lambda: (self._decode("train"), self._decode("test")))

    @functools.cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The files of each part. Raises: UserError."""
        tables = sorted(path for path in self.root.rglob("*") if path.suffix in (".parquet", ".arrow"))
        names = [str(path.relative_to(self.root)) for path in tables]
        found = {
            part: [path for path, name in zip(tables, names, strict=True) if is_of_split(name, split)]
            for part, split in self.splits.items()
        }
        for part, files in found.items():
            if not files:
                there = f"it has {', '.join(names[:10])}" if names else "it has no such file"
                raise UserError(
                    f"data.root={self.root} has no .parquet or .arrow file of the split {self.splits[part]}: {there}. "
                    f"Set data.{part}=SPLIT to a word in the names of the files or folders with the {part} images."
                )
        return found

    def _tables(self, part: str, column: str) -> Iterator[tuple[Path, Any]]:
        """One column of a part, piece by piece, with the file. Raises: UserError."""
        import pyarrow
        from pyarrow import parquet

        for path in self._files[part]:
            try:
                if path.suffix == ".parquet":
                    with parquet.ParquetFile(path) as file:
                        self._refuse_missing(path, file.schema_arrow, column)
                        for batch in file.iter_batches(ROWS, columns=[column]):
                            yield path, batch.column(column)
                else:
                    with pyarrow.memory_map(str(path)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
                        self._refuse_missing(path, stream.schema, column)
                        for batch in stream:
                            yield path, batch.column(column)
            except (pyarrow.ArrowException, OSError) as error:
                cause = " ".join(str(error).split())
                raise UserError(f"{path} cannot be read ({type(error).__name__}: {cause}). Fetch it again.") from error

    def _refuse_missing(self, path: Path, schema: Any, column: str) -> None:
        if column not in schema.names:
            key = "image" if column == self.image else "label"
            raise UserError(
                f"{path} has no column {column}, but {', '.join(schema.names)}. Use data.{key}= and one of them."
            )

    @functools.cached_property
    def _values(self) -> dict[str, list[Any]]:
        """The labels of each part, as they are in the column. Raises: UserError."""
        found: dict[str, list[Any]] = {}
        for part in self.splits:
            found[part] = []
            for path, column in self._tables(part, self.label):
                found[part] += (values := column.to_pylist())
                if wrong := [value for value in values if type(value) not in (int, str)]:
                    raise UserError(
                        f"{path}: the column {self.label} has {wrong[0]!r:.60}, and a label is a whole number or text. "
                        f"Use data.label= and the name of another column."
                    )
        return found

    @functools.cached_property
    def _classes(self) -> dict[Any, str]:
        """The names of the classes by label: those that the files give, otherwise the training labels themselves."""
        values = sorted(set(self._values["train"]))
        names = names_of(self._files["train"][0], self.label)
        return dict(enumerate(names)) if names else {value: str(value) for value in values}

    def _labels(self, part: str) -> list[int]:
        """The places of the images' classes. Raises: UserError."""
        places = {label: place for place, label in enumerate(self._classes)}
        if unknown := set(self._values[part]) - places.keys():
            raise UserError(
                f"data.root={self.root}: the column {self.label} of the split {self.splits[part]} has {min(unknown)}, "
                f"which is none of the {len(places)} classes of training images. Test images without labels often have "
                f"-1: use another split, as data.test=validation."
            )
        return [places[value] for value in self._values[part]]

    def _decode(self, part: str) -> Images:
        labels, what = self._labels(part), f"{self.root}, {self.splits[part]}"
        rows = zip(self._images(part), labels, strict=True)
        size = (*self.size, self.channels)
        return decoded_images(self.folder, rows, len(labels), size, list(self._classes.values()), what)

    def _images(self, part: str) -> Iterator[Decoded | None]:
        number = 0
        for path, column in self._tables(part, self.image):
            values = [value["bytes"] if isinstance(value, dict) else value for value in column.to_pylist()]
            for place, value in enumerate(values, number):
                if not isinstance(value, bytes):
                    raise UserError(
                        f"{path}: row {place} of the split has no encoded image in the column {self.image}. Use "
                        f"data.image= and another column, or save the data set with the images in it (datasets' "
                        f"embed_external_files)."
                    )
            numbered = [(path, place, value) for place, value in enumerate(values, number)]
            yield from in_threads(self._read, numbered)
            number += len(values)

    def _read(self, row: tuple[Path, int, bytes]) -> Decoded | None:
        path, place, content = row
        try:
            return decode.decode(io.BytesIO(content), self.size, self.background, self.channels)
        except UNREADABLE as error:
            if self.unreadable == "skip":
                return None
            raise UserError(
                f"{path}: row {place} of the split cannot be read as an image ({type(error).__name__}: {error}). Set "
                f"data.unreadable=skip to leave such images out."
            ) from error


def is_of_split(name: str, split: str) -> bool:
    """Whether a split is a word in the path of a file: data/train-00000-of-00002.parquet, mnist-train.arrow."""
    return re.search(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", name, re.IGNORECASE) is not None


def names_of(path: Path, column: str) -> list[str]:
    """The names of the classes that a file gives for a column of numbers; none if it gives none."""
    import pyarrow
    from pyarrow import parquet

    if path.suffix == ".parquet":
        schema = parquet.read_schema(path)
    else:
        with pyarrow.memory_map(str(path)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
            schema = stream.schema
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (TypeError, KeyError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
