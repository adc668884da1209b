"""Tables of runs for the terminal: of a sweep when it ends, and of what a folder holds. Takes no torch."""

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from cnnlab.config.options import UserError
from cnnlab.report import plan
from cnnlab.report.runs import Run, find, read, varied
from cnnlab.report.units import written
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import BrokenFileError
from cnnlab.runs.told import in_words
from cnnlab.terminal import Table
from cnnlab.text import say


def print_table(directories: Sequence[Path]) -> bool:
    """Print the runs, best first, and what failed; return whether all are done."""
    runs, damaged = [], []
    for path in directories:
        try:
            runs.append(Run(path, RunDirectory(path).read_summary(), []))
        except BrokenFileError as error:
            damaged.append(f"damaged: {path}: {error.reason}")
    done = sorted((run for run in runs if run.done), key=lambda run: (run.measure, (-1) ** run.higher * run.score))
    columns = varied(done) + ["seed"] * (len({run.seed for run in done}) > 1)
    table = Table(title=f"{len(done)} of {len(directories)} runs done, best {in_words_of(done)} first")
    for name in columns:
        table.add_column(name)
    for name in ("selected by", "on test images", "best epoch", "seconds", "images/s"):
        table.add_column(name, justify="right")
    table.add_column("run", overflow="fold")
    for run in done:
        summary = run.summary
        table.add_row(
            *(run.value(name) for name in columns),
            f"{run.measure} {written(run.measure, run.score)}",
            f"{run.tested} {written(run.tested, summary['metrics'][run.tested])}" if run.tested else "",
            str(summary["best_epoch"]),
            f"{summary['train_seconds']:.0f}",
            f"{summary['images_per_second']:,.0f}",
            summary["run"],
        )
    if done:
        table.show()
    for line in damaged:
        say(line)
    for run in runs:
        if not run.done:
            status = state(run) if run.summary else "not started"
            say(f"{status}: {run.path}: {run.summary.get('error', {}).get('message', '')}")
    if done:
        print(
            f"Pictures of each run: {os.path.relpath(directories[0].parent)}/*/curves.png, confusion.png, samples.png"
        )
    return len(done) == len(directories)


def in_words_of(runs: Sequence[Run]) -> str:
    return " or ".join(dict.fromkeys(in_words(run.measure) for run in runs)) or "ones"


def print_list(folder: Path, by: str | None, num: int) -> None:
    """Print the runs below a folder, newest first, or best first by a metric.

    by: the metric; empty for the one that each run was selected by; None for newest first.

    Raises: UserError if there are none, or none with that metric.
    """
    runs, left_out = read(find([folder]))
    if not runs:
        raise nothing_in(folder, left_out)
    changed = {run.path: (run.path / "summary.json").stat().st_mtime for run in runs}
    if by == "":
        runs = [run for run in runs if run.done]
        runs.sort(key=lambda run: (run.measure, (-1) ** run.higher * run.score))
    elif by:
        names = sorted({name for run in runs for name in run.summary.get("metrics", {})})
        if by not in names:
            raise UserError(f"--by {by}: no run has measured that. Use one of {', '.join(names) or 'none so far'}.")
        runs = [run for run in runs if by in run.summary.get("metrics", {})]
        higher = next((run.higher for run in runs if run.measure == by), not by.endswith("loss"))
        runs.sort(key=lambda run: run.summary["metrics"][by], reverse=higher)
    else:
        runs.sort(key=lambda run: -changed[run.path])
    shown = runs[:num]
    table = Table(title=f"{len(shown)} of {len(runs)} runs in {folder}")
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for name in ("epochs", "selected by", "", "test", *([by] if by else []), "age"):
        table.add_column(name, justify="right")
    for run in shown:
        metrics = run.summary.get("metrics", {})
        selected = run.summary.get("selected_on", "")
        found = [row[selected] for row in run.rows if selected in row]
        held_out = (max if run.higher else min)(found) if found else None
        cells = [(selected, held_out), (run.tested, metrics.get(run.tested) if run.done else None)]
        cells += [(by, metrics[by])] if by else []
        table.add_row(
            str(run.path.relative_to(folder)) if run.path != folder else run.path.name,
            state(run),
            str(len(run.rows)),
            selected,
            *("" if value is None else written(name, value) for name, value in cells),
            ago(time.time() - changed[run.path]),
        )
    table.show()
    for path, reason in left_out:
        say(f"{path}: left out: {reason}")


def print_status(folder: Path) -> None:
    """Print how many runs below a folder are queued, running, done, failed; and of those that are not done, how far.

    Raises: UserError if there are none.
    """
    runs, left_out = read(find([folder]))
    known = {run.path for run in runs}
    queued = [path.parent for path in sorted(folder.rglob(".queued")) if path.parent not in known]
    if not runs and not queued:
        raise nothing_in(folder, left_out)
    states = [state(run) for run in runs] + ["queued"] * len(queued)
    say(f"{folder}: " + ", ".join(f"{num} {name}" for name, num in Counter(states).most_common()))
    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for name in ("epoch", "time left", "last epoch", "job"):
        table.add_column(name, justify="right")
    table.add_column("")
    for run, status in zip(runs, states, strict=False):
        if status == "done":
            continue
        place, max_epochs = RunDirectory(run.path), run.configuration.get("trainer.max_epochs", "")
        epochs = int(max_epochs) if re.fullmatch("[0-9]{1,9}", max_epochs) else 0
        past = [row["epoch_seconds"] for row in run.rows if "epoch_seconds" in row][-5:]
        table.add_row(
            run.path.name,
            status,
            f"{len(run.rows)}/{epochs}",
            plan.in_words(median(past) * (epochs - len(run.rows))) if past else "?",
            f"{ago(time.time() - (run.path / 'metrics.csv').stat().st_mtime)} ago" if run.rows else "",
            place.queued_as,
            f"on {place.host}" if status == "running" else run.summary.get("error", {}).get("message", ""),
        )
    for path in queued:
        since = ago(time.time() - (path / ".queued").stat().st_mtime)
        table.add_row(path.name, "queued", "", "", "", RunDirectory(path).queued_as, f"for {since}")
    if table.row_count:
        table.show()
    for path, reason in left_out:
        say(f"{path}: left out: {reason}")


def nothing_in(folder: Path, left_out: Sequence[tuple[Path, str]]) -> UserError:
    """The error for a folder without a run that can be read."""
    broken = "".join(f" {path} cannot be read: {reason}." for path, reason in left_out[:3])
    return UserError(f"There is no run in {folder}.{broken} Type a folder that holds some, as outputs/runs.")


def state(run: Run) -> str:
    """The status of a run; one that is said to be running, and that nobody holds, was killed."""
    status = str(run.summary["status"])
    return "killed" if status == "running" and not RunDirectory(run.path).held else status


def ago(seconds: float) -> str:
    """How long ago something was: 90 -> "1 min"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
