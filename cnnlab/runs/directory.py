"""The files of a run directory: how they are written and read. Does not import torch.

    .hydra/           the composed configuration, as Hydra writes it
    summary.json      what the run is and its results; its `status` is running, done, failed or interrupted
    metrics.csv       one row per epoch
    predictions.npz   for the test images, at the best epoch: predicted labels, their probabilities and the true labels;
                      for multilabel data and regression, outputs and targets
    train.log         what was printed
    source.diff       uncommitted changes to the source files, if there were any
    checkpoints/      last.ckpt, previous.ckpt, best.ckpt, each with its SHA-256
    *.png             figures made from the files above
    .lock, .holder    the process that trains the run; .queued: the Slurm job that was submitted for it
    .rerun            exists until a command with rerun=true is done; .archive.old0: the part that is archived so far

Files appear by rename: a reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cnnlab.config.options import UserError
from cnnlab.runs import predictions, readers
from cnnlab.runs.files import atomic_path, is_alive, is_left, lock_file, now, write_text
from cnnlab.runs.readers import BrokenFileError, Row
from cnnlab.runs.summary import read_summary
from cnnlab.text import say

if TYPE_CHECKING:
    import numpy as np


class CheckpointError(Exception):
    """A checkpoint that is damaged, or does not fit."""


class BusyError(Exception):
    """Another process has the run directory."""


class RunDirectory:
    """The directory of one run, named by its configuration.

    Args:
        path: the directory, which is created when something is written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.lock_descriptors: tuple[int, ...] = ()  # a process that inherits them holds the lock too

    @contextmanager
    def owned(self, on_busy: str = "wait") -> Iterator[None]:
        """Lock the directory: a second process with the same configuration waits here, or fails.

        Raises: BusyError if another process has it and on_busy is "fail".
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock, holder = lock_file(self.path / ".lock"), self.path / ".holder"
        try:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0.1)  # long enough to remove the lock file of a dead process
            if not lock.is_locked:
                who = " ".join(self._note(".holder")) or "another process"
                if on_busy == "fail":
                    raise BusyError(f"{self.path} is in use by {who}")
                say(f"{self.path} is in use by {who}; waiting for it.")
                lock.acquire()
            for partial in self.path.rglob(".*.partial"):  # of a process that was killed while it wrote
                if is_left(partial) and not partial.name.startswith(".queued"):  # Slurm's driver writes on another host
                    partial.unlink(missing_ok=True)
            write_text(holder, f"process {os.getpid()} on {socket.gethostname()} since {now()}")
            if isinstance(lock, FileLock) and (descriptor := lock._context.lock_file_fd) is not None:
                self.lock_descriptors = (os.dup(descriptor),)  # filelock closes its own in a fork
            yield
        finally:
            for descriptor in self.lock_descriptors:
                os.close(descriptor)
            self.lock_descriptors = ()
            if lock.is_locked:
                holder.unlink(missing_ok=True)
            lock.release()

    def _note(self, name: str) -> list[str]:
        """The words of a small file that exists while the run is trained; none if there is no such file."""
        try:
            return readers.read_text(self.path / name).split()
        except (FileNotFoundError, BrokenFileError):
            return []

    @property
    def host(self) -> str:
        """The host of the process that has the directory, as its note says; empty if there is no note."""
        return "".join(self._note(".holder")[3:4])

    @property
    def held(self) -> bool:
        """Whether a process has the directory, as its note says; one on another host is assumed to be alive."""
        match self._note(".holder"):
            case [_, number, _, host, *_] if host != socket.gethostname():
                return True
            case [_, number, *_] if re.fullmatch("[0-9]{1,9}", number):
                return is_alive(int(number))
        return False

    @property
    def queued_as(self) -> str:
        """The last Slurm job that was submitted for the run, "12_3"; empty if there was none."""
        return "".join(self._note(".queued")[:1])

    def note_queued(self, job: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / ".queued", job)

    @property
    def is_lost(self) -> bool:
        """Whether the directory, or the working directory, was removed during the run."""
        try:
            os.getcwd()
        except FileNotFoundError:
            return True
        return not self.path.exists()

    def forget(self) -> None:
        """Remove the directory if no run was recorded in it."""
        if not any((self.path / name).exists() for name in ("summary.json", "summary.json.damaged", "checkpoints")):
            notes = (self.path / name for name in ("train.log", ".lock", ".holder", ".queued", ".rerun"))
            for file in (*(self.path / ".hydra").glob("*.yaml"), *notes):
                file.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                (self.path / ".hydra").rmdir()
            self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Remove the directory and its parent, if they are empty."""
        for folder in (self.path, self.path.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def archive(self) -> Path:
        """Move everything into a directory of another name, so that the run can be trained again.

        The directory gets its final name at the end. If the process is killed before, the run is `half_archived`, and
        the next call completes it.
        """
        self._archive.mkdir(exist_ok=True)
        kept = (".lock", ".holder", ".queued", ".rerun", self._archive.name)
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name != "summary.json"):
            if entry.name not in kept:
                entry.rename(self._archive / entry.name)
        number = 1
        while (archived := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        self._archive.rename(archived)
        return archived

    @property
    def _archive(self) -> Path:
        return self.path / ".archive.old0"

    @property
    def half_archived(self) -> bool:
        return self._archive.exists()

    @property
    def rerun_of(self) -> str:
        """What has started the run again with rerun=true and is not done yet: "run", "sweep", or neither."""
        return "".join(self._note(".rerun")[:1])

    def begin_rerun(self, of: str) -> None:
        """Note that a "run" or a "sweep" has started the run again, so that the same command resumes it when killed."""
        write_text(self.path / ".rerun", of)

    def end_rerun(self) -> None:
        (self.path / ".rerun").unlink(missing_ok=True)

    def summary(self) -> dict[str, Any]:
        """The content of summary.json; empty if there is none, or none that can be read."""
        try:
            return self.read_summary()
        except BrokenFileError:
            return {}

    def read_summary(self) -> dict[str, Any]:
        """As `summary`. Raises: BrokenFileError if there is one that cannot be read."""
        return read_summary(self.path / "summary.json")

    def archive_damaged_summary(self) -> None:
        """Rename a summary that cannot be read, as with damaged checkpoints, and report it."""
        try:
            self.read_summary()
        except BrokenFileError as error:
            archived = self.path / "summary.json.damaged"
            (self.path / "summary.json").replace(archived)
            say(f"{os.path.relpath(self.path)}: {error.reason}; it is kept as {archived.name}.")

    def refuse_other(self, identity: str) -> None:
        """Raises: UserError if the directory contains a run whose configuration has another identity."""
        summary = self.summary()
        name, found = summary.get("run", self.path.name), summary.get("identity", identity)
        if (name, found) != (self.path.name, identity):
            raise UserError(
                f"{self.path} contains another run ({name}, whose configuration has the hash {found[:8]}, not "
                f"{identity[:8]}). It is left untouched. Use another output_dir or name, or move that run away."
            )

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "summary.json", json.dumps(summary, indent=1) + "\n")

    def config(self) -> dict[str, Any]:
        """The configuration in plain containers, unresolved. Raises: FileNotFoundError, BrokenFileError."""
        return readers.read_config(self.path / ".hydra" / "config.yaml")

    def write_hydra(self, files: Mapping[str, str]) -> None:
        """Write the files of .hydra/. Only config.yaml, which is resolved, is ever read; the others are for people."""
        folder = self.path / ".hydra"
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            write_text(folder / name, text)

    def metrics(self) -> list[Row]:
        """The rows of metrics.csv, as `readers.read_metrics`. Raises: FileNotFoundError, BrokenFileError."""
        return readers.read_metrics(self.path / "metrics.csv")

    def rows(self) -> list[Row]:
        """As `metrics`; empty if metrics.csv does not exist or cannot be read."""
        try:
            return self.metrics()
        except (FileNotFoundError, BrokenFileError):
            return []

    def write_metrics(self, rows: Sequence[Row]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with (
            atomic_path(self.path / "metrics.csv") as partial,
            open(partial, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def predictions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `predictions.read`: predicted labels, true labels, and the predictions' probability."""
        classes = self.summary().get("data", {}).get("classes")
        return predictions.read(self.path / "predictions.npz", len(classes) if classes else None)

    def confusion(self, num_classes: int) -> np.ndarray:
        """Counts of the test images by true class (rows) and predicted class: (K, K) int64."""
        import numpy as np

        path = self.path / "predictions.npz"
        if num_classes > (most := predictions.MAX_CLASSES):
            raise BrokenFileError(path, f"has {num_classes:,} classes, and a confusion matrix up to {most:,}")
        predicted, labels, _ = (values.astype(np.int64) for values in predictions.read(path, num_classes))
        return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, -1)

    def write_predictions(self, targets: np.ndarray, *answers: np.ndarray) -> None:
        predictions.write(self.path / "predictions.npz", targets, *answers)
