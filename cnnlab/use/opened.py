"""A run directory that is to be used: what its files say, checked. Does not import torch.

It may be a stranger's. Its configuration says which classes of ours to instantiate and with which arguments. Where data
are downloaded from and where they are kept is for our own option files to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnnlab.config.check import check_value, check_values, siblings
from cnnlab.config.identity import configuration
from cnnlab.config.objects import checked_config
from cnnlab.config.options import LISTED, UserError, leaves, limits_of_file, option_file, options
from cnnlab.config.shape import Shape
from cnnlab.config.values import plain
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import BrokenFileError

USED = (
    "data",
    "norm",
    "aug",
    "model",
    "loss",
    "metrics",
    "test_flips",
    "test_shifts",
)  # what of a run's configuration is used after training
OURS = ("cache_dir", "sources", "sha256", "timeout")  # of `data`: never a run directory's
WORD = re.compile(r"[\w#][\w#.+ -]*", re.ASCII)  # no path, and no address
MAX_SIDE = 4096  # pixels
MAX_CHANNELS = 256


@dataclass(frozen=True)
class OpenedRun:
    """What the files of a run say.

    Attributes:
        path: the directory.
        best: the checkpoint of the best epoch.
        summary: content of summary.json, with what data and precision it was trained.
        config: what of the configuration is used after training (see USED); nothing in it is left to be resolved.
    """

    path: Path
    best: Path
    summary: dict[str, Any]
    config: DictConfig

    @property
    def stored(self) -> Shape:
        """Of the images that it takes."""
        data = self.summary["data"]
        height, width = data["image_size"]
        return Shape(len(data["classes"]), data["channels"], height, width, data["task"])

    @property
    def background(self) -> str:
        """What it saw behind transparent images."""
        return str(self.summary["changes"].get("data.background", "black"))


def opened(path: Path) -> OpenedRun:
    """Read and check the files of a run, but for its checkpoints.

    Raises: UserError if it is no run, or one without a checkpoint of its best epoch; BrokenFileError.
    """
    run, best = RunDirectory(path), path / "checkpoints" / "best.ckpt"
    summary = run.read_summary() if path.is_dir() else {}
    if "data" not in summary or not (file := path / ".hydra" / "config.yaml").exists():
        raise UserError(f"{path} is no run directory of cnnlab. Type one, as python -m cnnlab ls shows them.")
    if not best.exists():
        raise UserError(f"{path} has no checkpoints/best.ckpt: no epoch of it was finished. Train it first.")
    if wrong := _lacking(summary):
        raise BrokenFileError(path / "summary.json", wrong)
    tree = {"test_shifts": 0} | run.config()  # older runs have none
    if missing := [key for key in USED if key not in tree]:
        raise BrokenFileError(file, f"has no {missing[0]}")
    tree = {key: tree[key] for key in USED}
    if (
        not isinstance(tree["test_flips"], bool)
        or type(tree["test_shifts"]) is not int
        or tree["test_shifts"] not in range(9)
        or not all(isinstance(tree[group], dict) for group in LISTED if group in USED)
    ):
        raise BrokenFileError(file, "has values of other types than a run's")
    facts = OpenedRun(path, best, summary, OmegaConf.create()).stored.facts()
    for group, name, node in _nodes(tree, summary):
        if not isinstance(node, dict):
            raise BrokenFileError(file, f"names no option of {group}")
        if group == "data":
            node = tree["data"] = {key: value for key, value in node.items() if key not in OURS}
        if name not in options(group):
            raise UserError(
                f"{path} was trained with {group}={name}, and there is no such option here. The options of {group} are "
                f"{', '.join(options(group))}; --config-dir FOLDER adds those of a project."
            )
        defaults, limits = option_file(f"{group}/{name}"), limits_of_file(f"{group}/{name}")
        node["_target_"] = defaults["_target_"]  # wherever the class is today
        known = {"data": facts, "run": {name: tree[name] for name in ("test_flips", "test_shifts")}}
        for knob, value in (*leaves(node), *((key, one) for key, one in node.items() if isinstance(one, dict))):
            check_value(f"{group}.{knob}", value, defaults.get(knob), limits.get(knob), siblings(node, knob) | known)
            if value != defaults.get(knob) and not limits.get(knob) and (text := next(not_words(value), "")):
                raise UserError(
                    f"{path} has {group}.{knob}={text}, which may name a file or an address, and a run directory does "
                    f"not choose what is read. If it may be that, say so in conf/{group}/{name}.yaml, at the end of "
                    f"the comment of {knob}: [{knob}] is for any value."
                )
    return OpenedRun(path, best, summary, checked_config(tree))


def not_words(value: Any) -> Iterator[str]:
    """The texts in a value that are more than a word, such as paths and addresses: of code or weights to load."""
    if isinstance(value, str):
        if not WORD.fullmatch(value):
            yield value
    elif isinstance(value, list | dict):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from not_words(one)


def _nodes(tree: dict[str, Any], summary: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Group, name of the option and node of everything that is instantiated."""
    for group in USED[:-2]:
        if group in LISTED:
            yield from ((group, name, node) for name, node in tree[group].items())
        else:
            yield group, summary["choices"].get(group, ""), tree[group]


def _lacking(summary: dict[str, Any]) -> str:
    """What a summary lacks for its run to be used, in words; empty if nothing."""
    data = summary["data"]
    if not data.get("classes") or "task" not in data:
        return "names no classes and task"
    if not 1 <= data.get("channels", 0) <= MAX_CHANNELS:
        return f"names no number of channels from 1 to {MAX_CHANNELS}"
    for size in (data.get("image_size", ()), data.get("input_size", ())):
        if len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size):
            return f"names no height and width of images from 1 to {MAX_SIDE} pixels"
    return "" if "precision" in summary.get("environment", {}) else "does not say in which precision it was trained"


def with_other_data(run: OpenedRun, typed: Sequence[str] = ()) -> DictConfig:
    """Our own configuration with the run's data, normalisation and test-time flips, or with those that are typed.

    Raises: UserError for what cannot differ from the run, or is not allowed.
    """
    allowed = ("data=", "data.", "norm=", "norm.", "test_flips=", "test_shifts=")
    if wrong := [word for word in typed if not word.startswith(allowed)]:
        raise UserError(
            f"{wrong[0]}: only data, norm, test_flips and test_shifts can differ from the run. Type one of those."
        )
    given = {word.split("=")[0] for word in typed}
    kept = [group for group in ("data", "norm") if group not in given]
    for group in kept:
        if (option := run.summary["choices"].get(group)) not in options(group):
            raise UserError(
                f"{run.path} was trained with {group}={option}, and there is no such option here. Type {group}= and "
                f"one of {', '.join(options(group))}."
            )
    made = configuration([*(f"{group}={run.summary['choices'][group]}" for group in kept), *typed])
    for group in kept:
        ours, theirs = plain(made[group]), plain(run.config[group])
        mine = {key: value for key, value in ours.items() if key in OURS or f"{group}.{key}" in given}
        made[group] = theirs | mine
    if "data" in given and "image_size" in made.data and "data.image_size" not in given:
        height, width = run.summary["data"]["image_size"]
        made.data.image_size = height if height == width else [height, width]
    for name in {"test_flips", "test_shifts"} - given:
        made[name] = run.config[name]
    check_values(made, "data", "norm", "test_flips", "test_shifts")
    return made
