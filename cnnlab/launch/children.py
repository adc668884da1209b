"""Child processes."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def describe_exit(status: int) -> str:
    """How a process ended: 3 -> "with status 3", -9 -> "by SIGKILL"."""
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"


def python_path() -> dict[str, str]:
    """Environment variables that make other processes import modules from the folder of this package first.

    Not from the current folder, as -m would: a project may have a logging.py there. And not from an installed cnnlab,
    which may be another version.
    """
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def die_with_parent(number: int) -> None:
    """Ask Linux to send this process a signal when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
