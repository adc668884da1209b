"""A folder of images larger than the memory that a process may have: `python benchmarks/larger.py`.

The images are drawn shapes as JPEG files, 2,000 different ones, each under many names. One epoch of a small network
runs in a process whose memory the kernel limits (`ulimit -d`, which counts all that is not mapped from a file) to less
than the decoded images take: once with empty caches, and once again with another seed. What is printed is read from
/proc while they run.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cnnlab.data.shapes import Shapes

ROOT = Path(__file__).parents[1]
DIFFERENT = 2_000


def write_folder(root: Path, num: int, size: int) -> None:
    """So many training images, and a hundredth of it test images."""
    data = Shapes(num_train=DIFFERENT, num_test=DIFFERENT, image_size=size).load()
    for part, images, total in (("train", data.train, num), ("test", data.test, num // 100)):
        for number in range(total):
            place = number % DIFFERENT
            folder = root / part / images.classes[images.targets[place]]
            if number < DIFFERENT:
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(images.pixels[place].transpose(1, 2, 0))).save(
                    folder / f"{number}.jpg"
                )
            else:
                os.link(folder / f"{place}.jpg", folder / f"{number}.jpg")


def run(folder: Path, limit: int, *words: str) -> dict[str, float]:
    """Seconds, and the largest of what /proc/PID/status tells, in MB."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "trainer=cpu",
        "data=image_folder",
        f"data.root={folder}/images",
        *words,
    ]

    def limited() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit * 10**6,) * 2)

    begin, largest = time.monotonic(), {"VmData": 0.0, "RssAnon": 0.0, "RssFile": 0.0}
    environment = os.environ | {"CNNLAB_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, preexec_fn=limited)
    while process.poll() is None:
        time.sleep(0.1)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        for name in largest:
            if found := re.search(rf"{name}:\s+(\d+)", status):
                largest[name] = max(largest[name], int(found[1]) * 1024 / 1e6)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    largest["seconds"] = time.monotonic() - begin
    return {name: round(value) for name, value in largest.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=200_000, help="training images")
    parser.add_argument("--size", type=int, default=64, help="their height and width")
    parser.add_argument("--limit", type=int, default=2_000, help="of memory, MB; 0: none")
    parser.add_argument("words", nargs="*", help="for train.py")
    options = parser.parse_args()
    words = [
        f"data.image_size={options.size}",
        "norm=standard",
        "aug=pad_crop_flip",
        f"aug.pad_crop_flip.size={options.size}",
        "trainer.max_epochs=1",
        *options.words,
    ]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        write_folder(Path(folder, "images"), options.num, options.size)
        print(f"{options.num:,} files written in {time.monotonic() - begin:.0f} s", flush=True)
        pixels = options.num * 3 * options.size**2 / 1e6
        for name in ("first run, decodes", "second run"):
            measured = run(Path(folder), options.limit, *words, f"seed={int(name == 'second run')}")
            print(f"{name}: {pixels:,.0f} MB of pixels, limit {options.limit:,} MB: {measured}", flush=True)
        for file in sorted(Path(folder).glob("outputs/runs/*/summary.json")):
            summary = json.loads(file.read_text())
            print(
                {name: summary["metrics"][name] for name in ("train/acc", "val/acc", "test/acc")},
                summary["data"]["num_train"],
            )


if __name__ == "__main__":
    main()
