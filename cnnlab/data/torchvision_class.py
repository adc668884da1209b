"""Any data set of torchvision.datasets, decoded once. What its files bring is data, and no code: see `only_data`."""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.config.shape import sides
from cnnlab.data import decode
from cnnlab.data.content import content_digest
from cnnlab.data.decode import Decoded, converted
from cnnlab.data.decoded import decoded_images
from cnnlab.data.guard import only_data
from cnnlab.data.images import DataSet, Images, cached_data

SPLITS: Mapping[str, Mapping[str, Any]] = {
    "train": {"train": True, "split": "train"},
    "test": {"train": False, "split": "test"},
}
FETCH = "python -c \"from torchvision.datasets import {0}; {0}('{1}', download=True)\""


class TorchvisionClass:
    """Images of a class in torchvision.datasets, each with one label.

    Args:
        dataset: the name of the class.
        cache_dir: where the decoded images are kept.
        root: the folder that it lies in; None: the class takes none.
        arguments, train, test: of the class, for both parts, for training and for test images; None for the last two:
            train=True and False, or split="train" and "test", whichever the class takes.
        image_size: height and width in pixels, one number or both; other sizes are resized (bicubic, antialiased).
        channels: 3 for RGB, 1 for grey, 4 for RGBA.
        background: what shows where an image is transparent: the name of a color, or #rrggbb.
    """

    def __init__(
        self,
        dataset: str,
        cache_dir: str,
        root: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        image_size: int | Sequence[int] = 32,
        channels: int = 3,
        background: str = "black",
    ):
        self.dataset, self.root = dataset, expand(str(root)) if root is not None else None
        self.arguments, self.parts = dict(arguments or {}), {"train": train, "test": test}
        self.size, self.channels, self.background = sides(image_size), channels, str(background)
        self.folder = expand(cache_dir) / "torchvision"
        ImageColor.getrgb(self.background)  # ValueError: unknown color specifier
        for given in (self.arguments, train or {}, test or {}):
            if taken := given.keys() & {"root", "download", "transform", "target_transform", "transforms", "loader"}:
                raise ValueError(f"{min(taken)} is no argument to give. Use data.root=FOLDER with the data set in it")

    def check(self) -> None:
        """Raises: UserError for a class that there is none of, and a folder that is not there."""
        if self.dataset not in (known := names()):
            close = difflib.get_close_matches(self.dataset, known, n=1)
            raise UserError(
                f"data.dataset={self.dataset} is no class of torchvision.datasets."
                f"{f' Did you mean {close[0]}?' if close else ''} There are {', '.join(known)}."
            )
        if self.root is not None and not self.root.is_dir():
            raise UserError(f"data.root={self.root} is no folder. {self._how_to_fetch}")

    @property
    def _how_to_fetch(self) -> str:
        return (
            f"Fetch the data set first, as by {FETCH.format(self.dataset, self.root or 'FOLDER')}, and set data.root."
        )

    def digest(self) -> str:
        """The class and its arguments, the version of torchvision, and what lies in the folder."""
        return self._digest

    identity = digest  # where the folder is does not matter

    @functools.cached_property
    def _digest(self) -> str:
        found = sorted(path for path in self.root.rglob("*") if path.is_file()) if self.root else []
        files = {str(path.relative_to(self.root)): path for path in found if self.root}
        of_class = (self.dataset, version("torchvision"), self.arguments, *self.parts.values())
        return content_digest(files, (of_class, self.size, self.channels, self.background), self.folder)

    @property
    def prepared(self) -> Path:
        decoder = Path(decode.__file__).read_bytes()
        return self.folder / f"{hashlib.sha256(self.digest().encode() + decoder).hexdigest()[:32]}.images"

    def load(self) -> DataSet:
        """Map the cached arrays; decode the images if there are none."""
        return cached_data(self.prepared, self._decode)

    def _decode(self) -> tuple[Images, Images]:
        made = {part: self._made(part) for part in self.parts}
        classes: list[str] = []
        for dataset in made.values():
            given = getattr(dataset, "classes", None)
            classes = classes or (list(map(str, given)) if isinstance(given, list | tuple) else [])
        train, test = (self._images(part, dataset, classes) for part, dataset in made.items())
        num = max(*(int(images.targets.max()) + 1 for images in (train, test)), len(classes))
        names = tuple(classes) if len(classes) == num else tuple(map(str, range(num)))
        return Images(train.pixels, train.targets, names), Images(test.pixels, test.targets, names)

    def _made(self, part: str) -> Any:
        """The data set of a part. Raises: UserError for what its class refuses."""
        from torchvision import datasets

        kind = getattr(datasets, self.dataset)
        taken = inspect.signature(kind).parameters
        given = self.parts[part]
        if given is None:
            given = {name: value for name, value in SPLITS[part].items() if name in taken}
            if not given:
                raise UserError(
                    f"torchvision's {self.dataset} takes neither train nor split, so that training and test images "
                    f"cannot be told apart. Give data.train and data.test, the arguments of each, of those that it "
                    f"takes: {', '.join(taken)}; or use data=image_folder."
                )
        root = {"root": str(self.root)} if self.root and "root" in taken else {}
        if "root" in taken and not self.root:
            raise UserError(f"data.root must be given for torchvision's {self.dataset}. {self._how_to_fetch}")
        try:
            with only_data(f"torchvision's {self.dataset}"):
                return kind(**root, **self.arguments, **given)
        except UserError:
            raise
        except Exception as error:  # dozens of classes, and none says what it raises over files and arguments
            raise UserError(
                f"torchvision's {self.dataset} cannot be made with {self.arguments | dict(given)} in {self.root} "
                f"({type(error).__name__}: {' '.join(str(error).split()):.500}). {self._how_to_fetch}"
            ) from error

    def _images(self, part: str, dataset: Any, classes: Sequence[str]) -> Images:
        num, what = len(dataset), f"torchvision's {self.dataset}, {part}"
        size = (*self.size, self.channels)
        return decoded_images(self.folder, self._rows(what, dataset, num), num, size, classes, what)

    def _rows(self, what: str, dataset: Any, num: int) -> Iterator[tuple[Decoded, int]]:
        for place in range(num):
            try:
                with only_data(what):
                    image, label = dataset[place]
                    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
                    pixels = converted(image, self.size, self.background, self.channels)
                label = label.__index__()
            except UserError:
                raise
                # dozens of classes, and none says what it raises over a file; items of another kind fail here, too
            except Exception as error:
                raise UserError(
                    f"{what}: item {place} is not an image with the number of its class ({type(error).__name__}: "
                    f"{' '.join(str(error).split()):.300}). Such data sets are for a class of your own, "
                    f"docs/own_project.md."
                ) from error
            yield Decoded(pixels, ""), label


@functools.cache
def names() -> tuple[str, ...]:
    """The classes of torchvision.datasets, read without importing it, which takes seconds."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.origin:
        raise ImportError("No module named torchvision", name="torchvision")
    module = ast.parse(Path(spec.origin).with_name("datasets").joinpath("__init__.py").read_text("utf-8"))
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()
