"""What a configuration may be: types, ranges, values that fit together. No torch, so that mistakes answer at once."""

import ast
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra.utils
from omegaconf import DictConfig, OmegaConf

from cnnlab.config.identity import NOT_OWN, chosen, defaults_of, is_file, is_run, limits_of, run_id
from cnnlab.config.objects import check_targets, data_source, num_trained_on
from cnnlab.config.options import GROUPS, LISTED, UserError, leaves, option_file, options
from cnnlab.config.paths import expand, make_folder
from cnnlab.config.processes import place
from cnnlab.config.shape import Shape, is_size, offered
from cnnlab.config.values import as_typed, job_config, ours

# Arguments of Lightning's Trainer with which an epoch would not be what it is here: every batch, then one evaluation.
NOT_OURS = (
    "check_val_every_n_epoch",
    "fast_dev_run",
    "max_steps",
    "max_time",
    "min_steps",
    "overfit_batches",
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
    make_folder(expand(job["cache_dir"]))
    defaults, limits = defaults_of(config), limits_of(config)
    for path, value in leaves(job):
        for above in parents(path):
            if defaults.get(above) is not None:  # optim.lr={a:1}
                check_value(above, {path.removeprefix(f"{above}."): value}, defaults[above], limits.get(above))
    for path, value in leaves(job):
        check_value(path, value, defaults.get(path), limits.get(path), siblings(job, path))
    if check_source := offered(data_source(config.data), "check"):
        check_source()
    facts = facts_of(config)
    for path, value in leaves(job):
        known = siblings(job, path) | {"run": job, "data": facts}
        check_value(path, value, defaults.get(path), limits.get(path), known)
    for name in SET_HERE.keys() & job["trainer"].keys():
        instead = f" Use {SET_HERE[name]} instead." if SET_HERE[name] else ""
        raise UserError(f"trainer.{name} is set by cnnlab and cannot be changed.{instead}")
    for prefix, node in nodes(job):
        listed = {path.removeprefix(f"{prefix}.").split(".")[0] for path in defaults if path.startswith(f"{prefix}.")}
        refuse_unknown(prefix, node, [key for key in node if key not in listed and key[0] != "_"])
    if refused := [name for name in NOT_OURS if job["trainer"].get(name)]:
        raise UserError(
            f"trainer.{refused[0]} is not supported: every epoch is trained and evaluated whole, once. Use "
            f"trainer.max_epochs, num_train_images for shorter epochs, debug=one_batch or debug=overfit."
        )
    if (num := facts.get("num_train")) is not None and job["batch_size"] > num:
        raise UserError(
            f"batch_size={job['batch_size']} is larger than the {num} images that are trained on (of "
            f"{data_source(config.data).num_train}, with val_fraction={job['val_fraction']} held out). "
            f"Type batch_size={num} or less."
        )
    if job["warmup_epochs"] and job["warmup_epochs"] >= (max_epochs := job["trainer"]["max_epochs"]):
        raise UserError(
            f"warmup_epochs={job['warmup_epochs']} leaves nothing of trainer.max_epochs={max_epochs}. Type less."
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


def check_single(config: DictConfig) -> None:
    """As `check`, for a configuration that is to be one run."""
    check(config)
    if config.hydra.runtime.choices["hydra/sweeper"] != "grid":
        raise UserError("A search has many runs. Type python train.py -m hydra/sweeper=optuna.")
    if "launcher" in config:
        [launcher] = chosen(config)["launcher"]
        raise UserError(f"launcher={launcher} is for sweeps. Type python train.py -m ...")


def facts_of(config: DictConfig) -> dict[str, Any]:
    """What is known of the data before they are loaded; data.num_train is the number of images that are trained on."""
    shape: Shape | None = offered(data_source(config.data), "shape")
    num_train = num_trained_on(config)
    return (shape.facts() if shape else {}) | ({} if num_train is None else {"num_train": num_train})


def siblings(job: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The values beside one; none where keys have dots in them."""
    for key in path.split(".")[:-1]:
        job = job.get(key, {}) if isinstance(job, Mapping) else {}
    return dict(job) if isinstance(job, Mapping) else {}


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
        check_value(path, value, defaults.get(path), limits.get(path), siblings(job, path))


TESTS = (is_file, is_run, is_size)  # what the limit of a value may call

EXPECTED = {bool: "true or false", int: "a whole number", float: "a finite number", list: "a list, [a,b,...]"}


def check_value(path: str, value: Any, default: Any, limit: str | None, known: Mapping[str, Any] | None = None) -> None:
    """Refuse a value of another type than its default, or one that does not satisfy its limit.

    limit: an expression, empty if there is none; None: the value is for its class to check. known: what it may name
    besides the value, by name; it is not checked if it names something else.
    """
    if limit is None:
        return
    key = path.rsplit(".", 1)[-1]
    if isinstance(default, str) and isinstance(value, int | float):  # name=2024
        value = str(value)
    example = f" Type for example {path}={as_typed(default)}, its default." if default is not None else ""
    if value is None and path in NULLABLE:
        return
    if default is not None and type(default) in EXPECTED and f"is_size({key})" not in limit:
        accepted = (int, float) if isinstance(default, float) else type(default)
        if (
            not isinstance(value, accepted)
            or isinstance(value, bool) != isinstance(default, bool)
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise UserError(f"{path}={as_typed(value)} is not {EXPECTED[type(default)]}.{example}")
    if limit and value is not None:
        for clause in clauses(limit):
            check_clause(path, value, clause, {**(known or {}), key: value}, example, default)


def clauses(limit: str) -> list[str]:
    """What an expression joins by `and`: so only what does not hold is told."""
    tree = ast.parse(limit, mode="eval").body
    parts = tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]
    return [ast.unparse(part) for part in parts]


def check_clause(path: str, value: Any, clause: str, known: Mapping[str, Any], example: str, default: Any) -> None:
    named = sorted(set(re.findall(r"\b(?:data|run)\.[a-z_.]+", clause)))
    context = {name: found for name in named if (found := named_in(known, name)) is not None}
    if len(context) < len(named):
        return
    key = path.rsplit(".", 1)[-1]
    read = {node.id for node in ast.walk(ast.parse(clause)) if isinstance(node, ast.Name)} - {key, "data", "run"}
    context |= {name: known[name] for name in sorted(read & known.keys())}
    names = {name: nested(known[name]) if name in ("data", "run") else known[name] for name in known}
    names |= {test.__name__: test for test in TESTS}
    try:
        holds = eval(clause, {}, names)  # an option file's own text
    except NameError:  # it depends on what is not known here
        return
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError):
        holds = False
    if not holds:
        here = f" with {', '.join(f'{name}={as_typed(found)}' for name, found in context.items())}" if context else ""
        example = " Change one of them." if as_typed(default) == as_typed(value) else example
        explained = [(test.__doc__ or "").rstrip(".") for test in TESTS if f"{test.__name__}(" in clause]
        clause = f"{clause}: {explained[0].partition('.')[0]}" if explained else clause
        raise UserError(f"{path}={as_typed(value)} is not allowed{here}; it must satisfy {clause}.{example}")


def named_in(known: Mapping[str, Any], path: str) -> Any:
    """The value of a dotted path; None if there is none."""
    node: Any = known
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def nested(node: Any) -> Any:
    """Mappings as objects with attributes."""
    return SimpleNamespace(**{key: nested(value) for key, value in node.items()}) if isinstance(node, Mapping) else node
