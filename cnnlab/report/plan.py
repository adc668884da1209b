"""What a command would train: its runs, which of them are done, and how long the others take. Does not import torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from omegaconf import DictConfig

from cnnlab.config.identity import chosen, differences, run_path
from cnnlab.config.objects import num_trained_on
from cnnlab.report.runs import find, read
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.wording import duration
from cnnlab.terminal import Table


def print_plan(configs: Sequence[DictConfig], output_dir: Path) -> None:
    """Print the runs in order with their state, the epochs that are left, and an estimate of the time.

    configs: composed, with their `hydra` node.
    """
    speeds = past_speeds(output_dir)
    paths = [run_path(config) for config in configs]
    repeats = Counter(paths)
    table = Table(title=f"{len(repeats)} run{'s' * (len(repeats) != 1)}")
    for name in ("run", "changes", "state"):
        table.add_column(name, overflow="fold")
    for name in ("epochs", "time"):
        table.add_column(name, justify="right")
    num_epochs, seconds, unknown = 0, 0.0, False
    for path, config in dict(zip(paths, configs, strict=True)).items():
        run = RunDirectory(path)
        status = str(run.summary().get("status", "new"))
        state = "not finished" if status == "running" else status
        left = 0 if status == "done" else config.trainer.max_epochs - len(run.rows())
        epochs = config.trainer.max_epochs if config.rerun else left
        [model], num_train = chosen(config)["model"], num_trained_on(config)
        speed = speeds.get(model)
        time = epochs * num_train / speed if speed and num_train else None
        num_epochs, seconds = num_epochs + epochs, seconds + (time or 0)
        unknown = unknown or (time is None and epochs > 0)
        twice = f", given {repeats[path]} times" if repeats[path] > 1 else ""
        changes = ", ".join(f"{name}={value}" for name, value in differences(config).items()) or "the defaults"
        table.add_row(path.name, changes, state + twice, str(epochs), duration(time) if time is not None else "?")
    table.show()
    guess = "time not known yet" if unknown else f"about {duration(seconds)} at the speed of past runs here"
    print(f"{num_epochs} epochs to train" + (f", {guess}." if num_epochs else ": nothing is left to do."))


def past_speeds(output_dir: Path) -> dict[str, float]:
    """Images per second of the finished runs below a folder, by model: the median."""
    speeds: dict[str, list[float]] = defaultdict(list)
    for run in read(find([output_dir]))[0]:
        if run.done:
            speeds[run.summary["choices"].get("model", "")].append(run.summary["images_per_second"])
    return {model: median(values) for model, values in speeds.items()}
