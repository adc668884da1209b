"""Run identity: a run is its configuration. Does not import torch.

`run_id` names the run directory: the chosen options, the values that differ from their option's file, and a hash of
everything that can change the result. Where a run computes, how it logs and where its data are kept cannot, so they
stay out of the hash (`NOT_IDENTITY`).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnnlab.config import options
from cnnlab.config.objects import data_source
from cnnlab.config.options import CONF, GROUPS, LISTED, OVERLAYS, UserError, beside, changes_nothing, leaves
from cnnlab.config.values import as_typed, job_config, plain

UNNAMED = ("none", "constant", "cross_entropy", "acc", "classifier")  # options that do not show in the name
NOT_IDENTITY = (
    *("name", "output_dir", "rerun", "plan", "on_busy", "checkpoint", "logger", "launcher"),
    *("trainer._target_", "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *("trainer.profiler", "cache_dir", "resident", "cuda_graph"),
)
NOT_OWN = (
    "is not the run's own directory, whose name is made from its configuration. Use output_dir=FOLDER and name=NAME to "
    "choose where it is."
)
# Text that would be taken for another value, or for several; only it is quoted.
LIKE_OTHERS = re.compile(r'(.*[][",{}].*|-?(\d+(\.\d+)?(e[-+]\d+)?|inf|nan)|true|false|None)?', re.DOTALL)
DELETED = "deleted"  # stands for the value of an argument that was removed, as in '~optim.lr'


def run_id(config: DictConfig) -> str:
    """The name of the run directory: options, changed values, hash; at most 120 characters.

    config: the whole configuration, with its `hydra` node, which knows the chosen options.
    """
    choices = deciding(config)
    names = [option for group in GROUPS for option in choices[group] if option not in UNNAMED]
    if content := data_identity(config):
        names.append(f"data={content[:6]}")
    limits = limits_of(config)  # a file or a run is named by its content, wherever it is
    defaults = defaults_of(config)
    shown = {path: _canonical(_unlocated(value, defaults.get(path))) for path, value in changes(config).items()}
    changed = [
        f"{path.rpartition('.')[2]}={content_of(config, path, limits.get(path, ''))[:6] or text}"
        for path, text in shown.items()
    ]
    name = re.sub(r"[^\w.=+-]+", "_", "-".join(names + changed), flags=re.ASCII)
    return f"{name[:111].rstrip('-_.')}-{identity(config)[:8]}"


def run_path(config: DictConfig) -> Path:
    """The run directory. config: with its `hydra` node."""
    return Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)


def identity(config: DictConfig, without: str = "") -> str:
    """SHA-256 over everything in the configuration that can change the result, except the value at `without`.

    An option counts by its name, not by where its class is defined.
    """
    defaults, out = defaults_of(config), left_out(config)
    kept = {
        path: _canonical(_unlocated(value, defaults.get(path)))
        for path, value in leaves(job_config(config))
        if not below(path, out) and path != without and not (path.endswith("._target_") and value == defaults.get(path))
    }
    kept |= {f"{group}=": "+".join(names) for group, names in deciding(config).items() if group in GROUPS}
    if content := data_identity(config):
        kept["data"] = content
    kept |= {path: digest for path, limit in limits_of(config).items() if (digest := content_of(config, path, limit))}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def is_file(path: str) -> bool:
    """Whether a value names a file. Where the limit of a value calls this, the content is part of a run's identity."""
    return os.path.isfile(path)


def is_run(path: str) -> bool:
    """Whether a value names a run directory. As `is_file`; the content is that of the best checkpoint."""
    return is_file(str(Path(path, "checkpoints", "best.ckpt.sha256")))


def content_of(config: DictConfig, path: str, limit: str) -> str:
    """The digest of the file or the run that a value names; empty if it names none."""
    value = OmegaConf.select(config, path) if re.search(r"\bis_(file|run)\(", limit) else None
    if not isinstance(value, str):
        return ""
    if is_run(value):
        return Path(value, "checkpoints", "best.ckpt.sha256").read_bytes()[:64].decode("latin-1")
    if is_file(value):
        with open(value, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return ""


def data_identity(config: DictConfig) -> str:
    """Identifies data of which the configuration names only the location; empty for others.

    Also empty for data that cannot be found or listed, which `check` refuses.
    """
    try:
        source = data_source(config.data)
        return source.identity() if hasattr(source, "identity") else ""
    except (UserError, OmegaConfBaseException):
        return ""


def _unlocated(value: Any, default: Any) -> Any:
    """A value without the import paths that its option's file has in the same places of a list."""
    for node, other in beside(value, default):
        if "_target_" in node and node["_target_"] == other.get("_target_"):
            del node["_target_"]
    return value


def _canonical(value: Any) -> str:
    """A value as text that does not depend on its notation: 1 and 1.0 are the same, but not "1"."""
    if isinstance(value, dict):  # in a list
        return f"{{{', '.join(f'{key!r}: {_canonical(value[key])}' for key in sorted(value, key=str))}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_canonical, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and LIKE_OTHERS.fullmatch(value):
        return json.dumps(value)
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def chosen(config: DictConfig) -> dict[str, list[str]]:
    """The chosen options of every group but Hydra's: {"optim": ["sgd"], "aug": ["crop_flip", "cutmix"], ...}."""
    choices = {
        group: [option]
        for group, option in config.hydra.runtime.choices.items()
        if option is not None and not group.startswith("hydra/") and group not in LISTED
    }
    return choices | {group: sorted(config[group]) for group in LISTED}


def left_out(config: DictConfig) -> tuple[str, ...]:
    """The paths of what changes no result: NOT_IDENTITY, and what option files mark with [changes nothing]."""
    return (
        *NOT_IDENTITY,
        *(f"{prefix}{key}".rstrip(".") for name, prefix in _chosen_files(config) for key in changes_nothing(name)),
    )


def deciding(config: DictConfig) -> dict[str, list[str]]:
    """The chosen options, except those that change no result."""
    choices, out = chosen(config), left_out(config)
    return choices | {g: [name for name in choices[g] if f"{g}.{name}" not in out] for g in LISTED}


def described(choices: Mapping[str, list[str]]) -> dict[str, str]:
    """Choices as text: {"data": "cifar10", "norm": "none", "aug": "crop_flip+cutmix", ...}."""
    return {group: "+".join(choices[group]) or "none" for group in (*GROUPS, "trainer")}


def changes(config: DictConfig) -> dict[str, Any]:
    """The values that differ from train.yaml and the chosen options' files: {"optim.lr": 0.1, "optim.eps": DELETED}."""
    defaults, found = defaults_of(config), dict(leaves(job_config(config)))
    changed = {path: value for path, value in found.items() if path not in defaults or value != defaults[path]}
    left = {path.rsplit(".", depth)[0] for path in found for depth in range(path.count(".") + 1)}  # and the nodes above
    deleted = {
        path: DELETED
        for path in defaults
        if path not in left and not any(path.startswith(f"{shorter}.") for shorter in found)
    }
    out = left_out(config)
    return {path: value for path, value in (changed | deleted).items() if not below(path, out)}


def differences(config: DictConfig) -> dict[str, str]:
    """How a configuration differs from the defaults: group -> option, then path -> value, as on the command line."""
    choices = described(chosen(config)).items()
    different = {group: option for group, option in choices if option != options.default_option(group)}
    return different | {path: as_typed(value) for path, value in changes(config).items()}


def targets(config: DictConfig) -> frozenset[str]:
    """The import paths of what can change the result."""
    return targets_in({group: plain(config[group]) for group in GROUPS})


def targets_in(tree: dict[str, Any]) -> frozenset[str]:
    return frozenset(str(node["_target_"]) for node, _ in beside(tree, {}) if "_target_" in node)


def defaults_of(config: DictConfig) -> dict[str, Any]:
    """The values in train.yaml and in the files of the chosen options, by path.

    A reference to another value, ${optim.lr}, is replaced by that value of the configuration.
    """
    return {
        f"{prefix}{path}": OmegaConf.select(config, value[2:-1]) if re.fullmatch(r"\$\{[\w.]+\}", str(value)) else value
        for name, prefix in _chosen_files(config)
        for path, value in leaves(options.option_file(name))
    }


def limits_of(config: DictConfig) -> dict[str, str]:
    """What values must satisfy according to train.yaml and the files of the chosen options, by path."""
    return {
        f"{prefix}{path}": limit
        for name, prefix in _chosen_files(config)
        for path, limit in options.limits_of_file(name).items()
    }


def _chosen_files(config: DictConfig) -> Iterator[tuple[str, str]]:
    """The files of a configuration and where their values stand: ("train", ""), ("aug/cutmix", "aug.cutmix."), ..."""
    yield "train", ""
    for group, names in chosen(config).items():
        for option in names:
            if option in options.files(group) and group not in OVERLAYS:
                yield f"{group}/{option}", f"{group}.{option}." if group in LISTED else f"{group}."


def below(path: str, paths: tuple[str, ...]) -> bool:
    """Whether a path is one of these, or below one."""
    return any(path == one or path.startswith(f"{one}.") for one in paths)


OmegaConf.register_new_resolver("cnnlab.run_id", lambda _root_: run_id(_root_), replace=True)


def configuration(overrides: list[str]) -> DictConfig:
    """The configuration that train.py would have for these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides, return_hydra_config=True)
