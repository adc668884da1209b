"""Standard output and error that never end a program: what can no longer be printed is dropped.

A closed terminal, or a reader that ends (`| head`), makes every later print fail. A run continues, and its train.log
has what it prints. Does not import torch.
"""

import functools
import io
import os
import select
import sys
from typing import Any, cast


class _Lasting(io.FileIO):
    """A file descriptor that turns into /dev/null when it can no longer be written to."""

    def write(self, content: Any) -> int:
        try:
            while (written := super().write(content)) is None:  # it is non-blocking
                select.select([], [self], [])
            return written
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)


def announce(what: str) -> None:
    """Tell the user at a terminal what is being done, if the next line takes seconds to come."""
    if os.isatty(2):
        print(f"{what} ...", file=sys.stderr, flush=True)


announce_once = functools.cache(announce)  # in this process


def outlive_terminal() -> None:
    """From now on, printing always succeeds in this process, whatever the text and whatever happens to the output.

    A terminal shows characters that its locale lacks as escapes. Pipes and files get UTF-8, in which file names that
    are not text keep their bytes, unless PYTHONIOENCODING is set.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # one of them was closed: none of our files takes its number
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = cast(io.TextIOWrapper | None, getattr(sys, name))
        if stream and stream is getattr(sys, f"__{name}__"):  # otherwise it is being captured
            shown = stream.isatty() or "PYTHONIOENCODING" in os.environ
            lasting = io.TextIOWrapper(
                io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False)),
                encoding=stream.encoding if shown else "utf-8",
                errors="backslashreplace" if shown else "surrogateescape",
                line_buffering=stream.line_buffering or stream.write_through,  # that of standard error
            )
            setattr(sys, name, lasting)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


def leave_notebook() -> None:
    """In a process that a notebook has started, replace its matplotlib backend, which works only in the kernel."""
    if os.environ.get("MPLBACKEND", "").startswith("module://") and not in_notebook():
        os.environ["MPLBACKEND"] = "agg"
