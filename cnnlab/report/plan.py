"""What a command would train: its runs, which of them are done, and how long the others take. Does not import torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from omegaconf import DictConfig

from cnnlab.config.identity import chosen, described, differences, run_path
from cnnlab.config.objects import num_trained_on
from cnnlab.config.options import leaves
from cnnlab.config.values import as_typed, job_config
from cnnlab.report.runs import find, read
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.named import handle
from cnnlab.runs.wording import duration
from cnnlab.terminal import Table

SHORT = 10_000  # images, over all epochs
Network: TypeAlias = tuple[str | tuple[str, str], ...]


def print_plan(configs: Sequence[DictConfig], output_dir: Path) -> None:
    """Print the runs in order with their state, the epochs that are left, and an estimate of the time.

    configs: composed, with their `hydra` node.
    """
    speeds = past_speeds(output_dir)
    runs = {run_path(config): config for config in configs}
    repeats = Counter(map(run_path, configs))
    changed = [differences(config) for config in runs.values()]
    alike = {name: value for name, value in changed[0].items() if all(one.get(name) == value for one in changed)}
    shared = alike if len(runs) > 1 else {}
    groups = list(described(chosen(configs[0])))
    names = dict.fromkeys((*groups, *(name for one in changed for name in one if name != "seed"), "seed"))
    varied = [name for name in names if name not in shared and any(name in one for one in changed)]
    given = f", all with {in_words(shared)}" if shared else ""
    table = Table(title=f"{len(runs)} run{'s' * (len(runs) != 1)}{given}")
    table.add("settings that differ" if len(runs) > 1 else "settings", number=False, fold=True)
    table.add("state", number=False)
    table.add("epochs")
    table.add("time", 2)
    table.add("hash", 1, number=False)
    num_epochs, seconds, unknown = 0, 0.0, False
    for (path, config), one in zip(runs.items(), changed, strict=True):
        run = RunDirectory(path)
        status = str(run.summary().get("status", "new"))
        state = "not finished" if status == "running" else status
        left = 0 if status == "done" else config.trainer.max_epochs - len(run.rows())
        epochs = config.trainer.max_epochs if config.rerun else left
        num_train = num_trained_on(config)
        options = described(chosen(config))
        speed = speeds.get(network_of(options, one))
        time = epochs * num_train / speed if speed and num_train else None
        num_epochs, seconds = num_epochs + epochs, seconds + (time or 0)
        unknown = unknown or (time is None and epochs > 0)
        twice = f", given {repeats[path]} times" if repeats[path] > 1 else ""
        settings = {name: as_typed(value) for name, value in leaves(job_config(config))} | options | one
        words = in_words({name: settings.get(name, "-") for name in varied}) or "the defaults"
        table.add_row(words, state + twice, str(epochs), duration(time) if time is not None else "?", handle(path))
    table.show()
    guess = "time not known yet" if unknown else f"about {duration(seconds)} at the speed of past runs here"
    print(f"{num_epochs} epochs to train" + (f", {guess}." if num_epochs else ": nothing is left to do."))


def in_words(settings: Mapping[str, str]) -> str:
    """As on the command line."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def past_speeds(output_dir: Path) -> dict[Network, float]:
    """Images per second of the runs below a folder, by network.

    Short runs, which are slower, do not count; unfinished runs only if no finished one has that network.
    """
    images, seconds, unfinished = Counter[Network](), Counter[Network](), dict[Network, float]()
    for run in read(find([output_dir]))[0]:
        took, speed = run.summary.get("train_seconds", 0), run.summary.get("images_per_second", 0)
        network = network_of(run.summary["choices"], run.summary["changes"])
        if run.done and took * speed >= SHORT:
            images[network] += took * speed
            seconds[network] += took
        elif not run.done and (speed := run.rows[-1].get("images_per_second", 0) if run.rows else speed):
            unfinished[network] = speed
    return unfinished | {network: images[network] / seconds[network] for network in images}


def network_of(choices: Mapping[str, str], changed: Mapping[str, Any]) -> Network:
    """The option and the changed values of a run's network."""
    values = {name: as_typed(value) for name, value in changed.items() if name.startswith("model.")}
    return choices.get("model", ""), *sorted(values.items())
