"""Tables of runs for the terminal: of a sweep when it ends, and of what a folder holds. Takes no torch."""

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from cnnlab.config.options import UserError
from cnnlab.report.runs import Run, find, read, varied
from cnnlab.report.units import is_accuracy, number
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import BrokenFileError
from cnnlab.runs.wording import duration, in_words
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
        table.add(name, number=False)
    measured = list(dict.fromkeys(name for run in done for name in (run.measure, run.tested) if name))
    for name in measured:
        table.add(column(name))
    for rank, name in ((2, "best epoch"), (3, "seconds"), (4, "images/s")):
        table.add(name, rank)
    table.add("hash", 1, number=False)
    for run in done:
        metrics = run.summary["metrics"]
        table.add_row(
            *(run.value(name) for name in columns),
            *(number(name, metrics[name]) if name in (run.measure, run.tested) else "" for name in measured),
            str(run.summary["best_epoch"]),
            f"{run.summary['train_seconds']:.0f}",
            f"{run.summary['images_per_second']:,.0f}",
            handle(run.path),
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
        say(f"Figures of each run: {os.path.relpath(directories[0].parent)}/*HASH/*.png")
    return len(done) == len(directories)


def handle(path: Path) -> str:
    """What names a run on the command line: the hash at the end of its directory's name, otherwise all of it."""
    found = re.search("-([0-9a-f]{8})$", path.name)
    return found[1] if found else path.name


def column(metric: str) -> str:
    """The head of a column: "val/acc (%)"."""
    return metric + " (%)" * is_accuracy(metric)


def told_apart(runs: Sequence[Run]) -> list[str]:
    """The settings in which runs differ, "optim=adam seed=1", for each; where there are none, what names the run."""
    names = varied(runs)
    seeds = len({run.seed for run in runs}) > 1
    found = []
    for run in runs:
        words = [f"{name.rsplit('.', 1)[-1]}={run.value(name)}" for name in names] + [f"seed={run.seed}"] * seeds
        found.append(" ".join(words) or run.path.name.removesuffix(f"-{handle(run.path)}"))
    return found


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
    table.add("hash", number=False)
    table.add("settings that differ", number=False, fold=True)
    table.add("status", 1, number=False)
    table.add("epochs", 3)
    selected = list(dict.fromkeys(str(run.summary["selected_on"]) for run in shown if "selected_on" in run.summary))
    tested = list(dict.fromkeys(run.tested for run in shown if run.done and run.tested))
    measured = list(dict.fromkeys([*selected, *tested, *([by] if by else [])]))
    for name in measured:
        table.add(column(name))
    table.add("age", 2)
    for run, settings in zip(shown, told_apart(shown), strict=True):
        found = dict(run.summary.get("metrics", {})) if run.done else {}
        for name in selected if not run.done else ():
            values = [row[name] for row in run.rows if name in row]
            found |= {name: (max if run.higher else min)(values)} if values else {}
        own = [run.summary.get("selected_on"), run.done and run.tested, by]
        table.add_row(
            handle(run.path),
            settings,
            state(run),
            str(len(run.rows)),
            *(number(name, found[name]) if name in own and name in found else "" for name in measured),
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
    table.add("hash", number=False)
    table.add("settings that differ", 3, number=False, fold=True)
    table.add("status", number=False)
    for rank, name in enumerate(("epoch", "time left", "last epoch")):
        table.add(name, rank)
    table.add("job", 1)
    table.add("", 4, number=False, fold=True)
    for run, status, settings in zip(runs, states, told_apart(runs), strict=False):
        if status == "done":
            continue
        place, max_epochs = RunDirectory(run.path), run.configuration.get("trainer.max_epochs", "")
        epochs = int(max_epochs) if re.fullmatch("[0-9]{1,9}", max_epochs) else 0
        past = [row["epoch_seconds"] for row in run.rows if "epoch_seconds" in row][-5:]
        table.add_row(
            handle(run.path),
            settings,
            status,
            f"{len(run.rows)}/{epochs}",
            duration(median(past) * (epochs - len(run.rows))) if past else "?",
            f"{ago(time.time() - (run.path / 'metrics.csv').stat().st_mtime)} ago" if run.rows else "",
            place.queued_as,
            f"on {place.host}" if status == "running" else run.summary.get("error", {}).get("message", ""),
        )
    for path in queued:
        since = ago(time.time() - (path / ".queued").stat().st_mtime)
        name = path.name.removesuffix(f"-{handle(path)}")
        table.add_row(handle(path), name, "queued", "", "", "", RunDirectory(path).queued_as, f"for {since}")
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
