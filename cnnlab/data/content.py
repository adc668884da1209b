"""What lies in files, as one SHA-256. Does not import NumPy or torch.

Reading large files to see whether they have changed takes long, so sizes and times of change are compared first, as
make does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cnnlab.data.decoded import in_threads, progress
from cnnlab.runs.cache import cached
from cnnlab.runs.readers import open_regular


def content_digest(files: Mapping[str, str | os.PathLike[str]], settings: object, folder: Path) -> str:
    """SHA-256 over what files hold, what they stand for, and settings.

    files: by what they stand for, their name or label; one that cannot be read counts as such. folder: of the cache.
    """
    state = hashlib.sha256(repr(settings).encode())
    for name, file in files.items():
        state.update(b"\0" + os.fsencode(name) + b"\0" + os.fsencode(file) + b"\0" + (_tried(changed, file) or b""))

    def content() -> bytes:
        whole = hashlib.sha256(repr(settings).encode())
        contents = in_threads(lambda file: _tried(file_digest, file), list(files.values()))
        for name, one in zip(files, progress(contents, "reading", len(files)), strict=True):
            whole.update(b"\0" + os.fsencode(name) + b"\0" + (one or b"unreadable"))
        return whole.hexdigest().encode()

    path = folder / f"{state.hexdigest()[:32]}.digest"
    return cached(path, content, lambda digest, file: file.write(digest), lambda file: file.read(64)).decode()


def changed(file: str | os.PathLike[str]) -> bytes:
    """What differs when a file has changed."""
    status = os.stat(file)
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}".encode()


def file_digest(file: str | os.PathLike[str]) -> bytes:
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _tried(read: Callable[[str | os.PathLike[str]], bytes], file: str | os.PathLike[str]) -> bytes | None:
    """What is read from a file; None for one that cannot be opened, about which its reader has its say."""
    try:
        return read(file)
    except (OSError, ValueError):
        return None
