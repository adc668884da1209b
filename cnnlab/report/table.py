"""The table at the end of a sweep: its runs, best first, out of their summaries. Takes no torch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cnnlab.records import RunDirectory


def print_table(directories: Sequence[Path]) -> bool:
    """Print the runs, best first, and what failed; return whether all are done."""
    summaries = [RunDirectory(path).summary() | {"path": path} for path in directories]
    done = sorted(
        (summary for summary in summaries if summary.get("status") == "done"),
        key=lambda summary: -summary["metrics"]["test/acc"],
    )
    varied = varied_settings(done)
    table = Table(title=f"{len(done)} of {len(summaries)} runs done, best test accuracy first", title_justify="left")
    for name in varied:
        table.add_column(name)
    for name in ("test acc", "held-out acc", "best epoch", "seconds", "images/s"):
        table.add_column(name, justify="right")
    table.add_column("run", overflow="fold")
    for summary in done:
        table.add_row(
            *(settings(summary).get(name, "") for name in varied),
            f"{summary['metrics']['test/acc']:.4f}",
            f"{summary['metrics'][summary['selected_on']]:.4f}",
            str(summary["best_epoch"]),
            f"{summary['train_seconds']:.0f}",
            f"{summary['images_per_second']:,.0f}",
            summary["run"],
        )
    console = Console(width=None if os.isatty(1) else 160)
    if done:
        console.print(table)
    for summary in summaries:
        if summary.get("status") != "done":
            error = summary.get("error", {})
            print(f"{summary.get('status', 'not started')}: {summary['path']}: {error.get('message', '')}")
    if done:
        print(
            f"Pictures of each run: {os.path.relpath(directories[0].parent)}/*/curves.png, confusion.png, samples.png"
        )
    return len(done) == len(summaries)


def settings(summary: dict[str, Any]) -> dict[str, str]:
    """Chosen options and changed knobs of a run, as text."""
    return summary["choices"] | {path: str(value) for path, value in summary["changes"].items()}


def varied_settings(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """The settings in which the runs differ."""
    all_settings = [settings(summary) for summary in summaries]
    names = dict.fromkeys(name for one in all_settings for name in one)
    return [name for name in names if len({one.get(name) for one in all_settings}) > 1]
