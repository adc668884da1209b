"""What a configuration may be: types, ranges, values that fit together. No torch, so that mistakes answer at once."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from cnnlab.config import (
    GROUPS,
    LISTED,
    NOT_OWN,
    UserError,
    as_typed,
    check_targets,
    data_source,
    defaults_of,
    job_config,
    leaves,
    limits_of,
    num_trained_on,
    option_file,
    options,
    ours,
    run_id,
)
from cnnlab.data.images import expand, make_folder
from cnnlab.processes import place

# Arguments of Lightning's Trainer with which an epoch would not be what it is here: a step for every batch, then one
# evaluation.
NOT_OURS = (
    "accumulate_grad_batches",
    "check_val_every_n_epoch",
    "fast_dev_run",
    "max_steps",
    "max_time",
    "min_steps",
    "val_check_interval",
)

# Those that a run sets itself, and what to use instead.
SET_HERE = {
    "callbacks": "callbacks=",
    "logger": "logger=",
    "deterministic": "deterministic=true",
} | dict.fromkeys(
    (
        *("plugins", "default_root_dir", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
        *("num_sanity_val_steps", "log_every_n_steps", "barebones", "reload_dataloaders_every_n_epochs"),
    ),
    "",
)

NULLABLE = ("checkpoint.every_n_minutes",)  # knobs with a default that may be null


def check(config: DictConfig) -> None:
    """Refuse, with a UserError, what cannot work: types, ranges, targets, and values that do not fit together."""
    if added := sorted(
        set(map(str, ours(config))) - option_file("train").keys() - {*GROUPS, "trainer", "logger", "launcher"}
    ):
        raise UserError(f"+{added[0]} adds what nothing reads. python train.py --help shows what can be typed.")
    if missing := sorted(OmegaConf.missing_keys(ours(config))):
        raise UserError(f"{missing[0]} must be given, and was not. Type {missing[0]}=VALUE.")
    job = job_config(config)
    check_directory(config)
    for group in GROUPS:
        for name, node in job[group].items() if group in LISTED else [(group, job[group])]:
            if not isinstance(node, dict) or "_target_" not in node:
                what = f"{group}.{name}" if group in LISTED else group
                raise UserError(f"{what} is no option. {group} offers {', '.join(options(group))}; type {group}=...")
    check_targets(job)
    if not isinstance(job["checkpoint"], dict):
        raise UserError("checkpoint has the knobs checkpoint.every_n_steps and checkpoint.every_n_minutes. Type those.")
    if added := sorted(job["checkpoint"].keys() - option_file("train")["checkpoint"].keys()):
        raise UserError(f"+checkpoint.{added[0]} adds what nothing reads. python train.py --help shows what there is.")
    defaults, limits = defaults_of(config), limits_of(config)
    for path, value in leaves(job):
        for above in parents(path):
            if defaults.get(above) is not None:  # optim.lr={a:1}
                check_value(above, {path.removeprefix(f"{above}."): value}, defaults[above], limits.get(above))
        check_value(path, value, defaults.get(path), limits.get(path))
    for name in SET_HERE.keys() & job["trainer"].keys():
        instead = f" Use {SET_HERE[name]} instead." if SET_HERE[name] else ""
        raise UserError(f"trainer.{name} is set by cnnlab and cannot be changed.{instead}")
    for prefix, node in nodes(job):
        known = {path.removeprefix(f"{prefix}.").split(".")[0] for path in defaults if path.startswith(f"{prefix}.")}
        refuse_unknown(prefix, node, [key for key in node if key not in known and key[0] != "_"])
    if refused := [name for name in NOT_OURS if job["trainer"].get(name)]:
        raise UserError(
            f"trainer.{refused[0]} is not supported: every batch is a step, and every epoch is evaluated once. Type "
            f"batch_size for larger steps, num_train_images for shorter epochs, trainer.max_epochs, or debug=one_batch."
        )

    make_folder(expand(job["cache_dir"]))
    source = data_source(config.data)
    source.check()
    size = source.image_size
    crops = {name: node for name, node in job["aug"].items() if node["_target_"] == "cnnlab.augment.CropFlip"}
    if len(crops) > 1:
        raise UserError(f"aug=[{','.join(job['aug'])}] crops twice. Choose one of {', '.join(crops)}.")
    for crop in crops.values():
        if crop["size"] > size:  # padding is for training; evaluation sees no more than the image
            raise UserError(
                f"A crop of {crop['size']} pixels does not fit into images of {size} pixels. Type a crop size of at "
                f"most {size}."
            )
        if crop["padding_mode"] == "reflect" and crop["padding"] >= size:
            raise UserError(
                f"Images of {size} pixels cannot be reflected into {crop['padding']} pixels of padding. Type a padding "
                f"of at most {size - 1}, or padding_mode=constant."
            )
        size = crop["size"]
    halvings = len(job["model"].get("channels", ()))
    if size >> halvings < 1:
        raise UserError(
            f"Images of {size} pixels cannot be halved {halvings} times. Use images of at least {2**halvings} pixels "
            f"(data.image_size, or the size of the crops), or fewer model.channels."
        )
    reach = job["aug"].get("blur", {}).get("kernel_size", 1) // 2
    if reach >= size:
        raise UserError(
            f"aug.blur.kernel_size={2 * reach + 1} reaches over images of {size} pixels. Type {2 * size - 1} or less."
        )
    if (erased := job["aug"].get("cutout", {}).get("size", 1)) >= 2 * size:
        raise UserError(
            f"aug.cutout.size={erased} erases all of an image of {size} pixels, wherever the square lies. "
            f"Use less than {2 * size}."
        )
    num_values = 3 * (size**2 if job["norm"].get("per") == "pixel" else 1)
    if (num_components := job["norm"].get("num_components") or 0) > num_values:
        raise UserError(
            f"norm.num_components={num_components} is more than the {num_values} components that there are. "
            f"Type norm.num_components={num_values} or less."
        )
    if job["model"].get("patch_size", 0) > size:
        raise UserError(
            f"model.patch_size={job['model']['patch_size']} is larger than the images. Type {size} or less."
        )
    num_train = num_trained_on(config)
    if (num_words := job["model"].get("num_words", 0)) > num_train:
        raise UserError(
            f"model.num_words={num_words} is more than the {num_train} images that words are learned from. "
            f"Type {num_train} or less."
        )
    if job["batch_size"] > num_train:
        raise UserError(
            f"batch_size={job['batch_size']} is larger than the {num_train} images that are trained on (of "
            f"{source.num_train}, with val_fraction={job['val_fraction']} held out). "
            f"Type batch_size={num_train} or less."
        )
    held_out = "val" if job["val_fraction"] else "test"
    metrics = [f"{part}/{metric}" for part in ("train", held_out) for metric in ("loss", "acc")]
    for name, callback in job["callbacks"].items():
        if (monitor := callback.get("monitor", metrics[0])) not in metrics:
            why = "" if job["val_fraction"] else " With val_fraction=0 nothing is held out."
            raise UserError(
                f"callbacks.{name}.monitor={monitor} is not measured.{why} Type one of {', '.join(metrics)}."
            )
        better = "min" if monitor.endswith("/loss") else "max"
        if callback.get("mode", better) != better:
            raise UserError(
                f"callbacks.{name}.mode={callback['mode']} with monitor={monitor} waits for it to become worse. Use "
                f"callbacks.{name}.mode={better}."
            )
    if job["optim"].get("nesterov") and not job["optim"].get("momentum"):
        raise UserError(
            "optim.nesterov=true needs a momentum, and optim.momentum=0. Type for example optim.momentum=0.9."
        )
    if job["warmup_epochs"] and job["warmup_epochs"] >= (max_epochs := job["trainer"]["max_epochs"]):
        raise UserError(
            f"warmup_epochs={job['warmup_epochs']} leaves nothing of trainer.max_epochs={max_epochs}. Type less."
        )
    if job["warmup_epochs"] and job["sched"]["_target_"].endswith("OneCycleLR"):
        raise UserError("sched=onecycle has a warm-up of its own. Type sched.pct_start=0.1, or another sched.")
    if job["test_flips"] and job["norm"]["_target_"].endswith("PCA") and job["norm"]["per"] == "pixel":
        raise UserError(
            "test_flips=true mirrors images, and with norm=pca what the network sees are none. Type norm=zca, "
            "norm.per=channel or test_flips=false."
        )
    devices, num_nodes = job["trainer"].get("devices", 1), job["trainer"].get("num_nodes", 1)
    if isinstance(devices, int) and devices > 0:
        refuse_uneven(job["batch_size"], devices * num_nodes)
    if "launcher" not in job:
        place(config.trainer)
    else:
        if not isinstance(devices, int) or devices < 1:
            raise UserError(f"trainer.devices={devices}: a launcher has to know how many. Type a number from 1.")
        if num_nodes > 1 and job["launcher"]["way"] != "slurm":
            raise UserError(f"trainer.num_nodes={num_nodes} needs launcher=slurm, or torchrun on every node.")


def parents(path: str) -> list[str]:
    """What a dotted path lies in: a.b.c -> a, a.b."""
    parts = path.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def nodes(job: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What is instantiated, with its path."""
    for group in (*GROUPS, "trainer", "logger"):
        for prefix, node in (
            ((f"{group}.{name}", node) for name, node in job[group].items())
            if group in LISTED
            else [(group, job[group])]
        ):
            if isinstance(node, dict) and "_target_" in node:
                yield prefix, node


def refuse_unknown(prefix: str, node: Mapping[str, Any], added: Sequence[str]) -> None:
    """Refuse arguments that a class does not take. Only those that its file does not list make us import the class.

    added: the names of those.
    """
    if not added:
        return
    target = node["_target_"]
    try:
        parameters = inspect.signature(hydra.utils.get_object(target)).parameters
    except ImportError:  # of an option that needs another package, which is said when it is used
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    if wrong := [name for name in added if name not in parameters]:
        raise UserError(
            f"{prefix}.{wrong[0]}: {target} takes no argument {wrong[0]}. It takes {', '.join(parameters)}."
        )


def check_directory(config: DictConfig) -> None:
    """Refuse a run directory that is not named by the run: it may hold another one, or files that are not ours."""
    own = run_id(config)
    for key, path in (("hydra.run.dir", config.hydra.run.dir), ("hydra.sweep.subdir", config.hydra.sweep.subdir)):
        if Path(path).name != own:
            raise UserError(f"{key}={path} {NOT_OWN}")


def refuse_uneven(batch_size: int, devices: int) -> None:
    """Raises: UserError where devices, in sum over all nodes, cannot have equal shares of every batch."""
    if batch_size % devices:
        raise UserError(
            f"batch_size={batch_size} counts the images of all devices together and cannot be shared equally by "
            f"{devices}. Type a multiple of {devices}."
        )


def check_values(config: DictConfig, *keys: str) -> None:
    """Refuse values below these keys as `check` does."""
    defaults, limits, job = defaults_of(config), limits_of(config), job_config(config)
    for path, value in leaves({key: job[key] for key in keys}):
        check_value(path, value, defaults.get(path), limits.get(path))


def check_value(path: str, value: Any, default: Any, limit: str | None) -> None:
    """Refuse a value of another type than its default, or one that does not satisfy its limit.

    limit: an expression, empty if there is none; None: the value is for its class to check.
    """
    if limit is None:
        return
    key = path.rsplit(".", 1)[-1]
    if isinstance(default, str) and isinstance(value, int | float):  # name=2024
        value = str(value)
    example = f" Type for example {path}={as_typed(default)}, its default." if default is not None else ""
    if value is None and path in NULLABLE:
        return
    expected = {bool: "true or false", int: "a whole number", float: "a finite number", list: "a list, [a,b,...]"}
    if default is not None and type(default) in expected:
        accepted = (int, float) if isinstance(default, float) else type(default)
        if (
            not isinstance(value, accepted)
            or isinstance(value, bool) != isinstance(default, bool)
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise UserError(f"{path}={as_typed(value)} is not {expected[type(default)]}.{example}")
    if limit and value is not None:
        try:
            holds = eval(limit, {}, {key: value})  # our own text
        except (TypeError, AttributeError):
            holds = False
        if not holds:
            raise UserError(f"{path}={as_typed(value)} is not allowed; it must satisfy {limit}.{example}")
