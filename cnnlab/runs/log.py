"""What a run prints, to the terminal and to train.log."""

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


def log_thread_error(failure: threading.ExceptHookArgs) -> None:
    """Log an OSError of a thread in one line: TensorBoard's writer raises it again where it is used."""
    if isinstance(failure.exc_value, OSError):
        log.warning(f"A thread ended: {type(failure.exc_value).__name__}: {failure.exc_value}")
    else:
        threading.__excepthook__(failure)


class Console(logging.Handler):
    """Prints to the current sys.stdout, which a live progress bar replaces; tracebacks go to the file only."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


class LogFile(logging.FileHandler):
    """Drops what cannot be written, on a full disk or in a removed directory: it has been printed."""

    def _open(self) -> TextIOWrapper:
        if Path(self.baseFilename).is_fifo():  # opening it would wait for a reader
            raise OSError("train.log is a FIFO")
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the name in logging.Handler
        """Called by `emit` of the base class, which catches what a write raises and would print its traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """Within the block, messages of the logger `cnnlab` go to the terminal and to train.log in a folder."""
    console = Console()
    file = LogFile(folder / "train.log", delay=True, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in (console, file):
        log.addHandler(handler)
    before, threading.excepthook = threading.excepthook, log_thread_error
    try:
        yield
    finally:
        threading.excepthook = before
        for handler in (console, file):
            log.removeHandler(handler)
            handler.close()
