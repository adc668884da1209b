"""What is said about a finished run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def headline(summary: Mapping[str, Any]) -> str:
    """What a finished run has come to: the metric that it was selected by, on the test images if it is known there."""
    return f"{in_words(reported(summary))} {summary['metrics'][reported(summary)]:.4f}"


def reported(summary: Mapping[str, Any]) -> str:
    """The metric that a finished run is reported by: of the test images, "test/acc", if it was measured there."""
    selected = summary["selected_on"]
    tested = f"test/{selected.partition('/')[2]}"
    return tested if tested in summary["metrics"] else selected


def in_words(metric: str) -> str:
    """The name of a metric: "val/acc" -> "validation accuracy"."""
    return re.sub(r"\bacc$", "accuracy", re.sub("^val/", "validation/", metric).replace("/", " "))


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def recall(path: Path, summary: dict[str, Any], code: str, data: str) -> str:
    """One line for a run that was finished before; it says whether code or data have changed since."""
    changed = [
        name
        for name, then, today in (
            ("source code", summary.get("code_digest"), code),
            ("data", summary.get("data_digest"), data),
        )
        if then != today
    ]
    note = f" But the {' and the '.join(changed)} changed since: rerun=true trains it anew." if changed else ""
    when = f"; started {summary['started']}" if "started" in summary else ""
    return f"{os.path.relpath(path)}: done before, {headline(summary)}{when}.{note}"
