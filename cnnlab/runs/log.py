"""What a run prints, on the terminal and in train.log."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cnnlab.text import say

if TYPE_CHECKING:
    from io import TextIOWrapper


log = logging.getLogger("cnnlab")


def of_thread(failure: threading.ExceptHookArgs) -> None:
    """What a thread could not write is one line: TensorBoard's raises it again where it is used."""
    if isinstance(failure.exc_value, OSError):
        log.warning(f"A thread ended: {type(failure.exc_value).__name__}: {failure.exc_value}")
    else:
        threading.__excepthook__(failure)


class Console(logging.Handler):
    """Prints through sys.stdout as it is at that time: a live progress bar stands in for it while it is shown.

    A traceback goes to the file alone.
    """

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


class LogFile(logging.FileHandler):
    """What cannot be written, on a full disk or into a directory that was removed, has been printed."""

    def _open(self) -> TextIOWrapper:
        if Path(self.baseFilename).is_fifo():  # which would wait for somebody who reads it
            raise OSError("train.log is a FIFO")
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, overrides logging.Handler's
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Within the block, messages of the logger `cnnlab` go to the terminal and to train.log in a folder."""
    console = Console()
    console.setFormatter(logging.Formatter("%(message)s"))
    file = LogFile(folder / "train.log", delay=True, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in (console, file):
        log.addHandler(handler)
    before, threading.excepthook = threading.excepthook, of_thread
    try:
        yield
    finally:
        threading.excepthook = before
        for handler in (console, file):
            log.removeHandler(handler)
            handler.close()
