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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra.utils
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

CONF = Path(__file__).parent.parent / "conf"

# What a result is made of, in the order of its name.
GROUPS = ("data", "norm", "aug", "model", "optim", "sched", "callbacks")
UNNAMED = ("none", "constant")  # options that do nothing do not show in the name

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
    "resident",
    "cuda_graph",
)


class UserError(Exception):
    """Something the user can mend. The text says what was given, what is allowed and what to type. Exit status 2."""


# ---------------------------------------------------------------------------------------------------- run identity


def run_id(config: DictConfig) -> str:
    """The name of the run directory: options, changed knobs, hash; at most 120 characters.

    config: the whole configuration, with its `hydra` node, which knows the chosen options.
    """
    choices = chosen(config)
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


def identity(config: DictConfig) -> str:
    """SHA-256 over everything in the configuration that can change the result."""
    kept = {path: _canonical(value) for path, value in leaves(job_config(config)) if not excluded(path)}
    if content := data_identity(config):
        kept["data"] = content
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


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


def described(choices: Mapping[str, list[str]]) -> dict[str, str]:
    """Choices as text: {"data": "cifar10", "norm": "none", "aug": "crop_flip+cutmix", ...}."""
    return {group: "+".join(choices[group]) or "none" for group in (*GROUPS, "trainer")}


def changes(config: DictConfig) -> dict[str, Any]:
    """The knobs that differ from what train.yaml and the chosen options' files say: {"optim.lr": 0.1}."""
    defaults = defaults_of(config)
    return {
        path: value
        for path, value in leaves(job_config(config))
        if not excluded(path) and (path not in defaults or value != defaults[path])
    }


def differences(config: DictConfig) -> dict[str, str]:
    """What a configuration changes against the defaults, as typed: group -> option, then path -> value.

    config: with its `hydra` node.
    """
    options = described(chosen(config))
    different = {group: option for group, option in options.items() if option != default_option(group)}
    return different | {path: as_typed(value) for path, value in changes(config).items()}


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
    defaults = dict(leaves(option_file("train")))
    for group, options in chosen(config).items():
        for option in options:
            if (CONF / group / f"{option}.yaml").exists() and group not in ("experiment", "debug"):
                prefix = f"{group}.{option}." if group in LISTED else f"{group}."
                defaults |= {prefix + path: value for path, value in leaves(option_file(f"{group}/{option}"))}
    return {
        path: OmegaConf.select(config, value[2:-1]) if re.fullmatch(r"\$\{[\w.]+\}", str(value)) else value
        for path, value in defaults.items()
    }


LISTED = ("aug", "logger", "callbacks")  # groups of which several options can be chosen, each below its own name


@functools.cache
def default_option(group: str) -> str:
    """The option that train.yaml chooses, as `described` names it."""
    option = next(entry[group] for entry in _file("train")["defaults"] if isinstance(entry, dict) and group in entry)
    return "+".join(option) if isinstance(option, list) else str(option)


@functools.cache
def option_file(name: str) -> dict[str, Any]:
    """What a file in conf/ says, with what it inherits: option_file("trainer/ddp")."""
    content = _file(name)
    inherited: dict[str, Any] = {}
    for parent in content.pop("defaults", []):
        if "/" in name and isinstance(parent, str) and parent != "_self_":
            inherited |= option_file(f"{name.rsplit('/', 1)[0]}/{parent}")
    content.pop("hydra", None)
    return inherited | content


def _file(name: str) -> dict[str, Any]:
    """A file in conf/ with the numbers that Hydra reads in it: to YAML alone, 1e-3 is text."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")))


def leaves(node: Mapping[str, Any], prefix: str = "", into_lists: bool = False) -> Iterator[tuple[str, Any]]:
    """Every value that is not a dictionary, with its dotted path."""
    for key, value in node.items():
        if into_lists and isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.", into_lists)
        else:
            yield f"{prefix}{key}", value


def excluded(path: str) -> bool:
    return any(path == pattern or path.startswith(f"{pattern}.") for pattern in NOT_IDENTITY)


# ------------------------------------------------------------------------------------------------------- targets


@functools.cache
def allowed_targets() -> frozenset[str]:
    """The classes that the files in conf/ name. Nothing else is ever instantiated, wherever a configuration is from."""
    return frozenset(
        target.strip("\"'")
        for file in CONF.glob("*/*.yaml")  # those below conf/hydra are no part of a run
        for target in re.findall(r"^\s*_target_:\s*(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    )


def check_targets(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that names another class than the files in conf/ do."""
    for path, value in leaves(config, into_lists=True):
        if path.rsplit(".", 1)[-1] == "_target_" and value not in allowed_targets():
            close = difflib.get_close_matches(str(value), allowed_targets(), n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UserError(
                f"{path}={value} is not allowed: only classes that a file in conf/ names are made.{hint} For a class "
                f"of your own, write a file conf/{path.split('.')[0]}/my_option.yaml with its _target_ and choose it."
            )


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


_sources: dict[str, Any] = {}


def data_source(node: DictConfig) -> Any:
    """The object of conf/data, one for a data set and process: it remembers what it has seen on the disk."""
    key = json.dumps(plain(node), sort_keys=True)
    if key not in _sources:
        _sources[key] = instantiate(node)
    return _sources[key]


def num_trained_on(config: DictConfig) -> int:
    """Images in an epoch, of all that the data set has for training."""
    num_train = round(data_source(config.data).num_train * (1 - config.val_fraction))
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
    print(f"cnnlab: {explain(error)}", file=sys.stderr)
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


def options(group: str) -> list[str]:
    """The names of the files of a group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def _unknown(given: str, offers: str, options: Sequence[str], prefix: str) -> str:
    wrong = re.split(r"[.=]", given)[-1]
    close = difflib.get_close_matches(wrong, options, n=1)
    advice = f"Did you mean {prefix}{close[0]}?" if close else "python train.py --help shows what can be typed."
    return f"{given}: there is no '{wrong}'. {offers} {', '.join(options)}. {advice}"
