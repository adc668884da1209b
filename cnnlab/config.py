"""What a configuration means: run identity, allowed targets, checks. Takes no torch, so that mistakes answer at once.

A run is its configuration. `run_id` names the run directory: the chosen options, the knobs that differ from their
option's file, and a hash of everything that can change the result. Where a run computes, how it logs and where its
data are kept cannot, so they stay out of the hash (`NOT_IDENTITY`).
"""

import difflib
import functools
import hashlib
import inspect
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra.utils
import yaml
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
    "data.sources",
    "data.timeout",
    "resident",
    "cuda_graph",
)

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

NULLABLE = ("checkpoint.every_n_minutes",)  # knobs with a default that may be null

# What the knobs may be, wherever they appear; shown to the user as it stands.
LIMITS = {
    "accelerator": "accelerator in ('auto', 'cpu', 'gpu', 'cuda', 'mps')",
    "alpha": "alpha > 0",
    "batch_size": "batch_size >= 1",
    "betas": "len(betas) == 2 and all(0 <= beta < 1 for beta in betas)",
    "brightness": "brightness >= 0",
    "channels": "len(channels) >= 1 and all(c >= 1 and c % 1 == 0 for c in channels)",
    "clutter": "clutter >= 0",
    "contrast": "contrast >= 0",
    "cpus": "cpus >= 1",
    "cpus_per_task": "cpus_per_task >= 1",
    "decay": "0 <= decay < 1",
    "degrees": "degrees >= 0",
    "devices": "devices >= 1 or devices == -1",
    "div_factor": "div_factor > 0",
    "dropout": "0 <= dropout < 1",
    "eps": "eps > 0",
    "every_n_minutes": "every_n_minutes > 0",
    "every_n_steps": "every_n_steps >= 1 and every_n_steps % 1 == 0",
    "factor": "0 <= factor <= 1",
    "final_div_factor": "final_div_factor > 0",
    "flip_probability": "0 <= flip_probability <= 1",
    "gamma": "0 < gamma <= 1",
    "gpus": "gpus >= 0",
    "gpus_per_node": "gpus_per_node >= 0",
    "gradient_clip_val": "gradient_clip_val > 0",
    "hidden": "hidden >= 1",
    "image_size": "image_size >= 1",
    "jobs_per_device": "jobs_per_device >= 1",
    "kernel_size": "kernel_size >= 1 and kernel_size % 2 == 1",
    "label_smoothing": "0 <= label_smoothing < 1",
    "limit_test_batches": "limit_test_batches > 0",
    "limit_train_batches": "limit_train_batches > 0",
    "limit_val_batches": "limit_val_batches > 0",
    "lr": "lr > 0",
    "lr_decay": "lr_decay >= 0",
    "max_epochs": "max_epochs >= 1",
    "max_lr": "max_lr > 0",
    "max_running": "max_running >= 1",
    "mode": "mode in ('min', 'max')",
    "momentum": "0 <= momentum < 1",
    "name": "name.strip('/') == name and '..' not in name",
    "noise": "noise >= 0",
    "num_components": "num_components >= 1 and num_components % 1 == 0",
    "optim.alpha": "0 <= alpha < 1",
    "num_nodes": "num_nodes >= 1",
    "num_test": "num_test >= 10",
    "num_train": "num_train >= 10",
    "num_train_images": "num_train_images >= 1 and num_train_images % 1 == 0",
    "num_words": "num_words >= 1",
    "on_busy": "on_busy in ('wait', 'fail')",
    "padding": "padding >= 0",
    "padding_mode": "padding_mode in ('reflect', 'constant')",
    "patch_size": "patch_size >= 1",
    "patience": "patience >= 1",
    "precision": "precision in ('auto', '32-true', 'bf16-mixed', '16-mixed')",
    "pct_start": "0 < pct_start < 1",
    "per": "per in ('channel', 'pixel')",
    "resident": "resident in ('device', 'host')",
    "rho": "0 <= rho <= 1",
    "saturation": "saturation >= 0",
    "save_before": "save_before >= 0",
    "scale": "len(scale) == 2 and 0 < scale[0] <= scale[1]",
    "seed": "0 <= seed < 2**32",
    "shear": "0 <= shear < 90",
    "sigma": "len(sigma) == 2 and 0 < sigma[0] <= sigma[1]",
    "size": "size >= 1",
    "std": "std >= 0",
    "step_size": "step_size >= 1",
    "strategy": "strategy == 'auto' or strategy.startswith('ddp')",
    "stride": "stride >= 1",
    "threads": "threads >= 1",
    "time": "time >= 1",
    "timeout": "timeout > 0",
    "translate": "0 <= translate <= 1",
    "unreadable": "unreadable in ('stop', 'skip')",
    "val_fraction": "0 <= val_fraction <= 0.5",
    "warmup_epochs": "warmup_epochs >= 0",
    "way": "way in ('local', 'slurm', 'ray')",
    "weight_decay": "weight_decay >= 0",
}


class UserError(Exception):
    """Something the user can mend. The text says what was given, what is allowed and what to type. Exit status 2."""


# ---------------------------------------------------------------------------------------------------- run identity


def run_id(config: DictConfig) -> str:
    """The name of the run directory: options, changed knobs, hash; at most 120 characters.

    config: the whole configuration, with its `hydra` node, which knows the chosen options.
    """
    choices = chosen(config)
    names = [option for group in GROUPS for option in choices[group] if option not in UNNAMED]
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
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


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
    chosen = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]
    option = next(entry[group] for entry in chosen if isinstance(entry, dict) and group in entry)
    return "+".join(option) if isinstance(option, list) else str(option)


@functools.cache
def option_file(name: str) -> dict[str, Any]:
    """What a file in conf/ says, with what it inherits: option_file("trainer/ddp")."""
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text()) or {}
    inherited: dict[str, Any] = {}
    for parent in content.pop("defaults", []):
        if "/" in name and isinstance(parent, str) and parent != "_self_":
            inherited |= option_file(f"{name.rsplit('/', 1)[0]}/{parent}")
    content.pop("hydra", None)
    return inherited | content


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
        for target in re.findall(r"^\s*_target_:\s*(\S+)", file.read_text(), re.MULTILINE)
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


# -------------------------------------------------------------------------------------------------------- checks


def check(config: DictConfig) -> None:
    """Refuse, with a UserError, what cannot work: types, ranges, targets, and values that do not fit together."""
    if added := sorted(
        set(map(str, ours(config))) - option_file("train").keys() - {*GROUPS, "trainer", "logger", "launcher"}
    ):
        raise UserError(f"+{added[0]} adds what nothing reads. python train.py --help shows what can be typed.")
    if missing := sorted(OmegaConf.missing_keys(ours(config))):
        raise UserError(f"{missing[0]} must be given, and was not. Type {missing[0]}=VALUE.")
    job = job_config(config)
    for group in GROUPS:
        for name, node in job[group].items() if group in LISTED else [(group, job[group])]:
            if not isinstance(node, dict) or "_target_" not in node:
                what = f"{group}.{name}" if group in LISTED else group
                raise UserError(f"{what} is no option. {group} offers {', '.join(options(group))}; type {group}=...")
    check_targets(job)
    if not isinstance(job["checkpoint"], dict):
        raise UserError("checkpoint has the knobs checkpoint.every_n_steps and checkpoint.every_n_minutes. Type those.")
    defaults = defaults_of(config)
    for path, value in leaves(job):
        check_value(path, value, defaults.get(path))
    if refused := [name for name in NOT_OURS if job["trainer"].get(name)]:
        raise UserError(
            f"trainer.{refused[0]} is not supported: every batch is a step, and every epoch is evaluated once. Type "
            f"batch_size for larger steps, num_train_images for shorter epochs, trainer.max_epochs, or debug=one_batch."
        )

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
    if isinstance(devices, int) and devices > 0 and job["batch_size"] % (total := devices * num_nodes):
        raise UserError(
            f"batch_size={job['batch_size']} counts the images of all devices together and cannot be shared equally "
            f"by {total}. Type a multiple of {total}."
        )
    if "launcher" in job:
        if not isinstance(devices, int) or devices < 1:
            raise UserError(f"trainer.devices={devices}: a launcher has to know how many. Type a number from 1.")
        if num_nodes > 1 and job["launcher"]["way"] != "slurm":
            raise UserError(f"trainer.num_nodes={num_nodes} needs launcher=slurm, or torchrun on every node.")


def num_trained_on(config: DictConfig) -> int:
    """Images in an epoch, of all that the data set has for training."""
    num_train = round(data_source(config.data).num_train * (1 - config.val_fraction))
    return min(num_train, config.num_train_images or num_train)


def check_value(path: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than its default, or outside the limits of its name."""
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
    limit = LIMITS.get(path) or LIMITS.get(key)
    if limit and value is not None:
        try:
            holds = eval(limit, {}, {key: value})  # our own text
        except (TypeError, AttributeError):
            holds = False
        if not holds:
            raise UserError(f"{path}={as_typed(value)} is not allowed; it must satisfy {limit}.{example}")


def as_typed(value: Any) -> str:
    """A value as one types it on the command line."""
    return json.dumps(value, separators=(",", ":")).replace('"', "")


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
