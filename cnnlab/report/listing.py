"""Tables of runs on the terminal: at the end of a sweep, and for the runs below a folder. Does not import torch."""

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from cnnlab.config.options import UserError
from cnnlab.report.runs import Run, find, read, short_names, varied
from cnnlab.report.units import is_accuracy, number
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.named import handle
from cnnlab.runs.readers import BrokenFileError
from cnnlab.runs.wording import duration, in_words
from cnnlab.terminal import Table
from cnnlab.text import say


def print_table(directories: Sequence[Path]) -> bool:
    """Print the finished runs, best first, and the others; return whether all are done."""
    runs, damaged = [], []
    for path in directories:
        try:
            runs.append(Run(path, RunDirectory(path).read_summary(), []))
        except BrokenFileError as error:
            damaged.append(f"damaged: {path}: {error.reason}")
    done = sorted((run for run in runs if run.done), key=by_score)
    columns = varied(done) + ["seed"] * (len({run.seed for run in done}) > 1)
    order = " or ".join(dict.fromkeys(in_words(run.measure) for run in done))
    table = Table(title=f"{len(done)} of {len(directories)} runs done, best {order} first")
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
            say(": ".join(filter(None, (status, str(run.path), run.summary.get("error", {}).get("message")))))
    if done:
        say(f"Figures of each run: {os.path.relpath(directories[0].parent)}/*HASH/*.png")
    return len(done) == len(directories)


def by_score(run: Run) -> tuple[str, float, str]:
    """A key that sorts finished runs, best first among those with the same metric, as `Sweep.ranking` does."""
    return run.measure, (-1) ** run.higher * run.score, run.path.name


def column(metric: str) -> str:
    """ "val/acc (%)"."""
    return metric + " (%)" * is_accuracy(metric)


def labels(runs: Sequence[Run]) -> list[str]:
    """What distinguishes each run, "optim=adam seed=1"; if nothing does, its directory's name."""
    names = short_names([*varied(runs), "seed"])
    seeds = len({run.seed for run in runs}) > 1
    found = []
    for run in runs:
        words = [f"{short}={run.value(name)}" for name, short in names.items() if name != "seed"]
        words += [f"seed={run.seed}"] * seeds
        found.append(" ".join(words) or run.path.name.removesuffix(f"-{handle(run.path)}"))
    return found


def print_list(folder: Path, by: str | None, num: int) -> None:
    """Print the runs below a folder, newest first, or best first by a metric.

    by: the metric; empty for the one that each run was selected by; None for newest first.

    Raises: UserError if there are no runs, or none with that metric.
    """
    runs, left_out = read(find([folder]))
    if not runs:
        raise no_runs(folder, left_out)
    changed = {run.path: (run.path / "summary.json").stat().st_mtime for run in runs}
    if by is None:
        runs.sort(key=lambda run: -changed[run.path])
    elif not by:
        runs = sorted((run for run in runs if run.done), key=by_score)
    else:
        names = sorted({name for run in runs for name in run.summary.get("metrics", {})})
        if by not in names:
            raise UserError(f"--by {by}: no run has measured it. Use one of {', '.join(names) or 'none so far'}.")
        runs = [run for run in runs if by in run.summary.get("metrics", {})]
        runs.sort(key=lambda run: run.summary["metrics"][by], reverse=is_higher_better(by, runs))
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
    for run, label in zip(shown, labels(shown), strict=True):
        if run.done:
            found = run.summary["metrics"]
        else:
            values = {name: [row[name] for row in run.rows if name in row] for name in selected}
            found = {name: (max if run.higher else min)(known) for name, known in values.items() if known}
        own = [run.summary.get("selected_on"), run.done and run.tested, by]
        table.add_row(
            handle(run.path),
            label,
            state(run),
            str(len(run.rows)),
            *(number(name, found[name]) if name in own and name in found else "" for name in measured),
            age(changed[run.path]),
        )
    table.show()
    for path, reason in left_out:
        say(f"{path}: left out: {reason}")


def is_higher_better(metric: str, runs: Sequence[Run]) -> bool:
    """Whether larger values of a metric on any images, "last/test/mae", are better, as far as the runs know."""
    kind = metric.removeprefix("last/").partition("/")[2]
    modes = {name: mode for run in runs for name, mode in run.summary.get("metric_modes", {}).items()}
    selected = {run.measure.partition("/")[2]: "max" if run.higher else "min" for run in runs if run.done}
    default = "min" if kind.endswith("loss") else "max"
    return (selected | modes).get(kind, default) == "max"


def print_status(folder: Path) -> None:
    """Print how many runs below a folder are queued, running, done or failed, and the progress of unfinished ones.

    Raises: UserError if there are none.
    """
    runs, left_out = read(find([folder]))
    known = {run.path for run in runs}
    queued = [path.parent for path in sorted(folder.rglob(".queued")) if path.parent not in known]
    if not runs and not queued:
        raise no_runs(folder, left_out)
    states = [state(run) for run in runs]
    counts = Counter(states + ["queued"] * len(queued))
    say(f"{folder}: " + ", ".join(f"{num} {name}" for name, num in counts.most_common()))
    table = Table()
    table.add("hash", number=False)
    table.add("settings that differ", 1, number=False, fold=True)
    table.add("status", number=False)
    for rank, name in ((0, "epoch"), (2, "time left"), (3, "last epoch")):
        table.add(name, rank)
    table.add("job", 1)
    table.add("", 4, number=False)
    for run, status, label in zip(runs, states, labels(runs), strict=True):
        if status == "done":
            continue
        directory, max_epochs = RunDirectory(run.path), run.configuration.get("trainer.max_epochs", "")
        epochs = int(max_epochs) if re.fullmatch("[0-9]{1,9}", max_epochs) else 0
        past = [row["epoch_seconds"] for row in run.rows if "epoch_seconds" in row][-5:]
        table.add_row(
            handle(run.path),
            label,
            status,
            f"{len(run.rows)}/{epochs or '?'}",
            duration(median(past) * (epochs - len(run.rows))) if past and epochs else "?",
            f"{age((run.path / 'metrics.csv').stat().st_mtime)} ago" if run.rows else "",
            directory.queued_as,
            f"on {directory.host}" if status == "running" else "",
        )
    for path in queued:
        name = path.name.removesuffix(f"-{handle(path)}")
        since = f"for {age((path / '.queued').stat().st_mtime)}"
        table.add_row(handle(path), name, "queued", "", "", "", RunDirectory(path).queued_as, since)
    if table.row_count:
        table.show()
    for run, status in zip(runs, states, strict=True):
        if status != "done" and (message := run.summary.get("error", {}).get("message")):
            say(f"{handle(run.path)}: {message}")
    for path, reason in left_out:
        say(f"{path}: left out: {reason}")


def no_runs(folder: Path, left_out: Sequence[tuple[Path, str]] = ()) -> UserError:
    """The error for a folder without a readable run."""
    broken = "".join(f" {path} cannot be read: {reason}." for path, reason in left_out[:3])
    return UserError(f"There is no run in {folder}.{broken} Use a folder that contains some, such as outputs/runs.")


def state(run: Run) -> str:
    """The status of a run; "killed" if it is recorded as running, but no process holds it."""
    return "killed" if run.status == "running" and not RunDirectory(run.path).held else run.status


def age(modified: float) -> str:
    """The time since then: "1 min" after 90 seconds. modified: in seconds since the epoch."""
    seconds = time.time() - modified
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
