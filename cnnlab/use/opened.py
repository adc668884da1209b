"""Opening a run directory for use: its files are read and checked. Does not import torch.

The directory is untrusted. Its configuration chooses among our classes and their arguments. Where data are downloaded
from and stored comes from our own option files.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnnlab.config.check import check_values
from cnnlab.config.identity import configuration, targets_in
from cnnlab.config.limits import check_value, siblings
from cnnlab.config.objects import checked_config
from cnnlab.config.options import GROUPS as DECIDING
from cnnlab.config.options import (
    LISTED,
    UserError,
    allowed_targets,
    beside,
    leaves,
    limits_of_file,
    option_file,
    options,
)
from cnnlab.config.shape import Shape
from cnnlab.config.values import plain
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.provenance import code_digest
from cnnlab.runs.readers import BrokenFileError

GROUPS = ("data", "norm", "aug", "model", "loss", "metrics")  # of a run's configuration, used after training
SPLIT = ("seed", "val_fraction", "num_train_images")  # the arguments of cnnlab.data.split.training_split
USED = (*GROUPS, "test_flips", "test_shifts", *SPLIT)
OURS = ("cache_dir", "sources", "sha256", "timeout")  # keys of `data` that are never taken from a run directory
WORD = re.compile(r"[\w#][\w#.+ -]*", re.ASCII)  # neither a path nor an address
MAX_SIDE = 4096  # pixels
MAX_CHANNELS = 256


@dataclass(frozen=True)
class OpenedRun:
    """The checked files of a run.

    Attributes:
        path: the directory.
        best: the checkpoint of the best epoch.
        summary: content of summary.json, including the data and precision of the training.
        config: the part of the configuration that is used after training (see USED), without interpolations.
    """

    path: Path
    best: Path
    summary: dict[str, Any]
    config: DictConfig

    @property
    def stored(self) -> Shape:
        """The shape of the images that the run takes."""
        data = self.summary["data"]
        height, width = data["image_size"]
        return Shape(len(data["classes"]), data["channels"], height, width, data["task"])

    @property
    def background(self) -> str:
        """The color behind transparent images."""
        return str(self.config.data.get("background", "black"))

    def check_decoding(self) -> None:
        """Check that image files can be decoded as in training.

        Raises: UserError if no image mode has as many channels; BrokenFileError if the background is not a color.
        """
        from PIL import ImageColor

        from cnnlab.data.decode import MODES

        if (channels := self.stored.channels) not in MODES:
            raise UserError(f"The run takes images of {channels} channels; image files with 1, 3 or 4 can be read.")
        try:
            ImageColor.getrgb(self.background)
        except ValueError as error:
            wrong = f"has data.background={self.background}, which is not a color"
            raise BrokenFileError(self.path / ".hydra" / "config.yaml", wrong) from error


def opened(path: Path) -> OpenedRun:
    """Read and check the files of a run, except its checkpoints.

    Raises: UserError if it is not a run, or has no checkpoint of its best epoch; BrokenFileError.
    """
    run, best = RunDirectory(path), path / "checkpoints" / "best.ckpt"
    summary = run.read_summary() if path.is_dir() else {}
    if "data" not in summary or not (file := path / ".hydra" / "config.yaml").exists():
        raise UserError(f"{path} is not a run directory of cnnlab. Use one that 'cnnlab ls' shows.")
    if not best.exists():
        raise UserError(f"{path} has no checkpoints/best.ckpt: it has finished no epoch. Train it first.")
    if wrong := _incomplete(summary):
        raise BrokenFileError(path / "summary.json", wrong)
    tree = {"test_shifts": 0} | run.config()  # older runs have none
    if missing := [key for key in USED if key not in tree]:
        raise BrokenFileError(file, f"has no {missing[0]}")
    tree = {key: tree[key] for key in USED}
    if (
        not isinstance(tree["test_flips"], bool)
        or type(tree["test_shifts"]) is not int
        or tree["test_shifts"] not in range(9)
        or not isinstance(tree["num_train_images"], int | None)
        or not all(isinstance(tree[group], dict) for group in LISTED if group in GROUPS)
    ):
        raise BrokenFileError(file, "has values of unexpected types")
    facts = OpenedRun(path, best, summary, OmegaConf.create()).stored.facts()
    for group, name, node in _nodes(tree, summary, GROUPS):
        if not isinstance(node, dict):
            raise BrokenFileError(file, f"has no option of {group}")
        if group == "data":
            node = tree["data"] = {key: value for key, value in node.items() if key not in OURS}
        if name not in options(group):
            raise UserError(
                f"{path} was trained with {group}={name}, and there is no such option here. The options of {group} are "
                f"{', '.join(options(group))}; --config-dir FOLDER adds those of a project."
            )
        defaults, limits = option_file(f"{group}/{name}"), limits_of_file(f"{group}/{name}")
        _locate(node, group, defaults)
        known = {"data": facts, "run": {name: tree[name] for name in ("test_flips", "test_shifts")}}
        for key, value in (*leaves(node), *((key, one) for key, one in node.items() if isinstance(one, dict))):
            check_value(f"{group}.{key}", value, defaults.get(key), limits.get(key), siblings(node, key) | known)
            if value != defaults.get(key) and not limits.get(key) and (text := next(not_words(value), "")):
                raise UserError(
                    f"{path} has {group}.{key}={text}, which may name a file or an address, and a run directory must "
                    f"not choose what is read. To allow any value, add [{key}] at the end of the comment of {key} in "
                    f"conf/{group}/{name}.yaml."
                )
    return OpenedRun(path, best, summary, checked_config(tree))


def code_changed(run: OpenedRun) -> bool:
    """Whether the code that made a run has changed since; its classes are where they are today, as in training."""
    whole = RunDirectory(run.path).config()
    tree = {group: node if isinstance(node := whole.get(group), dict) else {} for group in DECIDING}
    for group, name, node in _nodes(tree, run.summary, DECIDING):
        if isinstance(node, dict) and name in options(group):
            _locate(node, group, option_file(f"{group}/{name}"))
    code = code_digest(targets_in(tree) & allowed_targets())
    return run.summary.get("code_digest", code) != code


def _locate(node: dict[str, Any], group: str, defaults: dict[str, Any]) -> None:
    """Replace the run's classes by those of today's option file: its own, and those within that no file names now."""
    node["_target_"] = defaults["_target_"]
    for part, today in beside(node, defaults):
        if "_target_" in part.keys() & today and part["_target_"] not in list(allowed_targets(group)):
            part["_target_"] = today["_target_"]


def not_words(value: Any) -> Iterator[str]:
    """The strings in a value that may be a path or an address, from which code or weights would be loaded."""
    if isinstance(value, str):
        if not WORD.fullmatch(value):
            yield value
    elif isinstance(value, list | dict):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from not_words(one)


def _nodes(tree: dict[str, Any], summary: dict[str, Any], groups: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    """Group, option and node of everything that is instantiated."""
    for group in groups:
        if group in LISTED:
            yield from ((group, name, node) for name, node in tree[group].items())
        else:
            yield group, summary["choices"].get(group, ""), tree[group]


def _incomplete(summary: dict[str, Any]) -> str:
    """What is missing in a summary, as the rest of a sentence; empty if nothing is."""
    data = summary["data"]
    if not data.get("classes") or "task" not in data:
        return "has no classes or task"
    if not 1 <= data.get("channels", 0) <= MAX_CHANNELS:
        return f"has no number of channels from 1 to {MAX_CHANNELS}"
    for size in (data.get("image_size", ()), data.get("input_size", ())):
        if len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size):
            return f"has no height and width of images from 1 to {MAX_SIDE} pixels"
    return "" if "precision" in summary.get("environment", {}) else "has no precision of the training"


def with_other_data(run: OpenedRun, overrides: Sequence[str] = ()) -> DictConfig:
    """Our own configuration with the run's data, normalization, test-time views and split, unless overridden.

    Other data are decoded as the run's own: to the same size and number of channels, on the same background.

    Raises: UserError for overrides of anything else, or with values that are not allowed.
    """
    allowed = ("data=", "data.", "norm=", "norm.", "test_flips=", "test_shifts=")
    if wrong := [word for word in overrides if not word.startswith(allowed)]:
        raise UserError(
            f"{wrong[0]}: only data, norm, test_flips and test_shifts can differ from the run. Use one of those."
        )
    given = {word.split("=")[0] for word in overrides}
    kept = [group for group in ("data", "norm") if group not in given]
    for group in kept:
        if (option := run.summary["choices"].get(group)) not in options(group):
            raise UserError(
                f"{run.path} was trained with {group}={option}, and there is no such option here. Use {group}= with "
                f"one of {', '.join(options(group))}."
            )
    made = configuration([*(f"{group}={run.summary['choices'][group]}" for group in kept), *overrides])
    for group in kept:
        ours = {key: value for key, value in plain(made[group]).items() if key in OURS or f"{group}.{key}" in given}
        made[group] = plain(run.config[group]) | ours
    if "data" in given:
        decoding: dict[str, Any] = {"image_size": run.stored.image_size, "channels": run.stored.channels}
        if "background" in run.config.data:
            decoding["background"] = run.background
        made.data.update({key: decoding[key] for key in decoding.keys() & made.data if f"data.{key}" not in given})
    for name in {"test_flips", "test_shifts", *SPLIT} - given:
        made[name] = run.config[name]
    check_values(made, "data", "norm", "test_flips", "test_shifts", *SPLIT)
    return made
