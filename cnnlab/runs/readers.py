"""Reads the files of a run directory, whoever wrote them. Does not import torch.

A run directory may come from a colleague, from a crash or from an attacker. Its content is data: the readers open
regular files only, bound sizes before they allocate memory, and check types and ranges. Each one returns what it
promises or raises BrokenFileError. Checkpoints, which need torch, are read in cnnlab/train/checkpoint.py.
"""

import csv
import io
import math
import os
import stat
from collections.abc import Iterator
from errno import EINVAL
from pathlib import Path
from typing import Any

import yaml

from cnnlab.config.options import UserError

MEGABYTE = 2**20
SUMMARY_BYTES = METRICS_BYTES = 16 * MEGABYTE
CONFIG_BYTES = MEGABYTE
CONFIG_EVENTS = 20_000  # of the YAML parser: one for every key and value
MAX_DEPTH = 32
Row = dict[str, float]


class BrokenFileError(UserError):
    """A file that is damaged, or was written by something else; `reason` says why, without the folder."""

    def __init__(self, path: Path, what: str):
        self.reason = f"{path.name} {what}"
        super().__init__(f"{path} {what}. Use another run, or train this one again with rerun=true.")


def open_regular(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a file for reading. Raises: OSError, also for a FIFO or a device, which might never end, or a folder."""
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


def read_config(path: Path) -> dict[str, Any]:
    """The content of .hydra/config.yaml: mappings with text as keys, lists, text, numbers, booleans and null.

    Nothing is resolved: an interpolation is text. Aliases and tags, which OmegaConf never writes, are refused: with
    them, a small file can expand to a large tree.

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


def read_metrics(path: Path) -> list[Row]:
    """The rows of metrics.csv, one per epoch from 1; a value that was not measured is missing from its row.

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
