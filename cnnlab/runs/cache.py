"""Files that are written once and read by every later run: decoded images, fitted statistics. Does not import torch.

A cache is a convenience: what cannot be kept is computed and used all the same. An entry is one file: a line with the
SHA-256 of the file's name and of all that follows, then the content. It is used only if the digest is right, it belongs
to this user or to root, and nobody else can write to it. Otherwise it is reported, renamed and made again.

Network file systems may give our files another owner (root_squash) or other permissions (CIFS). So an owner counts as
ours if a file that we create there has it too, and where others could write to whatever we keep, nothing is kept.
"""

import contextlib
import glob
import hashlib
import os
import tempfile
from collections.abc import Callable
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeVar

from cnnlab.runs.files import atomic_path, lock_file
from cnnlab.runs.log import log
from cnnlab.runs.readers import open_regular

T = TypeVar("T")

HEAD = 65  # bytes: a SHA-256 in hexadecimal digits, and the end of the line


class CacheError(Exception):
    """An entry that must not be used."""


def cached(
    path: Path, make: Callable[[], T], write: Callable[[T, BinaryIO], object], read: Callable[[BinaryIO], T]
) -> T:
    """The content of the entry `path`; if there is none, one process makes it, however many ask for it.

    write, read: convert the content to a file and back. `read` may raise ValueError for a file that it cannot use.
    """
    with contextlib.suppress(OSError):
        if not _is_ours(path.stat(), path.parent):
            path = path.with_name(f"{os.geteuid()}-{path.name}")
    with contextlib.suppress(FileNotFoundError, CacheError):
        return _load(path, read)
    with contextlib.ExitStack() as stack:
        writable = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock_file(Path(f"{path}.lock")))
        except OSError as error:
            log.warning(f"{path.parent} cannot be written to ({error.strerror}), so nothing is kept there.")
            writable = False
        try:
            return _load(path, read)
        except FileNotFoundError:
            pass
        except CacheError as error:
            log.warning(
                f"{path} {error}. It is made again, and the old file is kept as {path.name}.damaged if possible."
            )
            with contextlib.suppress(OSError):
                path.replace(path.with_name(f"{path.name}.damaged"))
        value = make()
        if writable:
            _keep(path, value, write)
            with contextlib.suppress(FileNotFoundError, CacheError):  # as others get it: memory-mapped, for example
                return _load(path, read)
        return value


def _is_ours(status: os.stat_result, folder: Path) -> bool:
    return status.st_uid in (os.geteuid(), 0, getattr(_status_of_new_file(folder), "st_uid", 0))


def _status_of_new_file(folder: Path) -> os.stat_result | None:
    """The owner and permissions that a private new file gets in this folder; None if we cannot write there."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".owner.") as file:
            return os.stat(file.name)
    except OSError:
        return None


def _load(path: Path, read: Callable[[BinaryIO], T]) -> T:
    """Raises: FileNotFoundError; CacheError for an entry that cannot be trusted."""
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if not _is_ours(status, path.parent):
                raise CacheError("belongs to another user")
            if status.st_mode & 0o022:
                raise CacheError("can be written by other users")
            if file.read(HEAD) != _digest(file, path.name):
                raise CacheError("is not what was written: its SHA-256 differs")
            file.seek(HEAD)
            return read(file)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CacheError(f"cannot be read ({error})") from error


def _keep(path: Path, value: T, write: Callable[[T, BinaryIO], object]) -> None:
    """Write an entry that does not exist yet; the caller holds its lock."""
    new = _status_of_new_file(path.parent)
    if new and new.st_mode & 0o022:
        log.warning(f"Other users can write every file in {path.parent}, so nothing is kept there. Set cache_dir.")
        return
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):  # of a process that was killed
        partial.unlink(missing_ok=True)
    try:
        with atomic_path(path, mode=0o644) as partial:
            with open(partial, "wb") as file:
                file.write(b" " * HEAD)
                write(value, file)
            with open(partial, "r+b") as file:
                file.seek(HEAD)
                digest = _digest(file, path.name)
                file.seek(0)
                file.write(digest)
    except OSError as error:
        log.warning(f"{path} cannot be written ({error.strerror}). It is used without being kept.")


def _digest(file: BufferedReader | BufferedRandom, name: str) -> bytes:
    """The first line of an entry, computed from the rest of the file."""
    prefix = os.fsencode(name) + b"\0"
    return hashlib.file_digest(file, lambda: hashlib.sha256(prefix)).hexdigest().encode() + b"\n"
