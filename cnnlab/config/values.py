"""A configuration as plain values."""

import json
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf


def selection(config: DictConfig) -> tuple[str, bool]:
    """The metric that decides the best epoch and the best setting, and whether higher is better.

    If nothing is held out, the test images stand in for the held-out ones.
    """
    name = str(config.select_on)
    if not config.val_fraction and name.startswith("val/"):
        name = name.replace("val/", "test/", 1)
    return name, config.select_mode == "max" if config.select_mode else not name.endswith("loss")


def job_config(config: DictConfig) -> dict[str, Any]:
    """The configuration without its `hydra` node, resolved, as plain containers."""
    return plain(without_hydra(config))


def without_hydra(config: DictConfig) -> DictConfig:
    """The configuration without its `hydra` node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolved, as dictionaries, lists and numbers."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def as_typed(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace('"', "")
