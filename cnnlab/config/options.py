"""The option files: where they are, what they contain, and which classes they name. Does not import torch.

Every group of options is a folder of YAML files. A project has folders of its own, which are searched before ours:
those given by --config-dir or by the variable CNNLAB_CONF, or the one that its pyproject.toml names:

    [tool.cnnlab]
    conf = "conf"

The parent of such a folder is added to the import path, so that option files can name classes of the project.

The limit of a value stands at the end of its comment, in brackets, as a Python expression that uses its name:

    scale: [0.9, 1.1] # of the image's size [len(scale) == 2 and 0 < scale[0] <= scale[1]]

If a file has a limit for one of its values, all of them are checked, for their types too; otherwise the class checks
them. The expression may also use the option's other values; `data.NAME`, a fact about the data (see
cnnlab.config.shape.Shape, and data.num_train); `run.NAME`, any value of the run; `is_file(value)` and `is_run(value)`,
for a value that names a file or a run directory, whose content then is part of the run's identity; `is_size(value)`,
for one number or [height, width], and `fits(value, height, width)`. A comment that ends with [changes nothing] keeps a
value out of the run's identity; on a line of its own, it does so for the whole option.
"""

import functools
import itertools
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

# The groups that decide a result, in the order in which they appear in a run's name.
GROUPS = ("data", "norm", "aug", "model", "loss", "metrics", "optim", "sched", "module", "callbacks")
LISTED = ("aug", "metrics", "logger", "callbacks")  # several options can be chosen, each under its own name
OVERLAYS = ("experiment", "debug")  # their files may change any group


class UserError(Exception):
    """Something the user can fix. The text says what was given, what is allowed and what to use. Exit status 2."""


def folders() -> tuple[Path, ...]:
    """The folders of option files, in the order in which they are searched; ours is the last one.

    Raises: UserError if one of them does not exist.
    """
    named, current = os.environ.get(VARIABLE, ""), None
    if not named:
        with suppress(FileNotFoundError):  # the current folder was removed
            current = Path.cwd()
    return _folders(named, current)


@functools.cache
def _folders(named: str, current: Path | None) -> tuple[Path, ...]:
    own = [Path(name).absolute() for name in named.split(os.pathsep) if name] or list(_of_project(current))
    for folder in own:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not a folder of options. Use --config-dir FOLDER, {VARIABLE}, or conf in pyproject.toml."
            )
        beside = str(folder.parent)
        # An option file names its class by a module of the project, which need not be installed. Python finds it only
        # if the script that runs is in the project's folder; `cnnlab` and the processes of a sweep are not. The folder
        # comes last, so that a module of the project hides no installed one.
        if beside not in sys.path:
            sys.path.append(beside)
    return (*own, CONF)


def _of_project(current: Path | None) -> Iterator[Path]:
    """The folder that the nearest pyproject.toml names, in this folder or above.

    A file that another user may have written is not used, nor one in a run directory, whose content is data.
    """
    for folder in (current, *current.parents) if current else ():
        file = folder / "pyproject.toml"
        if not os.path.isfile(file) or os.path.isdir(folder / ".hydra"):  # no error without permission, unlike Path's
            continue
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
    """Whether another user may have put this file there."""
    folder = file.parent.stat()
    shared = folder.st_mode & 0o1002 == 0o1002  # as /tmp: everybody may create files there
    return shared or not {file.lstat().st_uid, folder.st_uid} <= {os.geteuid(), 0}


def use_folders(named: list[str]) -> None:
    """Search these folders before ours, in this process and in those that it starts. Raises: UserError."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = os.pathsep.join(os.path.abspath(name) for name in named)
    try:
        folders()
    except UserError:
        os.environ.pop(VARIABLE)
        os.environ |= {VARIABLE: before} if before else {}
        raise


def files(group: str) -> dict[str, Path]:
    """The option files of a group by name, the first ones that are found. "*": of all groups, as "group/name"."""
    return _files(group, folders())


@functools.cache
def _files(group: str, searched: tuple[Path, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in reversed(searched):
        for file in sorted(folder.glob(f"{group}/{'**/' * (group in OVERLAYS)}*.yaml")):  # not those below conf/hydra
            found[file.relative_to(folder / ("" if group == "*" else group)).with_suffix("").as_posix()] = file
    return found


def refuse_folder(group: str, name: str) -> None:
    """Raises: UserError for an option in a folder below that of its group, which only experiments can have."""
    if "/" in name and group not in OVERLAYS:
        raise UserError(
            f"{group}={name}: the options of {group} are the files of conf/{group}, not of folders in it. Move the "
            f"file to conf/{group}/{name.rpartition('/')[2]}.yaml."
        )


def options(group: str) -> list[str]:
    """The names of the options of a group."""
    return sorted(files(group))


@functools.cache
def _content(path: Path) -> dict[str, Any]:
    """The content of a file, read by OmegaConf: in plain YAML, 1e-3 would be text.

    Raises: UserError for a file that Hydra could not read either.
    """
    try:
        if (text := path.read_text("utf-8")).startswith("\ufeff"):
            raise UserError(f"{path} begins with a byte order mark, which hides its first line. Save it without one.")
        content = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has no keys. Use KEY: VALUE on every line.")
    return cast(dict[str, Any], content)


def _path(name: str) -> Path:
    return next(path for folder in folders() if (path := folder / f"{name}.yaml").exists())


def option_file(name: str) -> dict[str, Any]:
    """The values in an option's file and in those that it inherits from: option_file("trainer/ddp").

    Raises: UserError if Hydra would compose them into another place than `aug.NAME`.
    """
    values: dict[str, Any] = {}
    for file in _with_inherited(name):
        values = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(values, _content(file))))
    group, place = name.partition("/")[0], name.replace("/", ".")
    stated = re.compile(rf"#\s*@package\s+{re.escape(place)}\s*$", re.MULTILINE)
    if group in LISTED and not name.endswith("/none") and not stated.match(_path(name).read_text("utf-8")):
        raise UserError(f"{_path(name)} must begin with its place among the {group}: # @package {place}")
    return {key: value for key, value in values.items() if key not in ("defaults", "hydra")}


def limits_of_file(name: str) -> dict[str, str]:
    """The limits of the values that an option's file checks, by path; empty for a value that has none."""
    found: dict[str, str] = {}
    for file in _with_inherited(name):
        limits = {path: _limit(path, comment) for path, comment in _comments(file).items()}
        found |= limits if any(limits.values()) else {}
    return found


def _limit(path: str, comment: str) -> str:
    """The expression in brackets at the end of a comment, if it names the value or compares something."""
    found = re.search(r"\[((?:[^][]|\[[^][]*\])*)\]$", comment)
    return found[1] if found and re.search(rf"\b{path.rpartition('.')[2]}\b|[<>]|[!=]=", found[1]) else ""


def comments_of_file(name: str) -> dict[str, str]:
    """The comments on the values in an option's file, by path."""
    return {path: comment for file in _with_inherited(name) for path, comment in _comments(file).items()}


def head(name: str) -> list[str]:
    """The lines of the comment that an option's file begins with."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), _path(name).read_text("utf-8").splitlines())
    return [line.removeprefix("#").removeprefix(" ") for line in comment if not line.startswith("# @package")]


def description(name: str) -> str:
    """The comment that an option's file begins with, up to the end of the sentence that its first line ends in."""
    first, *more = [line.lstrip() for line in head(name)] or [""]
    if more and not first.endswith("."):
        first = f"{first} {more[0].partition('. ')[0].removesuffix('.')}."
    return first


def _with_inherited(name: str) -> list[Path]:
    """An option's file, after those that it inherits from: "trainer/ddp" -> auto.yaml, ddp.yaml."""
    path = _path(name)
    parents = [parent for parent in _content(path).get("defaults", []) if "/" in name and isinstance(parent, str)]
    group = name.rpartition("/")[0]
    return [file for parent in parents if parent != "_self_" for file in _with_inherited(f"{group}/{parent}")] + [path]


@functools.cache
def _comments(path: Path) -> dict[str, str]:
    """The comment behind every value, by its path, without "[changes nothing]"."""
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
    """The keys of an option's file that are marked [changes nothing]; an empty one stands for the whole option."""
    pattern = re.compile(r"^(?:(\w+):.*|)#.*\[changes nothing\]\s*$", re.MULTILINE)
    return frozenset(key for path in _with_inherited(name) for key in pattern.findall(path.read_text(encoding="utf-8")))


def default_option(group: str) -> str:
    """The option that train.yaml chooses, joined by + if there are several."""
    defaults = _content(_path("train"))["defaults"]
    option = next(entry[group] for entry in defaults if isinstance(entry, dict) and group in entry)
    return "+".join(option) if isinstance(option, list) else str(option)


def allowed_targets(group: str = "*") -> frozenset[str]:
    """The classes named by the files of a group, and by experiments. Nothing else is instantiated."""
    return frozenset(
        target for folder in (group, *OVERLAYS) for file in files(folder).values() for target in _targets(file)
    )


@functools.cache
def _targets(file: Path) -> tuple[str, ...]:
    text = re.sub(r"#.*", "", file.read_text(encoding="utf-8", errors="replace"))
    return tuple(found.strip("\"'") for found in re.findall(r"_target_[\"']?:\s*([^\s,}\]]+)", text))


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a dictionary, with its dotted path."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def beside(value: Any, default: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every dictionary in a value, within lists too, with the one in the same place of another value, or an empty one.

    A dictionary may be changed when it is yielded.
    """
    if isinstance(value, dict):
        default = default if isinstance(default, dict) else {}
        yield value, default
        for key, one in value.items():
            yield from beside(one, default.get(key))
    elif isinstance(value, list):
        for one, other in itertools.zip_longest(value, (default if isinstance(default, list) else [])[: len(value)]):
            yield from beside(one, other)
