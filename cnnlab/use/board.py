"""`cnnlab board`: TensorBoard with short names of runs, which are links to their directories.

TensorBoard names a run by its path, and advises against its own option for other names.
"""

import argparse
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from cnnlab.config.options import UserError
from cnnlab.console import announce
from cnnlab.report.listing import labels, no_runs
from cnnlab.report.runs import find, read
from cnnlab.runs.named import handle, named
from cnnlab.text import say

EVERY = 30  # seconds between looking for new runs


def board(arguments: argparse.Namespace) -> None:
    """Start TensorBoard, with runs named by the settings that differ."""
    folder = named(arguments.folder)
    links = links_to_runs(folder)
    if not links:
        raise no_runs(folder)
    announce("Starting TensorBoard")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # removes the links, too
    from tensorboard.program import TensorBoard, TensorBoardServerException

    with TemporaryDirectory(prefix="cnnlab-board-") as root:
        link(Path(root), links)
        server = TensorBoard()
        server.configure(logdir=root, host=arguments.host, port=arguments.port)
        try:
            address = server.launch()
        except TensorBoardServerException as error:
            raise UserError(f"{error.msg}. Use another --port or --host.") from error
        say(f"TensorBoard: {address} ({len(links)} run{'s' * (len(links) != 1)}; Ctrl-C to stop)")
        while True:
            time.sleep(EVERY)
            if (found := links_to_runs(folder)) != links:
                link(Path(root), links := found)


def links_to_runs(folder: Path) -> dict[str, Path]:
    """The runs below a folder by their names in TensorBoard: "optim=adam seed=1", with the hash if it is needed."""
    runs = read(find([folder]))[0]
    names = [name.replace("/", "_")[:200] for name in labels(runs)]
    counts = Counter(names)
    return {
        name if counts[name] == 1 else f"{name} {handle(run.path)}": run.path.resolve()
        for name, run in zip(names, runs, strict=True)
    }


def link(root: Path, links: dict[str, Path]) -> None:
    """Make a folder's only entries links of these names."""
    present = {old.name: old.readlink() for old in root.iterdir()}
    for name, path in present.items():
        if links.get(name) != path:
            (root / name).unlink()
    for name, path in links.items():
        if present.get(name) != path:
            (root / name).symlink_to(path)
