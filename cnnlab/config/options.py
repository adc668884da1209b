"""The files of options: where they are, what they say, and which classes they name. Does not import torch.

Every group of options is a folder of YAML files. A project has folders of its own, which are searched before ours: that
of --config-dir, those of the variable CNNLAB_CONF, or the one that its pyproject.toml names:

    [tool.cnnlab]
    conf = "conf"

What lies beside such a folder can be imported, so that its files can name classes of the project.

What a value may be is said at the end of its comment, in brackets, as an expression of Python that names it:

    scale: [0.9, 1.1] # of the image's size [len(scale) == 2 and 0 < scale[0] <= scale[1]]

A file that says so for one of its values has them all checked, for their types too. The values of a file that says
nothing are for its class to check. Other names in the expression are those of the option's other values, `data.NAME`
for what the data are (see cnnlab.config.shape.Shape, and data.num_train), and `run.NAME` for any value of the run;
`is_file(value)` and `is_run(value)` say that a value names a file or a run directory, whose content is part of the
run's identity, and `is_size(value)` that it is one number or [height, width]. A comment that ends with [changes
nothing] keeps a value out of the run's identity, or the whole option if it has a line of its own.
"""

import functools
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from cnnlab.text import say

PACKAGE = Path(__file__).parents[1]
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
VARIABLE = "CNNLAB_CONF"

# What a result is made of, in the order of its name.
GROUPS = ("data", "norm", "aug", "model", "loss", "metrics", "optim", "sched", "module", "callbacks")
LISTED = (
    "aug",
    "metrics",
    "logger",
    "callbacks",
)  # groups of which several options can be chosen, each below its own name
OVERLAYS = ("experiment", "debug")  # whose files change any group


class UserError(Exception):
    """Something the user can fix. The text says what was given, what is allowed and what to use. Exit status 2."""


def folders() -> tuple[Path, ...]:
    """The folders of option files, in the order in which they are searched; ours is the last one.

    Raises: UserError if one that is named is not there.
    """
    named, current = os.environ.get(VARIABLE, ""), None
    if not named:
        with suppress(FileNotFoundError):  # somebody has removed the current folder
            current = Path.cwd()
    return _folders(named, current)


@functools.cache
def _folders(named: str, current: Path | None) -> tuple[Path, ...]:
    own = [Path(name).absolute() for name in named.split(os.pathsep) if name] or list(_of_project(current))
    for folder in own:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder of options. Use --config-dir FOLDER, {VARIABLE}, or conf in pyproject.toml."
            )
        beside = str(folder.parent)
        # A script's own folder is on the path, but a project is also used from elsewhere: by --config-dir, by `cnnlab`,
        # in processes of a sweep. It comes last, so that a module of the project hides none that is installed.
        if beside not in sys.path:
            sys.path.append(beside)
    return (*own, CONF)


def _of_project(current: Path | None) -> Iterator[Path]:
    """The folder that the next pyproject.toml names, here or above.

    That of another user is no project of ours, nor is one in a folder where everybody puts files, as /tmp. What lies in
    a run directory is data.
    """
    for folder in (current, *current.parents) if current else ():
        file = folder / "pyproject.toml"
        if os.path.isfile(file) and not os.path.isdir(folder / ".hydra"):  # not where nothing may be looked at
            if is_strangers(file):
                with suppress(OSError), open(file, "rb") as opened:
                    if b"[tool.cnnlab]" in opened.read(65_536):
                        say(f"cnnlab: {file} may be another user's and is not used. Use --config-dir.", sys.stderr)
                continue
            try:
                conf = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("cnnlab", {}).get("conf")
            except (OSError, ValueError) as error:
                raise UserError(f"{file} cannot be read: {error}.") from error
            if isinstance(conf, str):
                yield folder / conf
            return


def is_strangers(file: Path) -> bool:
    """Whether another user may have put a file where it is."""
    folder = file.parent.stat()
    shared = folder.st_mode & 0o1002 == 0o1002  # everybody may put files there, which their owners alone may remove
    return shared or not {file.lstat().st_uid, folder.st_uid} <= {os.geteuid(), 0}


def use_folders(named: list[str]) -> None:
    """Search these folders before ours, in this process and in those that it starts."""
    os.environ[VARIABLE] = os.pathsep.join(os.path.abspath(name) for name in named)


def files(group: str) -> dict[str, Path]:
    """The option files of a group by name, the first ones that are found. "*": of all groups, with the group's name."""
    return _files(group, folders())


@functools.cache
def _files(group: str, searched: tuple[Path, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in reversed(searched):
        for file in sorted(folder.glob(f"{group}/*.yaml")):  # those below conf/hydra are no part of a run
            found[f"{file.parent.name}/{file.stem}" if group == "*" else file.stem] = file
    return found


def options(group: str) -> list[str]:
    """The names of the options of a group."""
    return sorted(files(group))


@functools.cache
def _content(path: Path) -> dict[str, Any]:
    """What a file says, with the numbers that Hydra reads in it: to YAML alone, 1e-3 is text."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))


def _path(name: str) -> Path:
    return next(path for folder in folders() if (path := folder / f"{name}.yaml").exists())


def option_file(name: str) -> dict[str, Any]:
    """What an option's file says, with what it inherits: option_file("trainer/ddp")."""
    content = dict(_content(_path(name)))
    inherited: dict[str, Any] = {}
    for parent in content.pop("defaults", []):
        if "/" in name and isinstance(parent, str) and parent != "_self_":
            inherited |= option_file(f"{name.rsplit('/', 1)[0]}/{parent}")
    content.pop("hydra", None)
    return inherited | content


def limits_of_file(name: str) -> dict[str, str]:
    """The values that an option's file checks, by path, with what each one must satisfy; that may be nothing."""
    found: dict[str, str] = {}
    for path in _inherited(name):
        said = {key: re.search(r"\[((?:[^][]|\[[^][]*\])*)\]$", comment) for key, comment in _comments(path).items()}
        limits = {
            key: limit[1] if limit and re.search(rf"\b{key.rpartition('.')[2]}\b", limit[1]) else ""
            for key, limit in said.items()
        }
        found |= limits if any(limits.values()) else {}
    return found


def comments_of_file(name: str) -> dict[str, str]:
    """What an option's file says behind its values, by path."""
    found: dict[str, str] = {}
    for path in _inherited(name):
        found |= _comments(path)
    return found


def description(name: str) -> str:
    """What an option's file says first: its first line of comment; empty if there is none."""
    for line in _path(name).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            return line.lstrip("# ")
    return ""


def _inherited(name: str) -> list[Path]:
    """An option's file, after those whose values it inherits: "trainer/ddp" -> auto.yaml, ddp.yaml."""
    path = _path(name)
    parents = [parent for parent in _content(path).get("defaults", []) if "/" in name and isinstance(parent, str)]
    group = name.rpartition("/")[0]
    return [file for parent in parents if parent != "_self_" for file in _inherited(f"{group}/{parent}")] + [path]


@functools.cache
def _comments(path: Path) -> dict[str, str]:
    """The comment behind every value, by its path, but for "[changes nothing]"."""
    text = path.read_text(encoding="utf-8")
    lines = [*text.splitlines(), ""]

    def walk(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in node.value:
            if isinstance(value, yaml.MappingNode):
                yield from walk(value, f"{prefix}{key.value}.")
            else:
                end = value.end_mark if isinstance(value, yaml.ScalarNode) or value.flow_style else key.end_mark
                behind = lines[end.line][end.column :].removeprefix(":")
                yield f"{prefix}{key.value}", behind.replace("[changes nothing]", "").strip().lstrip("# ")

    root = yaml.compose(text)
    return dict(walk(root, "")) if isinstance(root, yaml.MappingNode) else {}


def changes_nothing(name: str) -> frozenset[str]:
    """What of an option is said to change no result, by "[changes nothing]" at the end of a comment.

    The keys of values; an empty one if a line of its own says so, of the whole option.
    """
    pattern = re.compile(r"^(?:(\w+):.*|)#.*\[changes nothing\]\s*$", re.MULTILINE)
    return frozenset(key for path in _inherited(name) for key in pattern.findall(path.read_text(encoding="utf-8")))


def default_option(group: str) -> str:
    """The option that train.yaml chooses, joined by + if there are several."""
    defaults = _content(_path("train"))["defaults"]
    option = next(entry[group] for entry in defaults if isinstance(entry, dict) and group in entry)
    return "+".join(option) if isinstance(option, list) else str(option)


def allowed_targets(group: str = "*") -> frozenset[str]:
    """The classes that the files of a group name, or those that change any group. Nothing else is instantiated."""
    return frozenset(
        target for folder in (group, *OVERLAYS) for file in files(folder).values() for target in _targets(file)
    )


@functools.cache
def _targets(file: Path) -> tuple[str, ...]:
    text = file.read_text(encoding="utf-8")
    return tuple(found.strip("\"'") for found in re.findall(r"^\s*_target_:\s*(\S+)", text, re.MULTILINE))


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a dictionary, with its dotted path."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
