"""Standard output and error that never end a program: what cannot be printed any more is dropped.

A terminal that is closed and a reader that ends (`| head`) make every later print fail; a run goes on, and what it has
to say is in its train.log. Does not import torch.
"""

import io
import os
import select
import sys
from typing import Any, cast


class _Lasting(io.FileIO):
    """A file descriptor that turns into /dev/null when it can no longer be written to."""

    def write(self, content: Any) -> int:
        try:
            while (written := super().write(content)) is None:  # somebody has made it non-blocking
                select.select([], [self], [])
            return written
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)


def doing(what: str) -> None:
    """Say on a terminal what is being done, where the next line takes seconds to come."""
    if os.isatty(2):
        print(f"{what} ...", file=sys.stderr, flush=True)


def outlive_terminal() -> None:
    """From now on, printing succeeds in this process, whatever becomes of its output, and whatever the text.

    A terminal shows what its locale has no characters for as escapes. Pipes and files get UTF-8, and file names that
    are no text byte for byte, unless PYTHONIOENCODING is set.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # one of them was closed: no file of ours takes its place
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = cast(io.TextIOWrapper | None, getattr(sys, name))
        if stream and stream is getattr(sys, f"__{name}__"):  # else somebody catches what is printed
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
    """In a process that a notebook has started: forget its backend for matplotlib, which only its kernel can use."""
    if os.environ.get("MPLBACKEND", "").startswith("module://") and not in_notebook():
        os.environ["MPLBACKEND"] = "agg"
