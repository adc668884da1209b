"""Runs read from their directories, and settings: runs that differ only in their seed. Does not import torch."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cnnlab.config.options import leaves
from cnnlab.config.values import as_typed
from cnnlab.report.statistics import TINY, Estimate, estimate
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.named import find as find
from cnnlab.runs.readers import BrokenFileError, Row

FOLLOW = ("configuration", "held-out images", "test images")  # conditions that settings may change, too


@dataclass
class Run:
    """One run directory.

    Attributes:
        path: the directory.
        summary: content of summary.json.
        rows: content of metrics.csv, one per epoch.
    """

    path: Path
    summary: dict[str, Any]
    rows: list[Row] = field(repr=False)

    @property
    def seed(self) -> int:
        return int(self.summary["seed"])

    @property
    def done(self) -> bool:
        return self.summary.get("status") == "done"

    @cached_property
    def settings(self) -> dict[str, str]:
        """The chosen options and changed hyperparameters as text, without the seed."""
        changes = {path: as_typed(value) for path, value in self.summary["changes"].items() if path != "seed"}
        return {group: str(option) for group, option in self.summary["choices"].items()} | changes

    def value(self, name: str, missing: str = "-") -> str:
        """A setting as text, including defaults; `missing` if the run has no such hyperparameter."""
        return self.settings.get(name) or self.configuration.get(name, missing)

    @cached_property
    def configuration(self) -> dict[str, str]:
        """Every value of the run's saved configuration as text, by its path."""
        try:
            return {path: as_typed(value) for path, value in leaves(RunDirectory(self.path).config())}
        except (FileNotFoundError, BrokenFileError):
            return {}

    @property
    def measure(self) -> str:
        """The metric that runs are ranked by and that selected the best epoch, "val/acc"."""
        return str(self.summary["selected_on"])

    @property
    def higher(self) -> bool:
        """Whether larger values of `measure` are better."""
        return self.summary.get("select_mode", "max") == "max"

    @property
    def score(self) -> float:
        """The value of `measure` at the best epoch."""
        return float(self.summary["metrics"][self.measure])

    @property
    def tested(self) -> str:
        """The same metric on test images, "test/acc"; empty if that is `measure` itself, or was not measured."""
        name = f"test/{self.measure.partition('/')[2]}"
        return name if name in self.summary["metrics"] and name != self.measure else ""

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and largest possible value of `measure`, as far as its class states them."""
        stated = self.summary.get("metric_bounds", {}).get(self.measure.partition("/")[2], {})
        return stated.get("low", -math.inf), stated.get("high", math.inf)

    @property
    def status(self) -> str:
        """The status in the summary, or, of failed runs, "diverged" or "pruned"."""
        error = self.summary.get("error", {}).get("type", "")
        return {"DivergedError": "diverged", "Pruned": "pruned"}.get(error, str(self.summary["status"]))

    @property
    def outcome(self) -> str:
        """How the run ended: "done", "diverged", "pruned", "failed" or "not finished"."""
        return self.status if self.status not in ("running", "interrupted") else "not finished"

    @cached_property
    def conditions(self) -> dict[str, str]:
        """What must be the same, besides the settings, for runs to be averaged over their seeds."""
        data, environment = self.summary.get("data", {}), self.summary.get("environment", {})
        return {
            "code": str(self.summary.get("code_digest", ""))[:12],
            "fingerprint": str(data.get("fingerprint", ""))[:12],
            "precision": str(environment.get("precision", "")),
            "device": str(environment.get("device", "")),
            "devices": str(environment.get("num_devices", "")),
            "torch": str(environment.get("torch", "")),
            "lightning": str(environment.get("lightning", "")),
            "held-out images": str(data.get("num_held_out", "")),
            "test images": str(data.get("num_test", "")),
            "selected on": f"{self.summary.get('selected_on')} {self.summary.get('select_mode')}",
            "configuration": str(self.summary.get("setting", ""))[:12],  # also differs if an option file was edited
        }

    @cached_property
    def setting(self) -> tuple[Any, ...]:
        """What finished runs must share to be averaged over their seeds."""
        return *sorted(self.settings.items()), *self.conditions.items(), len(self.summary["data"]["classes"])


def varied(runs: Sequence[Run]) -> list[str]:
    """The settings in which runs differ, without the seed, in their order."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    return [name for name in differing if len({run.value(name) for run in runs}) > 1]


def loss_warning(measure: str, differing: Iterable[str]) -> str:
    """A warning if runs are compared by their loss and differ in what it is; otherwise empty."""
    names = [name for name in differing if name.partition(".")[0] == "loss"]
    if not names or measure.partition("/")[2] != "loss":
        return ""
    return (
        f"Warning: settings that differ in {' and '.join(names)} have losses that are different quantities. Compare "
        f"them by a metric: train with select_on=val/acc or another."
    )


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The shortest end of each path that no other has: optim.lr -> lr, aug.mixup.alpha -> mixup.alpha."""
    ends = {path: [path.split(".", depth)[-1] for depth in range(path.count("."), -1, -1)] for path in paths}
    counts = Counter(end for path in ends for end in ends[path])
    return {path: next((end for end in ends[path] if counts[end] == 1), path) for path in ends}


def read(paths: Iterable[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs in these directories, and the directories that cannot be read, each with the reason."""
    runs, unreadable = [], []
    for path in paths:
        run = RunDirectory(path)
        try:
            if not (summary := run.read_summary()):
                continue  # the directory has just been removed
            rows = run.metrics() if summary["status"] == "done" or (path / "metrics.csv").exists() else []
            if summary["status"] == "done" and not rows:
                raise BrokenFileError(path / "metrics.csv", "has no rows, but the run is done")
            runs.append(Run(path, summary, rows))
        except BrokenFileError as error:
            unreadable.append((path, error.reason))
        except FileNotFoundError:
            unreadable.append((path, "metrics.csv is missing, but the run is done"))
    return runs, unreadable


def without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """One run of each setting and seed, finished ones first, and the directories of the others, each with the reason.

    The conditions of an unfinished run may not be known, so its settings and seed decide.
    """
    first: dict[Any, Run] = {}
    reasons: dict[Path, str] = {}
    for run in sorted(runs, key=lambda run: not run.done):
        place = (tuple(sorted(run.settings.items())), run.seed)
        kept = first.setdefault((run.setting, run.seed) if run.done else place, run)
        first.setdefault(place, run)
        if kept is not run:
            results = [(one.summary["status"], one.summary.get("metrics")) for one in (run, kept)]
            copied = run.path.name == kept.path.name and results[0] == results[1]
            differs = ", with other results" * (run.done and results[0] != results[1])
            reasons[run.path] = f"{'a copy of' if copied else 'the same setting and seed as'} {kept.path}{differs}"
    return [run for run in runs if run.path not in reasons], list(reasons.items())


@dataclass
class Setting:
    """Runs that differ only in their seed.

    Attributes:
        settings, conditions: what they share, see `Run`.
        runs: the finished ones; means are over these.
        unfinished: those that diverged, failed, were pruned or are not finished.
    """

    settings: dict[str, str]
    conditions: dict[str, str]
    runs: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)

    def value(self, name: str) -> str:
        """A setting or condition as text; "-" if the runs have no such hyperparameter."""
        return self.conditions.get(name) or (self.runs or self.unfinished)[0].value(name)

    @property
    def by_seed(self) -> dict[int, float]:
        """The value of the metric that runs are ranked by, for every seed."""
        return {run.seed: run.score for run in self.runs}

    @property
    def score(self) -> Estimate:
        """The mean of that metric."""
        return self._mean(sorted(self.by_seed.values()))  # the last digit depends on the order

    @property
    def test(self) -> Estimate | None:
        """The mean of the same metric on test images, over the runs that have both; None without such runs."""
        values = [run.summary["metrics"][run.tested] for run in self.runs if run.tested]
        return self._mean(values) if values else None

    def _mean(self, values: Sequence[float]) -> Estimate:
        """Without an interval if the values have no spread, which says nothing about other seeds."""
        low, high = self.runs[0].bounds
        found = estimate(values, (min(low, *values), max(high, *values)))
        return found if found.std > TINY else replace(found, half_width=math.inf)

    @property
    def diverged(self) -> bool:
        return any(run.outcome == "diverged" for run in self.unfinished)

    def count(self) -> str:
        """The number of runs: "3", or "1 of 3, 2 diverged"."""
        return count([self])

    @property
    def held_out(self) -> str:
        """The images evaluated after every epoch: "val", or "test" if nothing was held out."""
        return "val" if any(name.startswith("val/") for name in self.runs[0].rows[0]) else "test"


def count(settings: Sequence[Setting]) -> str:
    """The number of runs of all of them: "3", or "1 of 3, 2 diverged"."""
    num = sum(len(setting.by_seed) for setting in settings)
    outcomes = Counter(run.outcome for setting in settings for run in setting.unfinished)
    parts = [f"{num} of {num + outcomes.total()}" if outcomes else str(num)]
    return ", ".join(parts + [f"{many} {outcome}" for outcome, many in outcomes.items()])


def over_epochs(runs: Sequence[Sequence[Row]], metric: str) -> np.ndarray:
    """A metric by run and epoch: (runs, epochs); NaN where a run ended earlier or did not measure it."""
    table = np.full((len(runs), max(map(len, runs))), np.nan)
    for place, rows in enumerate(runs):
        table[place, : len(rows)] = [row.get(metric, math.nan) for row in rows]
    return table


def grouped(runs: Sequence[Run]) -> list[Setting]:
    """Runs grouped by everything but the seed, which is all that is ever averaged over.

    The conditions of an unfinished run may not be known, so it joins the first group with the same settings.
    """
    groups: dict[Any, Setting] = {}
    for run in filter(lambda run: run.done, runs):
        groups.setdefault(run.setting, Setting(run.settings, run.conditions)).runs.append(run)
    found = list(groups.values())
    for run in filter(lambda run: not run.done, runs):
        group = next((group for group in found if group.settings == run.settings), None)
        if group is None:
            group = Setting(run.settings, run.conditions)
            found.append(group)
        group.unfinished.append(run)
    return found
