"""Hugging Face data sets on disk: tables of encoded images and labels, in parquet or Arrow files.

Read with pyarrow only, which `datasets` is built on. From version 17 on, pyarrow runs no code from a file.
"""

import functools
import importlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.config.shape import Shape
from cnnlab.data.content import AnyPath, in_threads
from cnnlab.data.decode import Decoded
from cnnlab.data.decoded import EncodedImages
from cnnlab.data.images import Images

ROWS = 256  # of a parquet file, read at once


class HuggingFace(EncodedImages):
    """Images and labels in columns of tables. The folder is listed once per object.

    Args:
        root: the folder that contains the files, directly or in sub-folders.
        cache_dir: where the decoded images are kept.
        train, test: the splits: words in the names of their files or folders, as in data/train-00000-of-00002.parquet.
        image, label: names of the columns.
        image_size, channels, unreadable, background: see EncodedImages.
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
        importlib.import_module("pyarrow")  # here, where `instantiate` reports a missing package
        super().__init__(expand(cache_dir) / "huggingface", image_size, channels, background, unreadable)
        self.root, self.splits = expand(str(root)), {"train": str(train), "test": str(test)}
        self.image, self.label = image, label

    def check(self) -> None:
        """Find the files and read the labels. Raises: UserError."""
        for part in self.splits:
            self._labels(part)

    @property
    def num_train(self) -> int:
        return len(self._values["train"])

    @property
    def shape(self) -> Shape:
        return Shape(len(self._classes), self.channels, *self.size)

    def _content(self) -> tuple[Mapping[str, AnyPath], object]:
        files = {f"{part} {path.relative_to(self.root)}": path for part in self.splits for path in self._files[part]}
        columns = (self.image, self.label)
        return files, (columns, self.size, self.channels, self.unreadable, self.background)

    @functools.cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The files of each part. Raises: UserError."""
        tables = sorted(path for path in self.root.rglob("*") if path.suffix in (".parquet", ".arrow"))
        names = [str(path.relative_to(self.root)) for path in tables]
        # a file is of the split that its own name has, otherwise of those that its folders have
        said = [
            path.name if any(is_of_split(path.name, one) for one in self.splits.values()) else name
            for path, name in zip(tables, names, strict=True)
        ]
        found = {
            part: [path for path, text in zip(tables, said, strict=True) if is_of_split(text, split)]
            for part, split in self.splits.items()
        }
        for part, files in found.items():
            if not files:
                there = f"it has {', '.join(names[:10])}" if names else "it has no such file"
                raise UserError(
                    f"data.root={self.root} has no .parquet or .arrow file of the split {self.splits[part]}: {there}. "
                    f"Set data.{part}=SPLIT to a word in the names of the files or folders with the {part} images."
                )
        if both := set(found["train"]) & set(found["test"]):
            raise UserError(
                f"{min(both)} would be both training and test images: data.train={self.splits['train']} and "
                f"data.test={self.splits['test']} are in its name. Rename the file, or set both to other words."
            )
        return found

    def _column(self, part: str, column: str) -> Iterator[tuple[Path, list[Any]]]:
        """The values in a column of a part, with their file, some rows at a time. Raises: UserError."""
        import pyarrow
        from pyarrow import parquet

        for path in self._files[part]:
            try:
                if path.suffix == ".parquet":
                    with parquet.ParquetFile(path) as file:
                        self._check_column(path, file.schema_arrow, column)
                        for batch in file.iter_batches(ROWS, columns=[column]):
                            yield path, batch.column(column).to_pylist()
                else:
                    with pyarrow.memory_map(str(path)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
                        self._check_column(path, stream.schema, column)
                        for batch in stream:
                            yield path, batch.column(column).to_pylist()
            except (pyarrow.ArrowException, OSError) as error:
                cause = " ".join(str(error).split())
                raise UserError(
                    f"{path} cannot be read ({type(error).__name__}: {cause}). Download it again."
                ) from error

    def _check_column(self, path: Path, schema: Any, column: str) -> None:
        if column not in schema.names:
            key = "image" if column == self.image else "label"
            raise UserError(
                f"{path} has no column {column}, but {', '.join(schema.names)}. Use data.{key}= and one of them."
            )

    @functools.cached_property
    def _values(self) -> dict[str, list[Any]]:
        """The labels of each part, as they are in the column. Raises: UserError."""
        found: dict[str, list[Any]] = {part: [] for part in self.splits}
        for part in self.splits:
            for path, values in self._column(part, self.label):
                found[part] += values
                if wrong := [value for value in values if type(value) not in (int, str)]:
                    raise UserError(
                        f"{path}: the column {self.label} has {wrong[0]!r:.60}, and a label is a whole number or text. "
                        f"Use data.label= and the name of another column."
                    )
        if len({type(value) for values in found.values() for value in values}) > 1:
            raise UserError(
                f"data.root={self.root}: the column {self.label} has numbers in some files and text in others. Save "
                f"all with the same type, or use data.label= and the name of another column."
            )
        return found

    @functools.cached_property
    def _classes(self) -> dict[Any, str]:
        """The names of the classes by label: those given in the files, otherwise the training labels themselves.

        Raises: UserError for files that give different ones.
        """
        values = sorted(set(self._values["train"]))
        names = class_names(first := self._files["train"][0], self.label)
        for path in (path for part in self.splits for path in self._files[part] if names):
            if (others := class_names(path, self.label)) and others != names:
                raise UserError(
                    f"{path}: the classes of {self.label} are {', '.join(others[:10])}, but in {first} they are "
                    f"{', '.join(names[:10])}, so that a number is not the same class. Save both with the same classes."
                )
        return dict(enumerate(names)) if names else {value: str(value) for value in values}

    def _labels(self, part: str) -> list[int]:
        """The indices of the images' classes. Raises: UserError."""
        index = {label: number for number, label in enumerate(self._classes)}
        if unknown := set(self._values[part]) - index.keys():
            raise UserError(
                f"data.root={self.root}: the column {self.label} of the split {self.splits[part]} has {min(unknown)}, "
                f"which is none of the {len(index)} classes of training images. Test images without labels often have "
                f"-1: use another split, such as data.test=validation."
            )
        return [index[value] for value in self._values[part]]

    def _decode(self) -> tuple[Images, Images]:
        return self._decode_part("train"), self._decode_part("test")

    def _decode_part(self, part: str) -> Images:
        labels = self._labels(part)
        rows = zip(self._images(part), labels, strict=True)
        return self.decode_all(rows, len(labels), list(self._classes.values()), f"{self.root}, {self.splits[part]}")

    def _images(self, part: str) -> Iterator[Decoded | None]:
        done = 0
        for path, values in self._column(part, self.image):
            rows = []
            for number, value in enumerate(values, done):
                content = value["bytes"] if isinstance(value, dict) else value
                if not isinstance(content, bytes):
                    raise UserError(
                        f"{path}: row {number} of the split has no encoded image in the column {self.image}. Use "
                        f"data.image= and another column, or save the data set with the images in it (datasets' "
                        f"embed_external_files)."
                    )
                rows.append((f"{path}: row {number} of the split", content))
            yield from in_threads(self._read, rows)
            done += len(values)

    def _read(self, row: tuple[str, bytes]) -> Decoded | None:
        name, content = row
        return self.decode_one(io.BytesIO(content), name, "Set")


def is_of_split(name: str, split: str) -> bool:
    """Whether a split is a word in the path of a file: data/train-00000-of-00002.parquet, mnist-train.arrow."""
    return re.search(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", name, re.IGNORECASE) is not None


def class_names(path: Path, column: str) -> list[str]:
    """The names of the classes that a file gives for a column of numbers; an empty list if there are none."""
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
