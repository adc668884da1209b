"""Runs as they are found on the disk, and settings that several runs share. Takes no torch."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnlab.records import Row, RunDirectory

NEEDED = ("run", "choices", "changes", "seed", "status")  # in the summary of a run of ours


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
        return self.summary["status"] == "done"

    @property
    def settings(self) -> dict[str, str]:
        """Chosen options and changed knobs as text, but for the seed."""
        return {name: value for name, value in settings(self.summary).items() if name != "seed"}

    @property
    def accuracy(self) -> float:
        """On the test images, at the best epoch."""
        return float(self.summary["metrics"]["test/acc"])

    @property
    def cannot_be_averaged_over(self) -> tuple[tuple[str, str], ...]:
        """What else must be the same for two runs to differ in their seed alone."""
        data, environment = self.summary.get("data", {}), self.summary.get("environment", {})
        return (
            ("code", str(self.summary.get("code_digest", ""))[:12]),
            ("data", str(data.get("fingerprint", ""))[:12]),
            ("precision", str(environment.get("precision", ""))),
            ("device", str(environment.get("device", ""))),
            ("torch", str(environment.get("torch", ""))),
        )


def settings(summary: dict[str, Any]) -> dict[str, str]:
    """Chosen options and changed knobs of a run, as text."""
    knobs = {path: _text(value) for path, value in summary["changes"].items()}
    return {group: str(option) for group, option in summary["choices"].items()} | knobs


def varied(settings: Sequence[dict[str, str]]) -> list[str]:
    """The names under which settings differ, in their order."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({one.get(name) for one in settings}) > 1]


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")).replace('"', "") if not isinstance(value, str) else value


def find(folders: Iterable[Path]) -> Iterator[Path]:
    """Run directories: the folders themselves, or what lies below them, in order and once."""
    seen = set()
    for folder in folders:
        if (folder / "summary.json").exists():
            candidates = [folder]
        else:
            candidates = sorted(path.parent for path in folder.rglob("summary.json"))
        for path in candidates:
            if path.resolve() not in seen and ".old" not in path.name:
                seen.add(path.resolve())
                yield path


def read(paths: Iterable[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The runs, and what could not be read, with the reason."""
    runs, left_out = [], []
    for path in paths:
        try:
            summary = RunDirectory(path).summary()
            if missing := [key for key in NEEDED if key not in summary]:
                raise ValueError(f"summary.json has no {', '.join(missing)}: of another program or an older version")
            rows = RunDirectory(path).metrics() if (path / "metrics.csv").exists() else []
            run = Run(path, summary, rows)
            if run.done and not (math.isfinite(run.accuracy) and rows):
                raise ValueError("it is done, but has no metrics")
            runs.append(run)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            left_out.append((path, f"{type(error).__name__}: {error}" if not str(error) else str(error)))
    return runs, left_out


@dataclass
class Setting:
    """Runs that differ in their seed alone."""

    settings: dict[str, str]
    apart: tuple[tuple[str, str], ...]
    runs: list[Run]

    @property
    def by_seed(self) -> dict[int, float]:
        """Test accuracy by seed."""
        return {run.seed: run.accuracy for run in self.runs}


def grouped(runs: Sequence[Run]) -> list[Setting]:
    """Finished runs by everything but the seed: nothing else is ever averaged over."""
    groups: dict[Any, Setting] = {}
    for run in runs:
        if run.done:
            key = (tuple(sorted(run.settings.items())), run.cannot_be_averaged_over)
            groups.setdefault(key, Setting(run.settings, run.cannot_be_averaged_over, [])).runs.append(run)
    return list(groups.values())
