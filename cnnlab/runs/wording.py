"""How metrics, times and failures are written."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What to do about a failure, by the type of its error or by words in its message.
ADVICE = {
    "OutOfMemoryError": "Use a smaller batch_size, or resident=host to keep the images in host memory",
    "AcceleratorError": "CUDA_LAUNCH_BLOCKING=1 shows which operation failed. Further runs get a process of their own",
    "shared memory": "/dev/shm is full: use data.num_workers=0, or give a container more (docker run --shm-size=1g)",
}

CHANGED = "changed since: rerun=true trains it again."
ROUNDING = 1e-12  # a number below this is rounding error


def advice(error: BaseException) -> str:
    """What to do about a failure; empty if only its log helps."""
    text = f"{type(error).__name__} {error}"
    return next((ADVICE[words] for words in ADVICE if words in text), "")


def reason(error: BaseException) -> str:
    """The type and message of an error, without the traceback of another process."""
    text = str(error)
    if "Traceback (most recent call last)" in text:
        text = next((line for line in reversed(text.splitlines()) if re.match(r"\w[\w.]*: ", line)), text)
    return f"{type(error).__name__}: {text}"


def headline(summary: Mapping[str, Any]) -> str:
    """The result of a finished run: the selection metric, on the test images if it was measured there."""
    name = reported(summary)
    return f"{in_words(name)} {written(name, summary['metrics'][name])}"


def reported(summary: Mapping[str, Any]) -> str:
    """The metric that a finished run is reported by: on the test images, "test/acc", if it was measured there."""
    selected = summary["selected_on"]
    tested = f"test/{selected.partition('/')[2]}"
    return tested if tested in summary["metrics"] else selected


def in_words(metric: str) -> str:
    """The name of a metric: "val/acc" -> "validation accuracy"."""
    return re.sub(r"\bacc$", "accuracy", re.sub("^val/", "validation/", metric).replace("/", " "))


def is_accuracy(metric: str) -> bool:
    return metric.endswith("/acc")


def scale(metric: str) -> float:
    """The factor between a value and the number that is shown."""
    return 100.0 if is_accuracy(metric) else 1.0


def number(metric: str, value: float, sign: str = "") -> str:
    """0.8123 -> "81.23" for an accuracy; others have four decimals, or three digits if they are small: "9.00e-06"."""
    if is_accuracy(metric):
        return f"{scale(metric) * value:{sign}.2f}"
    return f"{value:{sign}#.3g}" if ROUNDING < abs(value) < 0.01 else f"{value:{sign}.4f}"


def written(metric: str, value: float) -> str:
    """0.8123 -> "81.23%" for an accuracy."""
    return number(metric, value) + "%" * is_accuracy(metric)


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def line(row: Mapping[str, float], max_epochs: int) -> str:
    """One epoch in one line."""
    parts = [
        f"{part} " + " ".join(f"{name.removeprefix(f'{part}/')} {row[name]:.4f}" for name in names)
        for part in ("train", "val", "test")
        if (names := [name for name in row if name.startswith(f"{part}/")])
    ]
    return "  ".join(
        (f"epoch {row['epoch']:>{len(str(max_epochs))}}/{max_epochs}", *parts, f"{row['epoch_seconds']:.1f} s")
    )


def where(epoch: int, step: int, epoch_done: bool) -> str:
    """The place of a checkpoint in the training."""
    return f"after epoch {epoch}" if epoch_done else f"in epoch {epoch}, step {step}"


def recall(path: Path, summary: dict[str, Any], code: str, data: str) -> str:
    """One line for a run that was finished before; it says whether code or data have changed since."""
    changed = ["source code"] if summary.get("code_digest") != code else []
    changed += ["data"] if summary.get("data_digest") != data else []
    note = f" But the {' and the '.join(changed)} {CHANGED}" if changed else ""
    when = f" ({summary['started'][:16].replace('T', ' ')})" if "started" in summary else ""
    return f"{os.path.relpath(path)}: already finished{when}: {headline(summary)}.{note}"
