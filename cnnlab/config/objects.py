"""Instantiates objects from a configuration: only classes that option files name. Does not import torch."""

import difflib
import functools
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Mapping
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from cnnlab.config.options import GROUPS, UserError, allowed_targets
from cnnlab.config.shape import Shape
from cnnlab.config.values import plain


def check_targets(config: Any, path: str = "") -> None:
    """Raises: UserError for a configuration that would instantiate anything but the classes named in conf/.

    What passes is plain and resolved, without a key that changes how Hydra instantiates it: so what is checked here is
    what Hydra will instantiate.

    config: a node or a whole configuration, as plain containers. path: where the node is; within a group only that
        group's classes are allowed.
    """
    if isinstance(config, Mapping):
        for key, value in config.items():
            place = f"{path}.{key}".lstrip(".")
            if key == "_target_":
                _check_target(place, value)
            elif key != "_partial_" and re.fullmatch("_.*_", str(key)):
                raise UserError(f"{place} is not allowed: the keys of an option are the arguments of its class.")
            else:
                check_targets(value, place)
    elif isinstance(config, list):
        for number, value in enumerate(config):
            check_targets(value, f"{path}.{number}")
    elif isinstance(config, str) and ("${" in config or config == "???"):
        raise UserError(f"{path}={config} is not allowed: a value cannot refer to another one here. Use the value.")


def _check_target(path: str, target: Any) -> None:
    group = path.partition(".")[0]
    allowed = allowed_targets(group if group in (*GROUPS, "trainer", "logger") else "*")
    if not isinstance(target, str) or target not in allowed:
        close = difflib.get_close_matches(str(target), allowed, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"{path}={target} is not allowed: only what the file of an option names is instantiated.{hint} For a class "
            f"of your own, write a file {group}/my_option.yaml with its _target_ in a folder that --config-dir names."
        )


def checked_config(tree: Any) -> DictConfig:
    """A configuration from plain containers that pass `check_targets`: nothing in it is left to be resolved."""
    check_targets(tree)
    return OmegaConf.create(tree)


def instantiate(node: DictConfig | Mapping[str, Any], **arguments: Any) -> Any:
    """hydra.utils.instantiate for allowed targets; a value that the class refuses becomes a UserError."""
    node = plain(node) if isinstance(node, DictConfig) else node
    check_targets(node)
    try:
        instance = hydra.utils.instantiate(node, **arguments, _convert_="all")
        if isinstance(instance, functools.partial):
            inspect.signature(instance.func).bind_partial(**instance.keywords)
        return instance
    except TypeError as error:
        raise UserError(f"Invalid arguments for {node['_target_']}: {error}") from error
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ImportError):
            raise UserError(_not_imported(str(node["_target_"]), cause)) from error
        is_lightnings = type(cause).__name__ == "MisconfigurationException"
        if isinstance(cause, ValueError | TypeError) or is_lightnings:
            raise UserError(f"Invalid arguments for {node['_target_']}{mentioned(node, cause)}: {cause}") from error
        raise (cause or error) from None


def mentioned(node: Mapping[str, Any], error: BaseException | None) -> str:
    """The arguments that an error is about, as far as their text is in it: " (model_name=resnet19)"."""
    named = ((key, value) for key, value in node.items() if isinstance(value, str) and value and key[0] != "_")
    found = [f"{key}={value}" for key, value in named if value in str(error)]
    return f" ({', '.join(found)})" if found else ""


def _not_imported(target: str, error: ImportError) -> str:
    """What to do about a class that cannot be imported: its package is not installed, or a name in it is misspelled."""
    cause = error.__cause__ or error  # Hydra's error has that of Python as its cause
    lacking = (cause.name or "") if isinstance(cause, ImportError) else ""
    package = (lacking or target).partition(".")[0]
    if not (sys.modules.get(package) or importlib.util.find_spec(package)):
        return (
            f"{target} needs the package {package}, which is not installed ({error}). Use pip install {package}, or "
            f"choose another option."
        )
    found = re.search(r"'(\w+)' is (?:importable from module|an attribute of) '([\w.]+)'", str(error))
    if not found or lacking not in ("", f"{found[2]}.{found[1]}"):
        return f"{target} cannot be imported: {type(cause).__name__}: {cause}."
    parent = hydra.utils.get_object(found[2])
    known = {*dir(parent), *(module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", [])))}
    close = difflib.get_close_matches(found[1], known, n=1)
    return f"{target}: {found[2]} has no {found[1]}." + "".join(f" Did you mean {name}?" for name in close)


def filled(node: DictConfig | Mapping[str, Any], facts: Mapping[str, Any], root: str = "data") -> dict[str, Any]:
    """The arguments of an option, in which names such as `data.num_classes` are replaced by the facts about the data.

    root: what the names begin with. Raises: UserError for an unknown name.
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
    """The object of conf/data, one per data set and process: it remembers what it has read from the disk."""
    key = json.dumps(plain(node), sort_keys=True)
    if key not in _sources:
        source = instantiate(node)
        if not (hasattr(source, "digest") and hasattr(source, "load")):
            raise UserError(
                f"{node['_target_']} has no digest() and load(), which return what identifies the data, and a DataSet "
                f"(docs/howto/data.md): a class of another package needs a small one of your own around it."
            )
        wrong = [f"{name} is no method" for name in ("check", "identity") if not callable(getattr(source, name, len))]
        shape = inspect.getattr_static(source, "shape", None)
        if not (shape is None or isinstance(shape, Shape) or hasattr(shape, "__get__")):
            wrong.append("shape is no Shape of cnnlab.config.shape")
        if wrong:
            raise UserError(f"{node['_target_']}: {wrong[0]} (docs/howto/data.md).")
        _sources[key] = source
    return _sources[key]


def forget_sources() -> None:
    """Before another command of this process: files may have changed."""
    _sources.clear()


def checked_source(config: DictConfig) -> Any:
    """The data source of a run, after checking that its files still exist."""
    source = data_source(config.data)
    if check_source := getattr(source, "check", None):
        check_source()
    return source


def num_trained_on(config: DictConfig) -> int | None:
    """The number of training images in an epoch; None if it is not known before the data set is loaded."""
    if (num := getattr(data_source(config.data), "num_train", None)) is None:
        return None
    num_train = round(num * (1 - config.val_fraction))
    return min(num_train, config.num_train_images or num_train)
