"""Files that appear by rename, and locks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock

MISSING = (EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP)  # what file systems answer that cannot lock, or cannot flush a folder


@contextmanager
def atomic_path(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the name `path`, flushed to the disk, if the block succeeds.

    mode: the permissions of the new file, before the umask is applied.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk, where the file system can and we may."""
    with contextlib.suppress(PermissionError):  # a folder that can be written to but not listed
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in MISSING:
                raise
        finally:
            os.close(descriptor)


def lock_file(path: Path) -> BaseFileLock:
    """A lock between processes: by flock, which the operating system drops when its holder dies.

    On file systems without it, as on some network mounts, a file that is there while the lock is held. What a process
    that has died on this machine leaves there is removed by the next one; what is left by another machine is not.
    """
    with tempfile.TemporaryFile(dir=path.parent) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in MISSING:
                raise
            return SoftFileLock(path)
    return FileLock(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file by rename, in UTF-8 whatever the locale; a byte of a file name that is no text is escaped."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def now() -> str:
    """The time of day with its zone, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
