"""Signals that ask a run to stop: a handler only notes the first one, and the training loop saves and stops.

Ctrl-C (SIGINT), SIGTERM and SIGUSR1/2, which clusters send ahead of a time limit. A second one, later than a second
after the first, ends at once.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

SAME_REQUEST = 1.0  # seconds; torchrun and Slurm pass on what the terminal has sent to all processes already

_received = 0
_received_at = 0.0


class Interrupted(BaseException):
    """The run has been saved and stops, because of a signal. Like KeyboardInterrupt it is no error.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_status(self) -> int:
        """130 for Ctrl-C, 143 for the others: what was asked for is done, and typing the command again goes on."""
        return 130 if self.number == signal.SIGINT else 143


class Pruned(Interrupted):
    """The run has been saved and stops, because the search that started it gives it up."""

    def __init__(self) -> None:
        BaseException.__init__(self, "given up: half of the search's finished trials were better by this epoch")

    exit_status = 0


def received() -> int:
    """The number of the signal that asked to stop, 0 if none did."""
    return _received


@contextmanager
def noted() -> Iterator[None]:
    """Within the block signals are noted; the ways they were handled before are put back."""
    global _received
    _received = 0
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number in STOPPING:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def passed_on(processes: Callable[[], Iterable[subprocess.Popen[Any]]]) -> Iterator[None]:
    """Within the block signals go to these processes, and `received` tells the last one."""
    global _received
    _received = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        global _received
        _received = number
        for process in processes():
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(number: int, frame: FrameType | None) -> None:
    global _received, _received_at
    if _received:
        if time.monotonic() - _received_at > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    _received, _received_at = number, time.monotonic()
    os.write(2, f"\n{signal.Signals(number).name}: saving and stopping; once more ends at once.\n".encode())
