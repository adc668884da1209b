"""What is said about a finished run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What a failure calls for, by the type of its error or by words in it.
ADVICE = {
    "OutOfMemoryError": "Use a smaller batch_size, or resident=host to keep the images in host memory",
    "AcceleratorError": "CUDA_LAUNCH_BLOCKING=1 shows which operation failed. Further runs get a process of their own",
    "shared memory": "/dev/shm is full: use data.num_workers=0, or give a container more (docker run --shm-size=1g)",
}


def advice(error: BaseException) -> str:
    """What to do about a failure; empty if only its log can tell."""
    said = f"{type(error).__name__} {error}"
    return next((ADVICE[words] for words in ADVICE if words in said), "")


def reason(error: BaseException) -> str:
    """A failure: type and message, of which a traceback of another process is left to the log."""
    said = str(error)
    if "Traceback (most recent call last)" in said:
        said = next((line for line in reversed(said.splitlines()) if re.match(r"\w[\w.]*: ", line)), said)
    return f"{type(error).__name__}: {said}"


def headline(summary: Mapping[str, Any]) -> str:
    """What a finished run has come to: the metric that it was selected by, on the test images if it is known there."""
    name = reported(summary)
    return f"{in_words(name)} {written(name, summary['metrics'][name])}"


def reported(summary: Mapping[str, Any]) -> str:
    """The metric that a finished run is reported by: of the test images, "test/acc", if it was measured there."""
    selected = summary["selected_on"]
    tested = f"test/{selected.partition('/')[2]}"
    return tested if tested in summary["metrics"] else selected


def in_words(metric: str) -> str:
    """The name of a metric: "val/acc" -> "validation accuracy"."""
    return re.sub(r"\bacc$", "accuracy", re.sub("^val/", "validation/", metric).replace("/", " "))


def is_accuracy(metric: str) -> bool:
    return metric.endswith("/acc")


def scale(metric: str) -> float:
    """The factor between a value and the number that is written."""
    return 100.0 if is_accuracy(metric) else 1.0


def number(metric: str, value: float, sign: str = "") -> str:
    """0.8123 -> "81.23" for an accuracy."""
    return f"{scale(metric) * value:{sign}.{2 if is_accuracy(metric) else 4}f}"


def written(metric: str, value: float) -> str:
    """0.8123 -> "81.23%" for an accuracy."""
    return number(metric, value) + "%" * is_accuracy(metric)


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
