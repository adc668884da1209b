"""A SHA-256 over the content of files. Does not import NumPy or torch.

Reading large files to see whether they have changed is slow, so the digest is cached under their sizes and times of
modification, which is also how make decides.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from cnnlab.runs.cache import cached
from cnnlab.runs.readers import open_regular

AnyPath = str | os.PathLike[str]
S = TypeVar("S")
T = TypeVar("T")


def content_digest(files: Mapping[str, AnyPath], settings: object, folder: Path) -> str:
    """SHA-256 over the names and contents of files, and over settings.

    files: by name or label; a file that cannot be read counts as unreadable, and reading it later reports the error.
    folder: of the cache.
    """
    state = hashlib.sha256(repr(settings).encode())
    for name, file in files.items():
        state.update(b"\0" + os.fsencode(name) + b"\0" + os.fsencode(file) + b"\0" + (_tried(_status, file) or b""))

    def content() -> bytes:
        whole = hashlib.sha256(repr(settings).encode())
        digests = in_threads(lambda file: _tried(_file_digest, file), list(files.values()))
        for name, digest in zip(files, progress(digests, "reading", len(files)), strict=True):
            whole.update(b"\0" + os.fsencode(name) + b"\0" + (digest or b"unreadable"))
        return whole.hexdigest().encode()

    path = folder / f"{state.hexdigest()[:32]}.digest"
    return cached(path, content, lambda digest, file: file.write(digest), lambda file: file.read(64)).decode()


def _status(file: AnyPath) -> bytes:
    status = os.stat(file)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode()


def _file_digest(file: AnyPath) -> bytes:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _tried(read: Callable[[AnyPath], bytes], file: AnyPath) -> bytes | None:
    try:
        return read(file)
    except (OSError, ValueError):
        return None


def in_threads(function: Callable[[S], T], items: Sequence[S]) -> Iterator[T]:
    """As `map`, in threads, and at most 64 results ahead of the consumer."""
    with ThreadPoolExecutor() as pool:
        for first in range(0, len(items), 64):
            yield from pool.map(function, items[first : first + 64])


def progress(steps: Iterable[T], description: str, total: int) -> Iterable[T]:
    """Show a progress bar on the terminal."""
    console = Console(stderr=True)
    return track(steps, description, total, console=console, transient=True, disable=not console.is_terminal)
