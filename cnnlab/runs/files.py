"""Files that appear by rename, and locks."""

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

UNSUPPORTED = (EINVAL, ENOLCK, ENOSYS, EOPNOTSUPP)  # errors of file systems that cannot lock, or flush a folder


@contextmanager
def atomic_path(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A path to write to; the file is flushed to the disk and renamed to `path` if the block succeeds.

    mode: the permissions of the new file, before the umask is applied.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def is_left(partial: Path) -> bool:
    """Whether the process that wrote a partial file is gone from this machine."""
    number = partial.stem.rpartition(".")[2].partition("-")[0]
    return not is_alive(int(number) if number.isdecimal() else 0)


def is_alive(process: int) -> bool:
    """Whether a process of this machine exists, also if it is another user's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return process > 0


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk, where the file system can and we may."""
    with contextlib.suppress(PermissionError):  # a folder that can be written to but not listed
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)


def lock_file(path: Path) -> BaseFileLock:
    """A lock between processes, by flock, which the operating system releases when its holder dies.

    On file systems without flock, as on some network mounts, a file stands for the lock. A file left by a process that
    died on this machine is removed by the next one; a file left by another machine is not.
    """
    with tempfile.TemporaryFile(dir=path.parent) as probe:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            return SoftFileLock(path)
    return FileLock(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file by rename, in UTF-8 whatever the locale; bytes of file names that are not text are escaped."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def now() -> str:
    """The current time with its zone, in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
