"""Signals that ask a run to stop: during training, a handler only notes the first one, and the loop saves and stops.

They are Ctrl-C (SIGINT), SIGTERM, SIGHUP (the terminal was closed) and SIGUSR1/2, which clusters send before a time
limit. An ignored signal stays ignored: nohup, disown, and `&` in a script. Before there is anything to save, the first
signal ends the run. While it saves, a second one does, if it comes more than a second later; one more ends the process.
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

SAME_REQUEST = 1.0  # seconds: torchrun and Slurm forward a signal that the terminal has already sent to all processes

_received = 0
_received_at = 0.0


class Interrupted(BaseException):
    """The run stops because of a signal. Like KeyboardInterrupt, it is not an error.

    Args:
        number: of the signal.
        saved: whether the run has been saved; otherwise it resumes from its last checkpoint.
    """

    def __init__(self, number: int, saved: bool = True):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.saved = number, saved

    @property
    def exit_status(self) -> int:
        """130 for Ctrl-C, 143 for the others: the run was stopped as requested, and the same command resumes it."""
        return 130 if self.number == signal.SIGINT else 143


class Pruned(Interrupted):
    """The run has been saved and stops, because the search that started it prunes it."""

    def __init__(self) -> None:
        BaseException.__init__(self, "pruned: half of the search's finished trials were better by this epoch")

    exit_status = 0


_judge: Callable[[Sequence[Row]], bool] | None = None


def watch(judge: Callable[[Sequence[Row]], bool] | None) -> None:
    """Let a search judge the runs in this process by their rows; None: no longer."""
    global _judge
    _judge = judge


def should_prune(rows: Sequence[Row]) -> bool:
    """Whether the search that has started a run with these rows prunes it."""
    return _judge is not None and _judge(rows)


def received() -> int:
    """The number of the signal that was received, or 0."""
    return _received


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, this handles the signals, except ignored ones."""
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
    """Within the block, the first signal is only noted, for `received`; a second one raises Interrupted."""
    return _handled(_note)


def raised() -> AbstractContextManager[None]:
    """Within the block, the first signal raises Interrupted; a second one ends the process."""
    return _handled(_raise)


def passed_on(processes: Callable[[], Iterable[subprocess.Popen[Any]]]) -> AbstractContextManager[None]:
    """Within the block, signals are sent to these processes; `received` returns the last one."""

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
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving and stopping; press Ctrl-C again to quit immediately.\n".encode())
    elif _is_repeated():
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(number, saved=False)


def _raise(number: int, frame: FrameType | None) -> None:
    if _is_first(number):
        raise Interrupted(number, saved=False)
    if _is_repeated():
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
