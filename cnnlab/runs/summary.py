"""summary.json: its schema, and how it is read."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnnlab.runs.readers import MAX_DEPTH, SUMMARY_BYTES, BrokenFileError, read_text

PLAIN = object()  # any JSON value
# The keys of summary.json that are read here. {str: kind} may have any keys; those of {"name": kind} may be missing.
SUMMARY: dict[str, Any] = {
    **dict.fromkeys(("run", "id", "started", "identity", "setting", "code_digest", "data_digest", "selected_on"), str),
    **dict.fromkeys(("seed", "num_weights", "best_epoch", "epochs_done", "peak_memory"), int),
    **dict.fromkeys(("train_seconds", "images_per_second"), float),
    "status": ("running", "done", "failed", "interrupted"),
    "select_mode": ("max", "min"),
    "metric_modes": {str: ("max", "min")},
    "metric_bounds": {str: {"low": float, "high": float}},
    "choices": {str: str},
    "changes": {str: PLAIN},
    "overrides": [str],
    "metrics": {str: float},
    "data": {
        **dict.fromkeys(("num_train", "num_held_out", "num_test", "channels"), int),
        **dict.fromkeys(("fingerprint", "split"), str),
        "task": ("multiclass", "multilabel", "regression"),
        "image_size": [int],
        "input_size": [int],
        "classes": [str],
    },
    "environment": {"device": str, "num_devices": int, "num_threads": int, "precision": str},
    "error": {"type": str, "message": str},
}
NEEDED = ("run", "choices", "changes", "seed", "status")
WHEN_DONE = ("metrics", "selected_on", "select_mode", "best_epoch", "train_seconds", "images_per_second", "data")


def misfits(value: Any, kind: Any, where: str) -> Iterator[str]:
    """What is wrong with a value that was read from JSON: "seed is not a whole number"."""
    if kind is PLAIN:
        if depth_of(value) > MAX_DEPTH:
            yield f"{where} is nested too deeply"
    elif isinstance(kind, tuple):
        if value not in kind:
            yield f"{where} is none of {', '.join(kind)}"
    elif isinstance(kind, list):
        if isinstance(value, list):
            for item in value:
                yield from misfits(item, kind[0], f"an entry of {where}")
        else:
            yield f"{where} is not a list"
    elif isinstance(kind, dict):
        if not isinstance(value, dict):
            yield f"{where} is not a mapping"
        elif str in kind:
            for key, item in value.items():
                yield from misfits(item, kind[str], f"{where}.{key}")
        else:
            for key in kind.keys() & value.keys():
                yield from misfits(value[key], kind[key], f"{where}.{key}".lstrip("."))
    elif kind is str:
        if not isinstance(value, str):
            yield f"{where} is not text"
    elif isinstance(value, bool) or not isinstance(value, int | kind) or (type(value) is int and abs(value) >= 2**63):
        yield f"{where} is not a {'whole ' * (kind is int)}number"


def depth_of(value: Any) -> int:
    """How deeply lists and mappings are nested."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return max((1 + depth_of(item) for item in items), default=0)


def read_summary(path: Path) -> dict[str, Any]:
    """The content of summary.json; empty if there is none.

    Raises: BrokenFileError, also if a key is missing that every run with its status has.
    """
    try:
        text = read_text(path, SUMMARY_BYTES)
    except FileNotFoundError:
        return {}
    if not text.strip():
        raise BrokenFileError(path, "is empty")
    try:
        summary = json.loads(text)
        wrong = next(misfits(summary, SUMMARY, ""), "")
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(path, f"is not JSON ({' '.join(str(error).split())})") from error
    if wrong:
        raise BrokenFileError(path, f"is not the summary of a run: {wrong.strip()}")
    needed = NEEDED + WHEN_DONE * (summary.get("status") == "done")
    if missing := [key for key in needed if key not in summary]:
        raise BrokenFileError(path, f"has no {', '.join(missing)}: another program or an older version wrote it")
    if summary["status"] == "done" and (wrong := _inconsistent(summary)):
        raise BrokenFileError(path, f"contradicts itself: {wrong}")
    return summary


def _inconsistent(summary: Mapping[str, Any]) -> str:
    """What is wrong in the summary of a finished run; empty if nothing is."""
    classes, metrics, name = summary["data"].get("classes", ()), summary["metrics"], summary["selected_on"]
    if len(classes) < (2 if summary["data"].get("task") == "multiclass" else 1):
        return f"it has {len(classes)} classes"
    if not math.isfinite(metrics.get(name, math.nan)):
        return f"{name} was not measured"
    if not all(0 <= value <= 1 for kind, value in metrics.items() if kind.endswith("/acc")):
        return "an accuracy is not between 0 and 1"
    if not all(0 <= summary[name] < math.inf for name in ("train_seconds", "images_per_second")):
        return "a time is not a number from 0"
    return ""
