"""What a command would train: its jobs, which are done already, and how long the others take. Takes no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from omegaconf import DictConfig

from cnnlab.config.identity import chosen, differences, run_path
from cnnlab.config.objects import num_trained_on
from cnnlab.report.runs import Run, find, read
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.wording import duration
from cnnlab.terminal import Table


@dataclass
class PlannedRun:
    """What a composed configuration says of a run.

    Attributes:
        path: its run directory.
        changes: what it changes against the defaults, as text: {"optim": "adam", "optim.lr": "0.01"}.
        model: the chosen option.
        epochs: how many it trains at most.
        rerun: whether it begins anew.
        num_train: images in an epoch, if that is known.
    """

    path: Path
    changes: dict[str, str]
    model: str
    epochs: int
    num_train: int | None
    rerun: bool

    @classmethod
    def of(cls, config: DictConfig) -> PlannedRun:
        """config: with its `hydra` node."""
        [model] = chosen(config)["model"]
        epochs, rerun = config.trainer.max_epochs, config.rerun
        return cls(run_path(config), differences(config), model, epochs, num_trained_on(config), rerun)


def print_plan(configs: Sequence[DictConfig], output_dir: Path) -> None:
    """The runs in order, with what is known of each; how much there is to do, and how long it takes."""
    jobs = [PlannedRun.of(config) for config in configs]
    speeds = past_speeds(output_dir) if output_dir.exists() else {}
    typed = Counter(job.path for job in jobs)
    table = Table(title=f"{len(typed)} run{'s' * (len(typed) != 1)}")
    for name in ("run", "changes", "state"):
        table.add_column(name, overflow="fold")
    for name in ("epochs", "time"):
        table.add_column(name, justify="right")
    to_do, seconds, unknown = 0, 0.0, 0
    for job in {job.path: job for job in jobs}.values():
        summary = RunDirectory(job.path).summary()
        state = {"running": "not finished"}.get(str(summary.get("status")), str(summary.get("status", "new")))
        left = 0 if state == "done" else job.epochs - len(RunDirectory(job.path).rows())
        epochs = job.epochs if job.rerun else left
        speed = speeds.get(job.model)
        time = epochs * job.num_train / speed if speed and job.num_train else None
        to_do, seconds, unknown = to_do + epochs, seconds + (time or 0), unknown + (time is None and epochs > 0)
        twice = f", typed {typed[job.path]} times" if typed[job.path] > 1 else ""
        changes = ", ".join(f"{name}={value}" for name, value in job.changes.items()) or "the defaults"
        table.add_row(job.path.name, changes, state + twice, str(epochs), duration(time) if time is not None else "?")
    table.show()
    guess = "how long is not known yet" if unknown else f"about {duration(seconds)} at the speed of past runs here"
    print(f"{to_do} epochs to train" + (f", {guess}." if to_do else ": nothing is left to do."))


def past_speeds(output_dir: Path) -> dict[str, float]:
    """Images per second of finished runs, by model: the median."""
    runs: list[Run] = [run for run in read(find([output_dir]))[0] if run.done]
    speeds: dict[str, list[float]] = {}
    for run in runs:
        speeds.setdefault(run.summary["choices"].get("model", ""), []).append(run.summary["images_per_second"])
    return {model: median(values) for model, values in speeds.items()}
