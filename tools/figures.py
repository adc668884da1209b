"""The two figures of README.md, from a real session: docs/terminal.svg and docs/report.png.

    python -m tools.figures

A sweep of twenty short runs of a small network on generated images is trained in a terminal of 100 columns. What it
prints is drawn by rich, the page that it ends in by Chromium.
"""

import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 100
COMMAND = (
    "python train.py -m data=shapes data.num_train=2000 norm=standard optim=sgd_momentum,adam aug=crop_flip,cutmix",
    "'seed=range(5)' model.channels=[8,16,32] model.hidden=64 model.batch_norm=true batch_size=32 trainer.max_epochs=5",
)
SHOWN = 4  # lines of the first run
BROWSERS = ("chromium", "google-chrome")


def session(folder: Path) -> str:
    """What the command prints on a terminal without a cursor, in a folder of its own."""
    printed = bytearray()

    def read(descriptor: int) -> bytes:
        chunk = os.read(descriptor, 65536)
        printed.extend(chunk)
        return chunk

    os.environ |= {"TERM": "dumb", "COLUMNS": str(COLUMNS), "LINES": "40", "PYTHONPATH": str(ROOT)}
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = " ".join(COMMAND).replace("train.py", str(ROOT / "train.py")).replace("[", r"\[").replace("]", r"\]")
    status = pty.spawn(["/bin/sh", "-c", f"cd {folder} && {line}"], read)
    if status:
        sys.exit(f"The session ended with the status {status}.")
    return printed.decode().replace("\r\n", "\n")


def draw(text: str, path: Path) -> None:
    """The command, the beginning of the first run, and the end, as an SVG file."""
    lines = text.strip().splitlines()
    end = next(number for number, line in enumerate(lines) if re.match(r"\d+ of \d+ runs", line))
    table = [line for line in lines[end:] if line]
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    console.print(Text(f"$ {COMMAND[0]} \\\n    {COMMAND[1]}", style="bold green"))
    for line in lines[:SHOWN]:
        console.print(Text(line))
    console.print(Text("...", style="dim"))
    answer = next(number for number, line in enumerate(table) if "has the highest" in line or "may be the best" in line)
    for line in table[: min(answer, 9)]:
        console.print(Text(line), overflow="crop", no_wrap=True)
    console.print(Text("...", style="dim"))
    for line in table[answer:]:
        console.print(Text(line, style="bold"))
    console.save_svg(str(path), title="cnnlab")


def photograph(page: Path, path: Path) -> None:
    """The first screen of the report, as a PNG file."""
    browser = next(found for name in BROWSERS if (found := shutil.which(name)))
    flags = ("--headless", "--no-sandbox", "--hide-scrollbars", "--force-device-scale-factor=1.5")
    subprocess.run(
        [
            browser,
            *flags,
            "--window-size=1100,800",
            "--virtual-time-budget=5000",
            f"--screenshot={path}",
            page.as_uri(),
        ],
        check=True,
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = session(Path(folder))
        draw(text, ROOT / "docs" / "terminal.svg")
        [page] = Path(folder).glob("outputs/runs/report*/report.html")
        photograph(page, ROOT / "docs" / "report.png")


if __name__ == "__main__":
    main()
