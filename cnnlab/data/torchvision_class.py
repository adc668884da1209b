"""Any data set of torchvision.datasets, decoded once. No code from its files is run, see `only_data`."""

import ast
import difflib
import functools
import importlib.util
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.data.content import AnyPath
from cnnlab.data.decode import Decoded, converted
from cnnlab.data.decoded import EncodedImages
from cnnlab.data.guard import only_data
from cnnlab.data.images import Images

SPLITS: Mapping[str, Mapping[str, Any]] = {
    "train": {"train": True, "split": "train"},
    "test": {"train": False, "split": "test"},
}
FETCH = "python -c \"from torchvision.datasets import {0}; {0}('{1}', download=True)\""
SET_HERE = {"root", "download", "transform", "target_transform", "transforms", "loader"}  # not by data.arguments


class TorchvisionClass(EncodedImages):
    """Images of a class in torchvision.datasets, each with one label.

    Args:
        dataset: the name of the class.
        cache_dir: where the decoded images are kept.
        root: the folder of the data set; None: the class takes none.
        arguments, train, test: of the class, for both parts, for training and for test images; None for the last two:
            train=True and False, or split="train" and "test", whichever the class takes.
        image_size, channels, background: see EncodedImages.
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
        super().__init__(expand(cache_dir) / "torchvision", image_size, channels, background)
        self.dataset, self.root = dataset, expand(str(root)) if root is not None else None
        self.arguments, self.parts = dict(arguments or {}), {"train": train, "test": test}
        for given in (self.arguments, train or {}, test or {}):
            if reserved := given.keys() & SET_HERE:
                raise ValueError(f"{min(reserved)} cannot be given. Use data.root=FOLDER with the data set in it")

    def check(self) -> None:
        """Raises: UserError for an unknown class, or a missing folder."""
        if self.dataset not in (known := class_names()):
            close = difflib.get_close_matches(self.dataset, known, n=1)
            raise UserError(
                f"data.dataset={self.dataset} is no class of torchvision.datasets."
                f"{f' Did you mean {close[0]}?' if close else ''} There are {', '.join(known)}."
            )
        if self.root is not None and not self.root.is_dir():
            raise UserError(f"data.root={self.root} is no folder. {self._how_to_fetch}")

    @property
    def _how_to_fetch(self) -> str:
        command = FETCH.format(self.dataset, self.root or "FOLDER")
        return f"Fetch the data set first, for example with {command}, and set data.root."

    def _content(self) -> tuple[Mapping[str, AnyPath], object]:
        found = sorted(path for path in self.root.rglob("*") if path.is_file()) if self.root else []
        files = {str(path.relative_to(self.root)): path for path in found if self.root}
        of_class = (self.dataset, version("torchvision"), self.arguments, *self.parts.values())
        return files, (of_class, self.size, self.channels, self.background)

    def _decode(self) -> tuple[Images, Images]:
        datasets = {part: self._dataset(part) for part in self.parts}
        given = [getattr(dataset, "classes", None) for dataset in datasets.values()]
        classes = next((list(map(str, some)) for some in given if some and isinstance(some, list | tuple)), [])
        train, test = (self._images(part, dataset, classes) for part, dataset in datasets.items())
        num = max(*(int(images.targets.max()) + 1 for images in (train, test)), len(classes))
        names = tuple(classes) if len(classes) == num else tuple(map(str, range(num)))
        return Images(train.pixels, train.targets, names), Images(test.pixels, test.targets, names)

    def _dataset(self, part: str) -> Any:
        """The data set of a part. Raises: UserError if its class refuses the arguments or the files."""
        from torchvision import datasets

        kind = getattr(datasets, self.dataset)
        parameters = inspect.signature(kind).parameters
        given = self.parts[part]
        if given is None:
            given = {name: value for name, value in SPLITS[part].items() if name in parameters}
            if not given:
                raise UserError(
                    f"torchvision's {self.dataset} takes neither train nor split, so that training and test images "
                    f"cannot be told apart. Give data.train and data.test with some of its arguments: "
                    f"{', '.join(parameters)}; or use data=image_folder."
                )
        root = {"root": str(self.root)} if self.root and "root" in parameters else {}
        if "root" in parameters and not self.root:
            raise UserError(f"data.root must be given for torchvision's {self.dataset}. {self._how_to_fetch}")
        try:
            with only_data(f"torchvision's {self.dataset}"):
                return kind(**root, **self.arguments, **given)
        except UserError:
            raise
        except Exception as error:  # dozens of classes, whose exceptions are not documented
            raise UserError(
                f"torchvision's {self.dataset} cannot be made with {self.arguments | dict(given)} in {self.root} "
                f"({type(error).__name__}: {' '.join(str(error).split()):.500}). {self._how_to_fetch}"
            ) from error

    def _images(self, part: str, dataset: Any, classes: Sequence[str]) -> Images:
        num, title = len(dataset), f"torchvision's {self.dataset}, {part}"
        return self.decode_all(self._rows(title, dataset, num), num, classes, title)

    def _rows(self, title: str, dataset: Any, num: int) -> Iterator[tuple[Decoded, int]]:
        for index in range(num):
            try:
                with only_data(title):
                    image, label = dataset[index]
                    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
                    pixels = converted(image, self.size, self.background, self.channels)
                label = label.__index__()
            except UserError:
                raise
            except Exception as error:  # as above; items of another kind fail here, too
                raise UserError(
                    f"{title}: item {index} is not an image with the number of its class ({type(error).__name__}: "
                    f"{' '.join(str(error).split()):.300}). Such data sets need a class of your own, see "
                    f"docs/own_project.md."
                ) from error
            yield Decoded(pixels, ""), label


@functools.cache
def class_names() -> tuple[str, ...]:
    """The classes of torchvision.datasets, read without importing it, which takes seconds."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.origin:
        raise ImportError("No module named torchvision", name="torchvision")
    module = ast.parse(Path(spec.origin).with_name("datasets").joinpath("__init__.py").read_text("utf-8"))
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()
