"""Reading the files of a run directory, whoever wrote them. Does not import torch.

A run directory may come from a colleague, from a crash or from an attacker. What is in it is data: the readers look at
regular files only, bound sizes before they allocate memory, and check types and ranges. Each one returns what it
promises or raises BrokenFileError. Checkpoints, which need torch, are read in cnnlab/checkpoint.py.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from errno import EINVAL
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from cnnlab.config import UserError

if TYPE_CHECKING:
    import numpy as np

MEGABYTE = 2**20
SUMMARY_BYTES = METRICS_BYTES = PREDICTIONS_BYTES = 64 * MEGABYTE
CONFIG_BYTES = MEGABYTE
CONFIG_EVENTS = 20_000  # of YAML's parser: every key and every value is one
MAX_DEPTH = 32
MAX_IMAGES = 10_000_000  # in predictions.npz

Row = dict[str, float]


class BrokenFileError(UserError):
    """A file that is not what was written, or never was ours; `reason` says why, without the folder."""

    def __init__(self, path: Path, what: str):
        self.reason = f"{path.name} {what}"
        super().__init__(f"{path} {what}. Use another run, or train this one anew with rerun=true.")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading. Raises: OSError, also for a FIFO, a device or a folder, which might never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(EINVAL, "not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file. Raises: FileNotFoundError; BrokenFileError, also above `limit` bytes."""
    try:
        with open_regular(path) as file:
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BrokenFileError(path, f"cannot be read ({error.strerror})") from error
    if len(content) > limit:
        raise BrokenFileError(path, f"has more than {limit:,} bytes")
    return content


def read_text(path: Path, limit: int = 4096) -> str:
    """As `read_bytes`, decoded from UTF-8."""
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise BrokenFileError(path, "is not text in UTF-8") from error


# -------------------------------------------------------------------------------------------------------- summary.json

PLAIN = object()  # stands for whatever JSON can say

# What summary.json holds, as far as anything here reads it: {str: kind} has any keys, {"name": kind} these, if present.
SUMMARY: dict[str, Any] = {
    "run": str,
    "status": ("running", "done", "failed", "interrupted"),
    "choices": {str: str},
    "changes": {str: PLAIN},
    "overrides": [str],
    "seed": int,
    "started": str,
    "identity": str,
    "setting": str,
    "code_digest": str,
    "data_digest": str,
    "num_weights": int,
    "data": {
        "num_train": int,
        "num_held_out": int,
        "num_test": int,
        "task": ("multiclass", "multilabel", "regression"),
        "channels": int,
        "image_size": [int],
        "input_size": [int],
        "classes": [str],
        "fingerprint": str,
        "split": str,
    },
    "environment": {"device": str, "num_devices": int, "num_threads": int, "precision": str},
    "selected_on": str,
    "select_mode": ("max", "min"),
    "best_epoch": int,
    "epochs_done": int,
    "metrics": {str: float},
    "train_seconds": float,
    "images_per_second": float,
    "peak_memory": int,
    "error": {"type": str, "message": str},
}
NEEDED = ("run", "choices", "changes", "seed", "status")
WHEN_DONE = ("metrics", "selected_on", "select_mode", "best_epoch", "train_seconds", "images_per_second", "data")


def misfits(value: Any, kind: Any, where: str) -> Iterator[str]:
    """What is wrong with a value that was read from JSON, in words: "summary.json: seed is not a whole number"."""
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
    elif (
        isinstance(value, bool) or not isinstance(value, int | kind) or (isinstance(value, int) and abs(value) >= 2**63)
    ):
        yield f"{where} is not a {'whole ' * (kind is int)}number"


def depth_of(value: Any) -> int:
    """How deeply lists and mappings are nested."""
    level, depth = [value], 0
    while level := [
        item
        for node in level
        if isinstance(node, dict | list)
        for item in (node.values() if isinstance(node, dict) else node)
    ]:
        depth += 1
    return depth


def read_summary(path: Path) -> dict[str, Any]:
    """What summary.json says; empty if there is none.

    Raises: BrokenFileError, also if it lacks what every run of its status has.
    """
    try:
        text = read_text(path, SUMMARY_BYTES)
    except FileNotFoundError:
        return {}
    if not text.strip():
        raise BrokenFileError(path, "is empty")
    try:
        summary = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(path, f"is not JSON ({' '.join(str(error).split())})") from error
    if wrong := next(misfits(summary, SUMMARY, ""), ""):
        raise BrokenFileError(path, f"is not a run's: {wrong or 'it'}" if summary else "is not a run's")
    needed = NEEDED + WHEN_DONE * (summary.get("status") == "done")
    if missing := [key for key in needed if key not in summary]:
        raise BrokenFileError(path, f"has no {', '.join(missing)}: it is another program's or an older version's")
    if summary["status"] == "done" and (wrong := _inconsistent(summary)):
        raise BrokenFileError(path, f"contradicts itself: {wrong}")
    return summary


def _inconsistent(summary: Mapping[str, Any]) -> str:
    """What cannot be in the summary of a finished run; empty if nothing is wrong."""
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


# --------------------------------------------------------------------------------------------------------- config.yaml


def read_config(path: Path) -> dict[str, Any]:
    """What .hydra/config.yaml says: mappings with text as keys, lists, text, numbers, booleans and null.

    Nothing is resolved: an interpolation is text. Aliases and tags, which OmegaConf never writes, are refused: with
    them, a small file can be a large tree.

    Raises: FileNotFoundError, BrokenFileError.
    """
    text = read_text(path, CONFIG_BYTES)
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(text, yaml.CSafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if number > CONFIG_EVENTS or depth > MAX_DEPTH:
                raise BrokenFileError(path, "is larger than any configuration")
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise BrokenFileError(path, "has aliases or tags, and a configuration is plain YAML")
        content = yaml.load(text, yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise BrokenFileError(path, f"is not YAML ({' '.join(str(error).split())})") from error
    if wrong := next(_not_plain(content), ""):
        raise BrokenFileError(path, f"is not a plain configuration: {wrong}")
    if not isinstance(content, dict):
        raise BrokenFileError(path, "is not a configuration")
    return content


def _not_plain(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str):
                yield f"the key {key} is not text"
            yield from _not_plain(value)
    elif isinstance(node, list):
        for value in node:
            yield from _not_plain(value)
    elif not (node is None or isinstance(node, str | bool | float) or (isinstance(node, int) and abs(node) < 2**63)):
        yield f"{type(node).__name__} is not a type for a value"


# --------------------------------------------------------------------------------------------------------- metrics.csv


def read_metrics(path: Path) -> list[Row]:
    """The rows of metrics.csv, one for each epoch from 1; a value that was not measured is left out of its row.

    Raises: FileNotFoundError, BrokenFileError.
    """
    rows: list[Row] = []
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(read_text(path, METRICS_BYTES), newline="")), 1):
            rows.append({key: float(value) for key, value in row.items() if value})
            if rows[-1].get("epoch") != number or not all(map(math.isfinite, rows[-1].values())):
                raise ValueError(f"row {number} is not epoch {number} in finite numbers")
    except (csv.Error, ValueError, TypeError) as error:
        raise BrokenFileError(path, f"is not a table of numbers ({' '.join(str(error).split())})") from error
    return rows


# ----------------------------------------------------------------------------------------------------- predictions.npz


def read_predictions(path: Path, num_classes: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For the test images, at the best epoch: predicted labels, true labels, the predictions' probability; (N,) each.

    Raises: FileNotFoundError; BrokenFileError, also for labels that are none of `num_classes`, if that is known.
    """
    content = read_bytes(path, PREDICTIONS_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            predicted, labels, confidence = (
                _array(archive, f"{name}.npy", kind)
                for name, kind in (("predicted", "u"), ("labels", "u"), ("confidence", "f"))
            )
        if not len(predicted) == len(labels) == len(confidence):
            raise ValueError("its arrays differ in length")
        if num_classes is not None and len(labels) and max(int(predicted.max()), int(labels.max())) >= num_classes:
            raise ValueError(f"there are {num_classes} classes, and labels beyond them")
        if not ((confidence >= 0) & (confidence <= 1)).all():
            raise ValueError("a probability is not between 0 and 1")
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        KeyError,
        NotImplementedError,
        EOFError,
        RuntimeError,
    ) as error:
        raise BrokenFileError(path, f"is not a file of predictions ({' '.join(str(error).split())})") from error
    return predicted, labels, confidence


def _array(archive: zipfile.ZipFile, name: str, kind: str) -> np.ndarray:
    """One array, read after its size was seen to be what its header says. kind: of its type, as numpy names it."""
    import numpy as np

    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in another way")
    with archive.open(member) as file:
        np.lib.format.read_magic(cast(Any, file))
        shape, _, dtype = np.lib.format.read_array_header_1_0(cast(Any, file))
        if len(shape) != 1 or not 0 <= shape[0] <= MAX_IMAGES or dtype.kind != kind:
            raise ValueError(f"{name} is not a list of numbers")
        values = file.read(shape[0] * dtype.itemsize)
        if len(values) != shape[0] * dtype.itemsize:
            raise ValueError(f"{name} is cut off")
    return np.frombuffer(values, dtype).copy()  # which can be written to, as torch expects
