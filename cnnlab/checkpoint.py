"""Checkpoint files: written by rename, with a digest beside them, and loaded without running what they contain."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from cnnlab.records import atomic_path, log, write_text


class CheckpointError(Exception):
    """A checkpoint that is not what was written."""


class CheckpointFiles(CheckpointIO):
    """How Lightning writes and reads checkpoints here; NAME.sha256 has the form that `sha256sum --check` reads."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            torch.save(checkpoint, partial)
            digest = _sha256(partial)
        _write_digest(path, digest)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Tensors and primitives only, whatever is asked for.

        Raises: CheckpointError if the content is not what its digest says.
        """
        path = Path(path)
        if _sha256(path) != read_digest(path):
            raise CheckpointError(f"{path} is not what was written: its SHA-256 differs from {path.name}.sha256")
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint with its digest."""
    with atomic_path(target) as partial:
        shutil.copyfile(source, partial)
    _write_digest(target, read_digest(source))


def resumable(path: Path) -> bool:
    """Whether the checkpoint is there and is what was written; says so if it is damaged."""
    if not path.exists():
        return False
    if _sha256(path) == read_digest(path):
        return True
    log.warning(f"{path} is damaged (its SHA-256 differs from what was written); starting over.")
    return False


def read_digest(path: Path) -> str:
    """The SHA-256 that was written for a checkpoint; empty if there is none."""
    digest = path.with_name(f"{path.name}.sha256")
    return digest.read_text().split()[0] if digest.exists() else ""


def _write_digest(path: Path, digest: str) -> None:
    write_text(path.with_name(f"{path.name}.sha256"), f"{digest}  {path.name}\n")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
