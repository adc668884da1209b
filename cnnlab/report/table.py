"""The table at the end of a sweep: its runs, best first, out of their summaries. Takes no torch."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cnnlab.records import RunDirectory
from cnnlab.report.runs import settings, varied


def print_table(directories: Sequence[Path]) -> bool:
    """Print the runs, best first, and what failed; return whether all are done."""
    summaries = [RunDirectory(path).summary() | {"path": path} for path in directories]
    done = sorted(
        (summary for summary in summaries if summary.get("status") == "done"),
        key=lambda summary: -summary["metrics"]["test/acc"],
    )
    columns = varied([settings(summary) for summary in done])
    table = Table(title=f"{len(done)} of {len(summaries)} runs done, best test accuracy first", title_justify="left")
    for name in columns:
        table.add_column(name)
    for name in ("test acc", "held-out acc", "best epoch", "seconds", "images/s"):
        table.add_column(name, justify="right")
    table.add_column("run", overflow="fold")
    for summary in done:
        table.add_row(
            *(settings(summary).get(name, "") for name in columns),
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
