"""Code of others reads files, and nothing in these files is run."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cnnlab.config.options import UserError

# What Python tells an audit hook before it happens: a pickle names something to call, a program is started.
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
# What arrays in a pickle are made of. Of classes in torchvision, those that unpickle arrays verify the file before.
ARRAYS = (
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
)
_guarded = threading.local()


@contextmanager
def only_data(what: str) -> Iterator[None]:
    """Within the block, a pickle that would call anything, and a program that would be started, are refused.

    For this thread, until the block ends. what: reads files, in words. Raises: UserError.
    """
    _hook()
    _guarded.what = what
    try:
        yield
    finally:
        _guarded.what = None


@functools.cache
def _hook() -> None:
    """Once for the process: a hook cannot be taken back."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("pickle.find_class", *PROGRAMS) or not (what := getattr(_guarded, "what", None)):
        return
    if event in PROGRAMS or arguments not in ARRAYS:
        would = f"start a program ({event})" if event in PROGRAMS else f"call {'.'.join(arguments)} for a pickle"
        raise UserError(
            f"{what} would {would}, and files of others are only read here. Convert the data set, and use data=arrays "
            f"or data=image_folder."
        )
