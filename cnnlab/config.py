"""What a configuration means: run identity, defaults, allowed targets. Takes no torch, so that mistakes answer at once.

A run is its configuration. `run_id` names the run directory: the chosen options, the knobs that differ from their
option's file, and a hash of everything that can change the result. Where a run computes, how it logs and where its
data are kept cannot, so they stay out of the hash (`NOT_IDENTITY`).
"""

import difflib
import functools
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra.utils
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cnnlab.options import (
    CONF,
    GROUPS,
    LISTED,
    OVERLAYS,
    UserError,
    allowed_targets,
    default_option,
    files,
    leaves,
    limits_of_file,
    only_watches,
    option_file,
    options,
)
from cnnlab.text import say

UNNAMED = ("none", "constant", "cross_entropy", "acc", "classifier")  # options that do not show in the name

NOT_IDENTITY = (
    "name",
    "output_dir",
    "rerun",
    "plan",
    "on_busy",
    "checkpoint",
    "logger",
    "launcher",
    "trainer._target_",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.profiler",
    "cache_dir",
    "data.cache_dir",
    "data.root",
    "data.sources",
    "data.timeout",
    "data.num_workers",
    "resident",
    "cuda_graph",
)


NOT_OWN = (
    "is not the run's own directory, whose name is made from its configuration. Use output_dir=FOLDER and name=NAME to "
    "say where it is."
)


# ---------------------------------------------------------------------------------------------------- run identity


def run_id(config: DictConfig) -> str:
    """The name of the run directory: options, changed knobs, hash; at most 120 characters.

    config: the whole configuration, with its `hydra` node, which knows the chosen options.
    """
    choices = deciding(config)
    names = [option for group in GROUPS for option in choices[group] if option not in UNNAMED]
    if content := data_identity(config):
        names.append(f"data={content[:6]}")
    knobs = [f"{path.rsplit('.', 1)[-1]}={_canonical(value)}" for path, value in changes(config).items()]
    name = re.sub(r"[^\w.=+-]+", "_", "-".join(names + knobs), flags=re.ASCII)
    return f"{name[:111].rstrip('-_.')}-{identity(config)[:8]}"


def run_path(config: DictConfig) -> Path:
    """The run directory. config: with its `hydra` node."""
    return Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)


OmegaConf.register_new_resolver("run_id", lambda _root_: run_id(_root_), replace=True)


def identity(config: DictConfig, without: str = "") -> str:
    """SHA-256 over everything in the configuration that can change the result, but for the value at `without`.

    An option counts by its name, and not by where its class is defined.
    """
    defaults, watching = defaults_of(config), tuple(f"callbacks.{name}." for name in watchers(config))
    kept = {
        path: _canonical(value)
        for path, value in leaves(job_config(config))
        if not excluded(path)
        and path != without
        and not path.startswith(watching)
        and not (path.endswith("._target_") and value == defaults.get(path))
    }
    kept |= {f"{group}=": "+".join(names) for group, names in deciding(config).items() if group in GROUPS}
    if content := data_identity(config):
        kept["data"] = content
    kept |= {path: digest for path, limit in limits_of(config).items() if (digest := content_of(config, path, limit))}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def is_file(path: str) -> bool:
    """Whether a value names a file. An option that says so for a value has the content in the identity of its runs."""
    return Path(path).is_file()


def is_run(path: str) -> bool:
    """Whether a value names a run directory; as `is_file`, and the content is that of its best checkpoint."""
    return is_file(str(Path(path, "checkpoints", "best.ckpt.sha256")))


def content_of(config: DictConfig, path: str, limit: str) -> str:
    """What stands for the content of a file or a run that a value names; empty if it names none."""
    value = OmegaConf.select(config, path) if re.search(r"\bis_(file|run)\(", limit) else None
    if not isinstance(value, str):
        return ""
    if is_run(value):
        return Path(value, "checkpoints", "best.ckpt.sha256").read_text("utf-8").split()[0]
    if is_file(value):
        with open(value, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def data_identity(config: DictConfig) -> str:
    """What the data are, where the configuration only says where they lie; empty if it says it all.

    Also empty for data that cannot be found or listed, which `check` refuses.
    """
    try:
        source = data_source(config.data)
        return source.identity() if hasattr(source, "identity") else ""
    except (UserError, OmegaConfBaseException):
        return ""


def _canonical(value: Any) -> str:
    """A value as text that does not depend on how it was typed: 1 and 1.0 are the same rate."""
    if isinstance(value, list):
        return f"[{','.join(map(_canonical, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.15g}" if isinstance(value, int | float) else str(value)


def chosen(config: DictConfig) -> dict[str, list[str]]:
    """The chosen options of every group that is ours: {"optim": ["sgd"], "aug": ["crop_flip", "cutmix"], ...}."""
    choices = {
        group: [option]
        for group, option in config.hydra.runtime.choices.items()
        if option is not None and not group.startswith("hydra/") and group not in LISTED
    }
    return choices | {group: sorted(config[group]) for group in LISTED}


def watchers(config: DictConfig) -> list[str]:
    """The chosen callbacks that change no result."""
    return [str(name) for name in config.callbacks if name in files("callbacks") and only_watches(f"callbacks/{name}")]


def deciding(config: DictConfig) -> dict[str, list[str]]:
    """The chosen options, but for those that change no result."""
    choices, watching = chosen(config), watchers(config)
    return choices | {"callbacks": [name for name in choices["callbacks"] if name not in watching]}


def selection(config: DictConfig) -> tuple[str, bool]:
    """The metric that decides the best epoch and the best setting, and whether its larger value is the better one.

    What is said of held-out images is said of the test images where nothing is held out.
    """
    name = str(config.select_on)
    if not config.val_fraction and name.startswith("val/"):
        name = name.replace("val/", "test/", 1)
    return name, config.select_mode == "max" if config.select_mode else not name.endswith("loss")


def described(choices: Mapping[str, list[str]]) -> dict[str, str]:
    """Choices as text: {"data": "cifar10", "norm": "none", "aug": "crop_flip+cutmix", ...}."""
    return {group: "+".join(choices[group]) or "none" for group in (*GROUPS, "trainer")}


DELETED = "deleted"  # stands for the value of an argument that was taken out, as in '~optim.lr'


def changes(config: DictConfig) -> dict[str, Any]:
    """What differs from train.yaml and the chosen options' files: {"optim.lr": 0.1, "optim.momentum": DELETED}."""
    defaults, found = defaults_of(config), dict(leaves(job_config(config)))
    changed = {path: value for path, value in found.items() if path not in defaults or value != defaults[path]}
    left = {path.rsplit(".", depth)[0] for path in found for depth in range(path.count(".") + 1)}  # and what holds it
    deleted = {
        path: DELETED
        for path in defaults
        if path not in left and not any(path.startswith(f"{shorter}.") for shorter in found)
    }
    watching = tuple(f"callbacks.{name}." for name in watchers(config))
    return {
        path: value
        for path, value in (changed | deleted).items()
        if not excluded(path) and not path.startswith(watching)
    }


def differences(config: DictConfig) -> dict[str, str]:
    """What a configuration changes against the defaults, as typed: group -> option, then path -> value.

    config: with its `hydra` node.
    """
    options = described(chosen(config))
    different = {group: option for group, option in options.items() if option != default_option(group)}
    return different | {path: as_typed(value) for path, value in changes(config).items()}


def targets(config: DictConfig) -> frozenset[str]:
    """The import paths of what can change the result."""
    found = leaves({group: plain(config[group]) for group in GROUPS})
    return frozenset(str(value) for path, value in found if path.endswith("._target_"))


def job_config(config: DictConfig) -> dict[str, Any]:
    """The configuration without its `hydra` node, resolved, as plain containers."""
    return plain(ours(config))


def ours(config: DictConfig) -> DictConfig:
    """The configuration without its `hydra` node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolved, as dictionaries, lists and numbers."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def defaults_of(config: DictConfig) -> dict[str, Any]:
    """What train.yaml and the files of the chosen options say before anything is overridden, by path.

    A value that is another one's, ${optim.lr}, is what that one is in the configuration.
    """
    defaults = _of_files(config, lambda name: leaves(option_file(name)))
    return {
        path: OmegaConf.select(config, value[2:-1]) if re.fullmatch(r"\$\{[\w.]+\}", str(value)) else value
        for path, value in defaults.items()
    }


def limits_of(config: DictConfig) -> dict[str, str]:
    """What train.yaml and the files of the chosen options say that values must satisfy, by path."""
    return _of_files(config, lambda name: limits_of_file(name).items())


def _of_files(config: DictConfig, read: Callable[[str], Iterable[tuple[str, Any]]]) -> dict[str, Any]:
    """What is read of train.yaml and of the files of the chosen options, by path in the configuration."""
    found = dict(read("train"))
    for group, names in chosen(config).items():
        for option in names:
            if option in files(group) and group not in OVERLAYS:
                prefix = f"{group}.{option}." if group in LISTED else f"{group}."
                found |= {prefix + path: said for path, said in read(f"{group}/{option}")}
    return found


def excluded(path: str) -> bool:
    return any(path == pattern or path.startswith(f"{pattern}.") for pattern in NOT_IDENTITY)


# ------------------------------------------------------------------------------------------------------- targets


def configuration(overrides: list[str]) -> DictConfig:
    """The configuration that train.py would have for these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides, return_hydra_config=True)


def check_targets(config: Any, path: str = "") -> None:
    """Refuse a configuration that would instantiate anything but the classes that the files in conf/ name.

    It must be plain and resolved: what passes has no interpolation and no key that changes how Hydra instantiates it.
    So what Hydra instantiates is what was seen here.

    config: a node or a whole configuration, as plain containers. path: where the node is; below one of our groups only
    that group's classes are allowed.

    Raises: UserError.
    """
    if isinstance(config, Mapping):
        for key, value in config.items():
            place = f"{path}.{key}".lstrip(".")
            if key == "_target_":
                _check_target(place, value)
            elif not isinstance(key, str) or (key != "_partial_" and re.fullmatch("_.*_", key)):
                raise UserError(f"{place} is not allowed: the keys of an option are the arguments of its class.")
            else:
                check_targets(value, place)
    elif isinstance(config, list):
        for number, value in enumerate(config):
            check_targets(value, f"{path}.{number}")
    elif isinstance(config, str) and ("${" in config or config == "???"):
        raise UserError(f"{path}={config} is not allowed: a value cannot refer to another one here. Type the value.")


def _check_target(path: str, target: Any) -> None:
    group = path.partition(".")[0]
    allowed = allowed_targets(group if group in (*GROUPS, "trainer", "logger") else "*")
    if not isinstance(target, str) or target not in allowed:
        close = difflib.get_close_matches(str(target), allowed, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"{path}={target} is not allowed: only what the file of an option names is made.{hint} For a class of your "
            f"own, write a file {group}/my_option.yaml with its _target_ in a folder that --config-dir names."
        )


def checked_config(tree: Any) -> DictConfig:
    """A configuration made of plain containers, once `check_targets` has seen them: nothing is left to be resolved."""
    check_targets(tree)
    return OmegaConf.create(tree)


def instantiate(node: DictConfig | Mapping[str, Any], **arguments: Any) -> Any:
    """hydra.utils.instantiate for allowed targets; a value that the class refuses becomes a UserError."""
    node = plain(node) if isinstance(node, DictConfig) else node
    check_targets(node)
    try:
        made = hydra.utils.instantiate(node, **arguments, _convert_="all")
        if isinstance(made, functools.partial):
            inspect.signature(made.func).bind_partial(**made.keywords)
        return made
    except TypeError as error:
        raise UserError(f"{node['_target_']} refuses its arguments: {error}") from error
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            package = (cause.name or str(node["_target_"])).partition(".")[0]
            raise UserError(
                f"{node['_target_']} needs the package {package}, which is not installed ({cause}). Type pip install "
                f"{package}, or choose another option."
            ) from error
        if (
            isinstance(cause, ValueError | TypeError) or type(cause).__name__ == "MisconfigurationException"
        ):  # Lightning's
            raise UserError(f"{node['_target_']} refuses its arguments: {cause}") from error
        raise (cause or error) from None


def filled(node: DictConfig | Mapping[str, Any], facts: Mapping[str, Any], root: str = "data") -> dict[str, Any]:
    """The arguments of an option with the facts about the data in place of their names, `data.num_classes`.

    root: what the names begin with. Raises: UserError for a name that is none.
    """

    def value(given: Any) -> Any:
        if isinstance(given, dict):
            return {key: value(one) for key, one in given.items()}
        if isinstance(given, list):
            return [value(one) for one in given]
        if not isinstance(given, str) or not given.startswith(f"{root}."):
            return given
        if (name := given.removeprefix(f"{root}.")) not in facts:
            known = ", ".join(f"{root}.{fact}" for fact in facts)
            raise UserError(f"{given} is not known. Use one of {known}.")
        return facts[name]

    return value(plain(node) if isinstance(node, DictConfig) else dict(node))


_sources: dict[str, Any] = {}


def data_source(node: DictConfig) -> Any:
    """The object of conf/data, one for a data set and process: it remembers what it has seen on the disk."""
    key = json.dumps(plain(node), sort_keys=True)
    if key not in _sources:
        _sources[key] = instantiate(node)
    return _sources[key]


def num_trained_on(config: DictConfig) -> int | None:
    """Images in an epoch, of all that the data set has for training; None if that is not known before it is loaded."""
    if (num := getattr(data_source(config.data), "num_train", None)) is None:
        return None
    num_train = round(num * (1 - config.val_fraction))
    return min(num_train, config.num_train_images or num_train)


def as_typed(value: Any) -> str:
    """A value as one types it on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace('"', "")


# ------------------------------------------------------------------------------------------------------ mistakes


@contextmanager
def refusing() -> Iterator[None]:
    """Within the block, a mistake that we or Hydra find ends the process with one paragraph and status 2."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(refuse(error))


def refuse(error: Exception) -> int:
    """Print the one paragraph for a user's mistake; return the exit status 2."""
    say(f"cnnlab: {explain(error).replace(chr(10), ' ')}", file=sys.stderr)
    return 2


def explain(error: Exception) -> str:
    """One paragraph for a mistake that we or Hydra found: what was given, what is allowed, what to type."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read. Type key=value; lists in quotes, 'key=[a,b]'; "
            f"other than letters, digits and ./:_- in two pairs of quotes, 'key=\"(my pictures)\"'."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return _unknown(f"{group}={option}", f"The group {group} offers", error.options or options(group), f"{group}=")
    cause = error.__cause__
    if (
        isinstance(cause, ConfigAttributeError | ConfigKeyError)
        and cause.full_key
        and isinstance(cause.parent_node, DictConfig)
    ):
        parent = cause.full_key.rpartition(".")[0]
        keys = [str(key) for key in cause.parent_node if key not in ("_target_", "_partial_", "hydra")]
        prefix = f"{parent}." if parent else ""
        knobs = () if parent else (path for path, _ in leaves(job_config(cause.parent_node)))
        if below := [path for path in knobs if path.endswith(f".{cause.full_key}")]:  # lr=0.1
            return f"{cause.full_key}: there is no '{cause.full_key}' here. Did you mean {' or '.join(below)}?"
        return _unknown(cause.full_key, f"{parent or 'The configuration'} has", keys, prefix)
    text = re.sub(r"\s*(full_key|object_type|reference_type).*|\s+", " ", f"{error} {cause or ''}").strip()
    return f"{text} (python train.py --help shows what can be typed.)"


def _unknown(given: str, offers: str, options: Sequence[str], prefix: str) -> str:
    wrong = re.split(r"[.=]", given)[-1]
    close = difflib.get_close_matches(wrong, options, n=1)
    advice = f"Did you mean {prefix}{close[0]}?" if close else "python train.py --help shows what can be typed."
    return f"{given}: there is no '{wrong}'. {offers} {', '.join(options)}. {advice}"
