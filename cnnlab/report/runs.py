"""Runs as they are found on the disk, and settings that several runs share. Takes no torch."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cnnlab.config.options import leaves
from cnnlab.config.values import as_typed
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.named import find as find
from cnnlab.runs.readers import BrokenFileError, Row


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
        """Chosen options and changed knobs as text, but for the seed."""
        knobs = {path: as_typed(value) for path, value in self.summary["changes"].items() if path != "seed"}
        return {group: str(option) for group, option in self.summary["choices"].items()} | knobs

    def value(self, name: str) -> str:
        """A setting as text, also one that is a default; "-" where the run has no such knob."""
        return self.settings.get(name) or self.configuration.get(name, "-")

    @cached_property
    def configuration(self) -> dict[str, str]:
        """Every knob as text, by its path, from the configuration that is kept with the run."""
        try:
            return {path: as_typed(value) for path, value in leaves(RunDirectory(self.path).config())}
        except (FileNotFoundError, BrokenFileError):
            return {}

    @property
    def measure(self) -> str:
        """What it is ranked by: the metric that chose its best epoch, "val/acc"."""
        return str(self.summary["selected_on"])

    @property
    def higher(self) -> bool:
        """Whether larger values of that are better."""
        return self.summary.get("select_mode", "max") == "max"

    @property
    def score(self) -> float:
        """The value of what it is ranked by, at the best epoch."""
        return float(self.summary["metrics"][self.measure])

    @property
    def tested(self) -> str:
        """The same metric on test images, "test/acc"; empty if that is what it is ranked by, or was not measured."""
        name = f"test/{self.measure.partition('/')[2]}"
        return name if name in self.summary["metrics"] and name != self.measure else ""

    @property
    def outcome(self) -> str:
        """What became of it, in a word or two: "done", "diverged", "pruned", "failed", "not finished"."""
        if kind := {"DivergedError": "diverged", "Pruned": "pruned"}.get(self.summary.get("error", {}).get("type", "")):
            return kind
        return str(self.summary["status"]) if self.summary["status"] in ("done", "failed") else "not finished"

    @property
    def cannot_be_averaged_over(self) -> tuple[tuple[str, str], ...]:
        """What else must be the same for two runs to differ in their seed alone."""
        data, environment = self.summary.get("data", {}), self.summary.get("environment", {})
        return (
            ("code", str(self.summary.get("code_digest", ""))[:12]),
            ("fingerprint", str(data.get("fingerprint", ""))[:12]),
            ("precision", str(environment.get("precision", ""))),
            ("device", str(environment.get("device", ""))),
            ("devices", str(environment.get("num_devices", ""))),
            ("torch", str(environment.get("torch", ""))),
            ("selected on", f"{self.summary.get('selected_on')} {self.summary.get('select_mode')}"),
            ("configuration", str(self.summary.get("setting", ""))[:12]),  # more than `settings` if a file was edited
        )


def varied(runs: Sequence[Run]) -> list[str]:
    """The settings in which runs differ, without the seed, in their order."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    return [name for name in differing if len({run.value(name) for run in runs}) > 1]


def read(paths: Iterable[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs, and what could not be read, with the reason."""
    runs, left_out = [], []
    for path in paths:
        run = RunDirectory(path)
        try:
            if not (summary := run.read_summary()):
                continue  # it has just been removed
            rows = run.metrics() if summary["status"] == "done" or (path / "metrics.csv").exists() else []
            if summary["status"] == "done" and not rows:
                raise BrokenFileError(path / "metrics.csv", "has no rows, and the run is done")
            runs.append(Run(path, summary, rows))
        except BrokenFileError as error:
            left_out.append((path, error.reason))
        except FileNotFoundError:
            left_out.append((path, "metrics.csv is missing, and the run is done"))
    return runs, left_out


@dataclass
class Setting:
    """Runs that differ in their seed alone.

    Attributes:
        settings, apart: what they share.
        runs: those that are done; only they have means.
        unfinished: those that diverged, failed, were pruned or are not finished.
    """

    settings: dict[str, str]
    apart: tuple[tuple[str, str], ...]
    runs: list[Run]
    unfinished: list[Run] = field(default_factory=list)

    def value(self, name: str) -> str:
        """A setting, or what else sets the runs apart, as text; "-" if the runs have no such knob."""
        return dict(self.apart).get(name) or (self.runs or self.unfinished)[0].value(name)

    @property
    def by_seed(self) -> dict[int, float]:
        """The value that they are ranked by, by seed."""
        return {run.seed: run.score for run in self.runs}

    @property
    def test_values(self) -> list[float]:
        """The same metric on test images; empty if not all runs have it besides."""
        return [run.summary["metrics"][run.tested] for run in self.runs] if all(run.tested for run in self.runs) else []

    @property
    def diverged(self) -> bool:
        return any(run.outcome == "diverged" for run in self.unfinished)

    def count(self) -> str:
        """The number of runs: "3", or "1 of 3, 2 diverged"."""
        num = len(self.by_seed)
        if not self.unfinished:
            return str(num)
        outcomes = Counter(run.outcome for run in self.unfinished)
        parts = [f"{num} of {num + len(self.unfinished)}"]
        return ", ".join(parts + [f"{many} {outcome}" for outcome, many in outcomes.items()])

    @property
    def held_out(self) -> str:
        """What was evaluated after every epoch: "val", or "test" in the report's protocol."""
        return "val" if any(name.startswith("val/") for name in self.runs[0].rows[0]) else "test"

    def over_epochs(self, metric: str) -> tuple[list[int], np.ndarray]:
        """Epochs, and a row for every run: (runs, epochs); not a number where a run ended earlier."""
        table = over_epochs([run.rows for run in self.runs], metric)
        return list(range(1, table.shape[1] + 1)), table


def over_epochs(runs: Sequence[Sequence[Row]], metric: str) -> np.ndarray:
    """(runs, epochs); not a number where a run ended earlier, or did not measure it."""
    table = np.full((len(runs), max(map(len, runs))), np.nan)
    for place, rows in enumerate(runs):
        table[place, : len(rows)] = [row.get(metric, math.nan) for row in rows]
    return table


def grouped(runs: Sequence[Run]) -> list[Setting]:
    """Runs by everything but the seed: nothing else is ever averaged over.

    A run that is not done knows less about itself: it goes to the runs with its settings, if there are any.
    """
    groups: dict[Any, Setting] = {}
    for run in runs:
        if run.done:
            key = (_key(run), run.cannot_be_averaged_over, len(run.summary["data"]["classes"]))
            groups.setdefault(key, Setting(run.settings, run.cannot_be_averaged_over, [])).runs.append(run)
    by_settings: dict[Any, Setting] = {}
    for (settings, *_), group in groups.items():
        by_settings.setdefault(settings, group)
    found = list(groups.values())
    for run in runs:
        if not run.done:
            if _key(run) not in by_settings:
                by_settings[_key(run)] = Setting(run.settings, run.cannot_be_averaged_over, [])
                found.append(by_settings[_key(run)])
            by_settings[_key(run)].unfinished.append(run)
    return found


def _key(run: Run) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(run.settings.items()))
