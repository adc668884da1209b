"""Lets foreign code read files without running code from them."""

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cnnlab.config.options import UserError

# Python's audit events before it starts a program; that before a pickle looks up a name is pickle.find_class.
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
# The names in a pickled array. torchvision's classes verify the digests of the pickled arrays that they read.
ARRAYS = (
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
)
_guarded = threading.local()


@contextmanager
def only_data(reader: str) -> Iterator[None]:
    """Refuse pickles that would call anything, and starting programs, in a block of this thread.

    reader: what reads the files, for messages. Raises: UserError.
    """
    _add_hook()
    _guarded.reader = reader
    try:
        yield
    finally:
        _guarded.reader = None


@functools.cache
def _add_hook() -> None:
    """Once per process, as a hook cannot be removed."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in ("pickle.find_class", *PROGRAMS) or not (reader := getattr(_guarded, "reader", None)):
        return
    if event in PROGRAMS or arguments not in ARRAYS:
        would = f"start a program ({event})" if event in PROGRAMS else f"call {'.'.join(arguments)} for a pickle"
        raise UserError(
            f"{reader} would {would}, but files may not run code here. Convert the data set, and use data=arrays or "
            f"data=image_folder."
        )
