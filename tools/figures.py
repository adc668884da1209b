"""Draws the two figures of README.md, docs/terminal.svg and docs/report.png, from a real session.

    python -m tools.figures

Trains the sweep of `make demo`, twelve short runs on generated images, one by one in a terminal of 100 columns. Rich
renders its output, Chromium the report.
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
COMMAND = (  # the sweep of `make demo`
    "python train.py -m optim=sgd_momentum,adam optim.lr=0.003 aug=crop_flip,cutmix 'seed=range(3)'",
    "data=shapes data.num_train=1000 data.num_test=500 data.noise=0 data.clutter=0 norm=standard",
    "model.channels=[8,16,32] model.hidden=64 model.batch_norm=true batch_size=25",
    "trainer.max_epochs=6",
)
HIDDEN = ("outputs/runs/", "Composing", "Loading", "Pictures", "Figures")  # lines that begin so are left out
ROWS = 10  # lines of the table of runs that are shown
BROWSERS = ("chromium", "google-chrome")


def session(folder: Path) -> str:
    """Run the command in `folder`, on a terminal without cursor control, and return its output."""
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
    """Write the command, the first run, the top of the table of runs, and the answer as an SVG file."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith(HIDDEN)]
    done = next(number for number, line in enumerate(lines) if line.startswith("done:"))
    table = next(number for number, line in enumerate(lines) if re.match(r"\d+ of \d+ runs", line))
    answer = next(number for number, line in enumerate(lines) if number > table and re.search(r"accuracy: \d", line))
    with open(os.devnull, "w", encoding="utf-8") as discarded:
        console = Console(record=True, width=COLUMNS, file=discarded)
        console.print(Text("$ " + " \\\n    ".join(COMMAND), style="bold green"))
        for part in (lines[: done + 1], lines[table : table + ROWS]):
            for line in part:
                console.print(Text(line), overflow="ellipsis", no_wrap=True)
            console.print(Text("...", style="dim"))
        for line in lines[answer:]:
            console.print(Text(line, style="bold"))
        console.print()  # the last line would be clipped below its letters
        svg = console.export_svg(title="cnnlab")
    # without the fonts that it would load from a server
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


def screenshot(page: Path, path: Path) -> None:
    """Write the first screen of the report as a PNG file."""
    browser = next(found for name in BROWSERS if (found := shutil.which(name)))
    flags = "--headless --no-sandbox --hide-scrollbars --force-device-scale-factor=1.5 --window-size=1100,800"
    command = [browser, *flags.split(), "--virtual-time-budget=5000", f"--screenshot={path}", page.as_uri()]
    subprocess.run(command, check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = session(Path(folder))
        draw(text, ROOT / "docs" / "terminal.svg")
        [page] = Path(folder).glob("outputs/runs/report*/report.html")
        screenshot(page, ROOT / "docs" / "report.png")


if __name__ == "__main__":
    main()
