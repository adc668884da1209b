"""Folders that the user names."""

import os
from pathlib import Path

from cnnlab.config.options import UserError


def make_folder(path: Path) -> None:
    """Make a folder of the cache, if there is none. Raises: UserError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {path} cannot be created ({error.strerror}). Set cache_dir=FOLDER, or CNNLAB_CACHE."
        ) from error


def expand(path: str | os.PathLike) -> Path:
    """An absolute path, with ~ expanded. Raises: UserError for an empty path, and for ~ without a home directory."""
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{path} is not the path of a folder. Set cache_dir=FOLDER, or CNNLAB_CACHE.")
    if not os.fspath(path):
        raise UserError("cache_dir is empty. Set it to a folder; set CNNLAB_CACHE to one, or not at all.")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"{path} cannot be expanded ({error}). Set cache_dir=FOLDER, or CNNLAB_CACHE.") from error
