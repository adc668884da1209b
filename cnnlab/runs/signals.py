"""Signals that ask a run to stop: while it trains, a handler only notes the first one, and the loop saves and stops.

Ctrl-C (SIGINT), SIGTERM, SIGHUP (the terminal was closed) and SIGUSR1/2, which clusters send ahead of a time limit. One
that is ignored stays ignored: nohup, disown, and `&` in a script. Before there is anything to save, the first one ends
the run; while it saves, a second one does, later than a second after the first; one more ends the process.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import Any

from cnnlab.runs.readers import Row

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

SAME_REQUEST = 1.0  # seconds; torchrun and Slurm pass on what the terminal has sent to all processes already

_received = 0
_received_at = 0.0


class Interrupted(BaseException):
    """The run stops because of a signal. Like KeyboardInterrupt it is no error.

    Args:
        number: of the signal.
        saved: whether the run has been saved; otherwise it goes on from its last checkpoint.
    """

    def __init__(self, number: int, saved: bool = True):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.saved = number, saved

    @property
    def exit_status(self) -> int:
        """130 for Ctrl-C, 143 for the others: what was asked for is done, and typing the command again goes on."""
        return 130 if self.number == signal.SIGINT else 143


class Pruned(Interrupted):
    """The run has been saved and stops, because the search that started it gives it up."""

    def __init__(self) -> None:
        BaseException.__init__(self, "given up: half of the search's finished trials were better by this epoch")

    exit_status = 0


_hopeless: Callable[[Sequence[Row]], bool] | None = None


def watch(judge: Callable[[Sequence[Row]], bool] | None) -> None:
    """Let a search judge the rows of the runs in this process; None: no longer."""
    global _hopeless
    _hopeless = judge


def hopeless(rows: Sequence[Row]) -> bool:
    """Whether a run with these rows should be given up, in the eyes of the search that has started it."""
    return _hopeless is not None and _hopeless(rows)


def received() -> int:
    """The number of the signal that asked to stop, 0 if none did."""
    return _received


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block the signals are handled so, but for those that are ignored."""
    global _received
    _received = 0
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield
        return
    before = {number: found for number in STOPPING if (found := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)


def noted() -> AbstractContextManager[None]:
    """Within the block the first signal is noted, and `received` tells it; a second one raises Interrupted."""
    return _handled(_note)


def raised() -> AbstractContextManager[None]:
    """Within the block the first signal raises Interrupted; a second one ends the process."""
    return _handled(_raise)


def passed_on(processes: Callable[[], Iterable[subprocess.Popen[Any]]]) -> AbstractContextManager[None]:
    """Within the block signals go to these processes, and `received` tells the last one."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        global _received
        _received = number
        for process in processes():
            process.send_signal(number)

    return _handled(pass_on)


def _is_first(number: int) -> bool:
    global _received, _received_at
    if _received:
        return False
    _received, _received_at = number, time.monotonic()
    return True


def _is_repeated() -> bool:
    return time.monotonic() - _received_at > SAME_REQUEST


def _note(number: int, frame: FrameType | None) -> None:
    if _is_first(number):
        with suppress(OSError):  # the terminal is gone
            os.write(2, f"\n{signal.Signals(number).name}: saving and stopping; once more ends at once.\n".encode())
    elif _is_repeated():
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(number, saved=False)


def _raise(number: int, frame: FrameType | None) -> None:
    if _is_first(number):
        raise Interrupted(number, saved=False)
    if _is_repeated():
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
