"""Files that are made once and read by every later run: decoded images, fitted statistics. Does not import torch.

A cache is a convenience: what cannot be kept is made and used all the same. An entry is one file, a line with the
SHA-256 of all that follows and of the file's name, then the content. It is used only if it has that digest, belongs to
this user or to root, and can be written by nobody else. Any other one is reported, set aside and made anew.

Network file systems may give our files another owner (root_squash) or permissions of their own (CIFS). So an owner is
also ours if a file that we write there has it; and where others could write whatever we keep, nothing is kept.
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
    """An entry that is not to be used."""


def cached(
    path: Path, make: Callable[[], T], write: Callable[[T, BinaryIO], object], read: Callable[[BinaryIO], T]
) -> T:
    """What the entry `path` holds; made by one process, however many ask for it, if there is no such entry.

    write, read: put the content into a file, and take it out again. `read` may raise ValueError for what it cannot use.
    """
    if _is_of_another_user(path):
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
            log.warning(f"{path} {error}. It is not used but made anew, and kept as {path.name}.damaged if possible.")
            with contextlib.suppress(OSError):
                path.replace(path.with_name(f"{path.name}.damaged"))
        value = make()
        if writable:
            _keep(path, value, write)
            with contextlib.suppress(
                FileNotFoundError, CacheError
            ):  # as all others have it: mapped, if `read` does that
                return _load(path, read)
        return value


def _is_of_another_user(path: Path) -> bool:
    try:
        return not _is_ours(path.stat(), path.parent)
    except OSError:
        return False


def _is_ours(status: os.stat_result, folder: Path) -> bool:
    return status.st_uid in (os.geteuid(), 0, getattr(_of_a_new_file(folder), "st_uid", 0))


def _of_a_new_file(folder: Path) -> os.stat_result | None:
    """The owner and the permissions that a file has there which only we may read and write; None if we cannot write."""
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
    """Write an entry, in whose place there is none; the caller holds its lock."""
    made = _of_a_new_file(path.parent)
    if made and made.st_mode & 0o022:
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
    """The first line of an entry, from its content: what is left of the file."""
    prefix = os.fsencode(name) + b"\0"
    return hashlib.file_digest(file, lambda: hashlib.sha256(prefix)).hexdigest().encode() + b"\n"
