"""Folders as they are typed."""

from __future__ import annotations

import os
from pathlib import Path

from cnnlab.config.options import UserError


def make_folder(path: Path) -> None:
    """A folder of the cache. Raises: UserError if it is not there and cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {path} cannot be made ({error.strerror}). Set cache_dir=FOLDER, or CNNLAB_CACHE."
        ) from error


def expand(path: str | os.PathLike) -> Path:
    """A path as a user types it, made absolute.

    Raises: UserError for an empty one, and for ~ where there is no home.
    """
    if not os.fspath(path):
        raise UserError("cache_dir is empty. Set it to a folder; set CNNLAB_CACHE to one, or not at all.")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"{path} names a home, and there is none ({error}). Set cache_dir=FOLDER or CNNLAB_CACHE to a folder that "
            f"you may write to."
        ) from error
