"""Checks a configuration: types, ranges, and values that must fit together.

Does not import torch, so that errors are reported immediately.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from cnnlab.config.identity import NOT_OWN, chosen, defaults_of, limits_of, run_id
from cnnlab.config.limits import check_value, named_in, refuse_unknown_names, siblings
from cnnlab.config.objects import check_targets, checked_source, num_trained_on
from cnnlab.config.options import GROUPS, LISTED, UserError, folders, leaves, option_file, options, refuse_folder
from cnnlab.config.paths import expand, make_folder
from cnnlab.config.processes import place
from cnnlab.config.values import as_typed, job_config, without_hydra

# Arguments of Lightning's Trainer that would break "an epoch is every batch, then one evaluation".
UNSUPPORTED = (
    *("check_val_every_n_epoch", "fast_dev_run", "max_steps", "max_time", "min_steps", "overfit_batches"),
    "val_check_interval",
)
# Arguments that a run sets itself, and what to use instead.
RESERVED = {"callbacks": "callbacks=", "logger": "logger=", "deterministic": "deterministic=true"} | dict.fromkeys(
    (
        *("plugins", "default_root_dir", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
        *("num_sanity_val_steps", "log_every_n_steps", "barebones", "reload_dataloaders_every_n_epochs"),
        *("limit_predict_batches", "model_registry", "use_distributed_sampler", "enable_autolog_hparams"),
    ),
    "",
)


def check(config: DictConfig) -> None:
    """Raises: UserError for a configuration that cannot work."""
    known_keys = option_file("train").keys() | {*GROUPS, "trainer", "logger", "launcher"}
    if unknown := sorted(set(map(str, without_hydra(config))) - known_keys):
        raise UserError(f"+{unknown[0]}: there is no such key. python train.py --help lists all keys.")
    if deleted := sorted(option_file("train").keys() - set(config)):
        raise UserError(f"~{deleted[0]} leaves no {deleted[0]}, and a run needs one. Leave it out.")
    _refuse_missing(config)
    for key, path in (("hydra.run.dir", config.hydra.run.dir), ("hydra.sweep.subdir", config.hydra.sweep.subdir)):
        if Path(path).name != run_id(config):  # it may hold another run, or files that are not ours
            raise UserError(f"{key}={path} {NOT_OWN}")
    job = job_config(config)
    for group, names in chosen(config).items():
        for name in names:
            refuse_folder(group, str(name))
        if group in LISTED and (others := set(names) - set(options(group))):  # maybe composed into another place
            for name in options(group):
                option_file(f"{group}/{name}")
            for file in (file for folder in folders() for file in folder.glob(f"{group}/*/**/*.yaml")):
                if file.stem in others:
                    refuse_folder(group, f"{file.parent.name}/{file.stem}")
    for prefix, node in nodes(job):
        if not isinstance(node, dict) or "_target_" not in node:
            group = prefix.partition(".")[0]
            raise UserError(f"{prefix} is not an option. {group} offers {', '.join(options(group))}; use {group}=...")
    check_targets(job)
    checkpoint = job["checkpoint"]
    if not isinstance(checkpoint, dict) or checkpoint.keys() - option_file("train")["checkpoint"].keys():
        raise UserError(
            f"checkpoint={as_typed(checkpoint)} is not allowed. Use checkpoint.every_n_steps and "
            f"checkpoint.every_n_minutes, which python train.py --help explains."
        )
    make_folder(expand(job["cache_dir"]))

    defaults, limits = defaults_of(config), limits_of(config)
    refuse_unknown_names(job, defaults, limits)
    _check_all(job, job, defaults, limits)
    source = checked_source(config)
    shape, num_train = getattr(source, "shape", None), num_trained_on(config)
    facts = (shape.facts() if shape else {}) | ({} if num_train is None else {"num_train": num_train})
    _check_all(job, job, defaults, limits, {"run": job, "data": facts})

    check_arguments(job, defaults)
    if num_train is not None and job["batch_size"] > num_train:
        raise UserError(
            f"batch_size={job['batch_size']} is larger than the {num_train} images that are trained on (of "
            f"{source.num_train}, with val_fraction={job['val_fraction']} held out). Use batch_size={num_train} or "
            f"less."
        )
    together, limit = (job["trainer"].get(key, 1) for key in ("accumulate_grad_batches", "limit_train_batches"))
    if not isinstance(together, int) or together < 1:
        raise UserError(f"trainer.accumulate_grad_batches={as_typed(together)} is not a whole number from 1.")
    if together > 1:
        if num_train is not None:
            refuse_no_step(job["batch_size"], together, num_train)
        if job["trainer"].get("limit_train_batches") and limit % together:
            raise UserError(
                f"trainer.limit_train_batches={limit} is not a multiple of trainer.accumulate_grad_batches={together}: "
                f"the last step would be too small. Use for example {together}."
            )
    max_epochs, devices, num_nodes = (job["trainer"].get(key, 1) for key in ("max_epochs", "devices", "num_nodes"))
    if job["warmup_epochs"] and job["warmup_epochs"] >= max_epochs:
        raise UserError(
            f"warmup_epochs={job['warmup_epochs']} must be less than trainer.max_epochs={max_epochs}: nothing would be "
            f"left of the training."
        )
    if isinstance(devices, int) and devices > 0:
        refuse_uneven(job["batch_size"], devices * num_nodes)
    if "launcher" not in job:
        place(config.trainer)
    elif not isinstance(devices, int) or devices < 1:
        raise UserError(f"trainer.devices={devices}: with a launcher, use a number from 1.")
    elif num_nodes > 1 and job["launcher"]["way"] != "slurm":
        raise UserError(f"trainer.num_nodes={num_nodes} needs launcher=slurm, or torchrun on every node.")


def check_single(config: DictConfig) -> None:
    """As `check`, for a configuration of one run."""
    check(config)
    if config.hydra.runtime.choices["hydra/sweeper"] != "grid":
        raise UserError("A search has many runs. Use python train.py -m hydra/sweeper=optuna.")
    if "launcher" in config:
        [launcher] = chosen(config)["launcher"]
        raise UserError(f"launcher={launcher} is for sweeps. Use python train.py -m ...")


def check_values(config: DictConfig, *keys: str) -> None:
    """Check the values below these keys as `check` does."""
    _refuse_missing(config, keys)
    job = job_config(config)
    _check_all({key: job[key] for key in keys}, job, defaults_of(config), limits_of(config))


def _refuse_missing(config: DictConfig, keys: Sequence[str] = ()) -> None:
    missing = sorted(OmegaConf.missing_keys(without_hydra(config)))
    if missing := [path for path in missing if not keys or path.partition(".")[0] in keys]:
        raise UserError(f"{missing[0]} must be given. Use {missing[0]}=VALUE.")


def _check_all(
    checked: Mapping[str, Any],
    job: Mapping[str, Any],
    defaults: Mapping[str, Any],
    limits: Mapping[str, str],
    known: Mapping[str, Any] | None = None,
) -> None:
    """Check the values of a part of a job. known: further names for limits, in addition to a value's siblings."""
    for path, default in defaults.items():
        is_limited = default is not None or limits.get(path)
        if is_limited and isinstance(value := named_in(checked, path), Mapping):  # optim.lr={a:1}
            check_value(path, value, default, limits.get(path))
    for path, value in leaves(checked):
        check_value(path, value, defaults.get(path), limits.get(path), siblings(job, path) | dict(known or {}))


def nodes(job: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is instantiated, with its path."""
    for group in (*GROUPS, "trainer", "logger"):
        if group in LISTED:
            yield from ((f"{group}.{name}", node) for name, node in job[group].items())
        else:
            yield group, job[group]


def check_arguments(job: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse arguments of the trainer that have no place here, and those that a class does not take.

    A class is imported only if it is given arguments that its option file does not list.
    """
    trainer = job["trainer"]
    for name in RESERVED.keys() & trainer.keys():
        instead = f" Use {RESERVED[name]} instead." if RESERVED[name] else ""
        raise UserError(f"trainer.{name} is set by cnnlab and cannot be changed.{instead}")
    for prefix, node in nodes(job):
        listed = {path.removeprefix(f"{prefix}.").split(".")[0] for path in defaults if path.startswith(f"{prefix}.")}
        if not (added := [key for key in node if key not in listed and key[0] != "_"]):
            continue
        try:
            parameters = inspect.signature(hydra.utils.get_object(node["_target_"])).parameters
        except ImportError:  # a missing package is reported when the class is instantiated
            continue
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if wrong := [name for name in added if name not in parameters and not takes_any]:
            raise UserError(
                f"{prefix}.{wrong[0]}: {node['_target_']} takes no argument {wrong[0]}. It takes "
                f"{', '.join(parameters)}."
            )
        for key in added:
            for kind, in_words in ((bool, "true or false"), (int, "a whole number")):
                declared = key in parameters and parameters[key].annotation in (kind, kind | None)
                if declared and not isinstance(node[key], kind | None):
                    raise UserError(f"{prefix}.{key}={as_typed(node[key])} is not {in_words}.")
    if refused := [name for name in UNSUPPORTED if trainer.get(name) is not None and trainer[name] is not False]:
        raise UserError(
            f"trainer.{refused[0]} is not supported: every epoch is trained and evaluated whole, once. Use "
            f"trainer.max_epochs, num_train_images for shorter epochs, debug=one_batch or debug=overfit."
        )


def refuse_no_step(batch_size: int, together: int, num_train: int) -> None:
    """Raises: UserError if an epoch has too few images for a step of so many accumulated batches."""
    if batch_size * together > num_train:
        raise UserError(
            f"trainer.accumulate_grad_batches={together} with batch_size={batch_size} needs {batch_size * together} "
            f"images for a step; {num_train} are trained on. Use less of either."
        )


def refuse_uneven(batch_size: int, devices: int) -> None:
    """Raises: UserError if this many devices, over all nodes, cannot have equal shares of a batch."""
    if batch_size % devices:
        raise UserError(
            f"batch_size={batch_size} counts the images of all devices together and cannot be shared equally by "
            f"{devices}. Use a multiple of {devices}."
        )
