"""How fast cnnlab is, in one table of ratios: to the limit of the hardware, to what people use today, to itself.

Everything is a whole command on a terminal that nobody watches, with logs, checkpoints and progress bar: `python
train.py` on drawn pictures in the form of CIFAR-10 (50,000 and 10,000 of them), and `benchmarks/contenders.py`, where
limit and peers are described. The commands take turns, round after round, so what disturbs the machine disturbs them
alike; a ratio is that of one round, and the table has its median over the rounds and its range.

    training      images/s from the end of one epoch to the end of the next, checkpoint, log and ten held-out images
                  included: `norm=standard aug=pad_crop_flip`. The first epoch of every command is warm-up.
    pipeline      making batches alone: crop, flip, normalize; against a DataLoader with two workers
    whitening     an epoch with norm=pca over one with norm=standard, where nothing random precedes it, and with crops
    start         from typing to the checkpoint after the first step, data cached, over `python -c "import lightning"`
    sweep         four runs of all images, whole command, over four times the seconds that one of them was fitting
    at once       a sweep of two runs, two at once with half of the cores each, over one after the other
    memory        the largest resident size of the process, or on a GPU the largest allocation, over that of the limit,
                  which holds all images as float32, and cnnlab as uint8

    python benchmarks/table.py                    20 minutes on two cores with --rounds 1; leave the machine alone
    python benchmarks/table.py --save NAME        also write benchmarks/results/NAME.json, with every number
    python benchmarks/table.py --only training    some of the above
    python benchmarks/table.py --smoke            a few minutes, to see that it runs; its numbers mean nothing
"""

import argparse
import json
import os
import pty
import re
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from cnnlab.data.cifar import CIFAR10
from cnnlab.data.images import Images, cached_data
from cnnlab.data.shapes import Shapes
from cnnlab.runs.files import now, write_text
from cnnlab.runs.provenance import git_state

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("template", "template-bf16", "torchvision", "kornia", "plain")
SHORT, MORE = 1.0, 20  # where an epoch takes less than so many seconds, so many epochs are measured
DRAWN = "0" * 64  # in place of the archive's SHA-256: drawn pictures, never fetched

Numbers = dict[str, Any]


class Bench:
    """Runs the commands of one round after the other.

    Args:
        options: of the command line.
        folder: a temporary one.
    """

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder, self.cache = options, folder, folder / "cache"
        self.peers = list(PEERS)
        self.count = 0
        self.prepare(DRAWN, self.draw)

    def prepare(self, sha256: str, make: Callable[[], tuple[Images, Images]]) -> None:
        """Put pictures where CIFAR-10 is looked for."""
        cached_data(CIFAR10([], sha256, str(self.cache)).prepared, make)

    def find_machine(self) -> Numbers:
        """What the numbers depend on."""
        machine = self.contender("limit", self.options.batch_size, 1)["machine"]
        if machine["precision"]["cnnlab and limit"] != "bfloat16":
            self.peers.remove("template-bf16")
            print("skipped: template-bf16, as this machine would emulate bfloat16, minutes a batch", flush=True)
        return machine

    def draw(self) -> tuple[Images, Images]:
        data = Shapes(self.options.all_images, self.options.all_images // 5).load()
        return data.train, data.test

    def place(self) -> Path:
        """A new folder."""
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        return folder

    @property
    def images(self) -> str:
        """How many images to train on: all, if that many are asked for, but those that are held out."""
        return f"num_train_images={min(self.options.images, self.options.all_images - 10)}"

    def words(self, *words: str, sha256: str = DRAWN) -> list[str]:
        """The command `train.py` on the drawn pictures. Ten images are held out, one of every class."""
        data = (f"data.sha256={sha256}", f"cache_dir={self.cache}", f"val_fraction={10 / self.options.all_images:g}")
        given = {word.partition("=")[0] for word in words}
        options = [word for word in ("norm=standard", "aug=pad_crop_flip") if word.partition("=")[0] not in given]
        ours = (*data, f"batch_size={self.options.batch_size}", *options)
        return [sys.executable, str(ROOT / "train.py"), "name=bench", *ours, *words]

    def train(self, *words: str, sha256: str = DRAWN) -> Numbers:
        """What a run or a sweep took: whole command and each run's epochs and summary."""
        folder = self.place()
        seconds = command(self.words(*words, sha256=sha256), folder)
        runs = sorted((folder / "outputs" / "bench").glob("*/summary.json"))
        summaries = [json.loads(path.read_text(encoding="utf-8")) for path in runs]
        ends = [epoch_ends(path.with_name("train.log")) for path in runs]
        return {"seconds": seconds, "ends": ends[0], "summaries": summaries}

    def epochs(self, *words: str) -> list[float]:
        """Seconds of every epoch but the first."""
        return self.enough(lambda num: self.train(self.images, f"trainer.max_epochs={num}", *words)["ends"])

    def enough(self, ends: Callable[[int], list[float]]) -> list[float]:
        """Seconds of every epoch but the first, of as many as it takes. ends: of a number of epochs."""
        seconds = durations(ends(self.options.epochs + 1))
        if median(seconds) < SHORT and self.options.epochs < MORE and not self.options.smoke:
            seconds = durations(ends(MORE + 1))
        return seconds

    def contender(self, name: str, images: int, epochs: int) -> Numbers:
        folder = self.place()
        words = {
            "cache-dir": self.cache,
            "sha256": DRAWN,
            "images": images,
            "epochs": epochs,
            "out": folder / "out.json",
        }
        words |= {"batch-size": self.options.batch_size, "workers": self.options.workers}
        given = [str(word) for key, value in words.items() for word in (f"--{key}", value)]
        command([sys.executable, str(ROOT / "benchmarks" / "contenders.py"), name, *given], folder)
        return json.loads((folder / "out.json").read_text(encoding="utf-8"))

    # --------------------------------------------------------------------------------------- what a round measures

    def training(self) -> Numbers:
        """Images per second in every epoch."""
        num_images = self.options.images // self.options.batch_size * self.options.batch_size
        seconds = {"cnnlab": self.epochs()}
        for name in ("limit", *self.peers):

            def ends(num: int, name: str = name) -> list[float]:
                return self.contender(name, self.options.images, num)["ends"]

            seconds[name] = self.enough(ends)
        return {name: [num_images / one for one in of_epochs] for name, of_epochs in seconds.items()}

    def pipeline(self) -> Numbers:
        """Images per second in every epoch."""
        return self.contender("pipeline", self.options.images, self.options.epochs)["rates"]

    def whitening(self) -> Numbers:
        """Seconds of every epoch."""
        return {
            f"{aug} {norm}": self.epochs(f"aug={aug}", f"norm={norm}")
            for aug in ("none", "pad_crop_flip")
            for norm in ("standard", "pca")
        }

    def start(self) -> Numbers:
        """Seconds."""
        alone = command([sys.executable, "-c", "import lightning"], self.place())
        folder = self.place()
        words = self.words("checkpoint.every_n_steps=1", "optim.lr=0.02")
        return {"cnnlab": command(words, folder, until="outputs/bench/*/checkpoints/last.ckpt"), "lightning": alone}

    def sweep(self) -> Numbers:
        """Seconds of the whole command and of each run's fit."""
        made = self.train("-m", "seed=0,1,2,3", f"trainer.max_epochs={self.options.sweep_epochs}")
        return {"command": made["seconds"], "fits": [summary["train_seconds"] for summary in made["summaries"]]}

    def at_once(self) -> Numbers:
        """Seconds of the whole command."""
        words = ("-m", "seed=0,1", self.images, "trainer.max_epochs=3")
        both = ("launcher=local", "launcher.jobs_per_device=2")
        return {"in turn": self.train(*words)["seconds"], "at once": self.train(*words, *both)["seconds"]}

    def memory(self) -> Numbers:
        """Bytes; and the seconds of an epoch of all images."""
        made = self.train("trainer.max_epochs=2")
        return {
            "cnnlab": made["summaries"][0]["peak_memory"],
            "limit": self.contender("limit", self.options.all_images, 2)["peak_memory"],
            "epoch": durations(made["ends"]),
        }


def command(words: Sequence[str], folder: Path, until: str | None = None) -> float:
    """Seconds that a command took in a folder, or till a file of that pattern is there."""
    ours, theirs = pty.openpty()
    start = time.perf_counter()
    process = subprocess.Popen(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    printed = b""
    while True:
        if until and any(folder.glob(until)):
            seconds = time.perf_counter() - start
            process.kill()
            process.wait()
            os.close(ours)
            return seconds
        if select.select([ours], [], [], 0.005 if until else None)[0]:
            try:
                printed = (printed + os.read(ours, 1 << 16))[-5000:]
            except OSError:  # the last process that could write there has ended
                break
    os.close(ours)
    if process.wait() or until:
        sys.exit(f"{shlex.join(words)}\n{printed.decode(errors='replace')}")
    return time.perf_counter() - start


def epoch_ends(train_log: Path) -> list[float]:
    """When each epoch was over, its checkpoint written, in seconds since 1970."""
    lines = re.findall(r"^(.{23}) epoch ", train_log.read_text(encoding="utf-8"), re.MULTILINE)
    return [datetime.strptime(line, "%Y-%m-%d %H:%M:%S,%f").timestamp() for line in lines]


def durations(ends: Sequence[float]) -> list[float]:
    return [end - start for start, end in pairwise(ends)]


def save(name: str, machine: Numbers, found: Numbers) -> None:
    """Write benchmarks/results/NAME.json."""
    about = {"command": shlex.join(["python", *sys.argv]), "finished": now(), **machine, "git": git_state()}
    write_text(ROOT / "benchmarks" / "results" / f"{name}.json", json.dumps(about | found, indent=1) + "\n")


# What a row of the table says: its measurement, its name, the ratio of one round, the aims on a processor and on a GPU.
Row = tuple[str, str, Callable[[Numbers], float], str, str]


def rate_over(name: str, measurement: str = "training") -> Callable[[Numbers], float]:
    return lambda of_round: median(of_round["cnnlab"]) / median(of_round[name])


ROWS: list[Row] = [
    ("training", "training, images/s: relative to a bare loop", rate_over("limit"), ">= 0.95", ">= 0.9"),
    ("training", "over lightning-hydra-template's way", rate_over("template"), ">= 3", ">= 20"),
    ("training", "over the same in bfloat16", rate_over("template-bf16"), "", ""),
    ("training", "over torchvision v2 on batches", rate_over("torchvision"), "", ""),
    ("training", "over kornia on batches", rate_over("kornia"), "", ""),
    ("training", "relative to a pytorch-cifar loop", rate_over("plain"), "", ""),
    ("pipeline", "input pipeline, images/s: over a DataLoader", rate_over("DataLoader"), ">= 10", ">= 100"),
    (
        "whitening",
        "epoch with norm=pca: over norm=standard",
        lambda r: median(r["none pca"]) / median(r["none standard"]),
        *("<= 1.1", "<= 1.05"),
    ),
    (
        "whitening",
        "the same with pad_crop_flip",
        lambda r: median(r["pad_crop_flip pca"]) / median(r["pad_crop_flip standard"]),
        *("<= 1.35", "<= 1.05"),
    ),
    ("start", "first step: over importing lightning", lambda r: r["cnnlab"] / r["lightning"], "<= 1.15", "<= 1.3"),
    ("sweep", "sweep of four / four single fits", lambda r: r["command"] / sum(r["fits"]), "<= 1.05", "<= 1.05"),
    ("at_once", "two runs at once: over one after the other", lambda r: r["at once"] / r["in turn"], "", ""),
    ("memory", "epoch of all images, seconds", lambda r: median(r["epoch"]), "", "<= 0.12"),
    ("memory", "peak memory: relative to a bare loop", lambda r: r["cnnlab"] / r["limit"], "<= 1.2", "<= 1.2"),
]
MEASUREMENTS = tuple(dict.fromkeys(row[0] for row in ROWS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME", help="see above"
    )
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s; sweep and at once: one")
    parser.add_argument("--images", type=int, help="of an epoch (default 20000, on a GPU 50000)")
    parser.add_argument("--epochs", type=int, default=2, help="measured in every command (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="default %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="of every DataLoader (default %(default)s)")
    parser.add_argument("--sweep-epochs", type=int, default=5, help="of all images, in `sweep` (default %(default)s)")
    parser.add_argument("--all-images", type=int, default=50_000, help="default %(default)s")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--smoke", action="store_true", help="320 images, one round, one epoch")
    options = parser.parse_args()
    if options.smoke:
        options.images = options.all_images = 320
        options.rounds = options.epochs = options.sweep_epochs = 1
    if min(options.rounds, options.epochs, options.sweep_epochs) < 1:
        parser.error("rounds and epochs must be at least 1")

    rounds: dict[str, list[Numbers]] = {name: [] for name in options.only}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        machine = bench.find_machine()
        on_gpu = machine["device"] != "cpu"
        options.images = options.images or (50_000 if on_gpu else 20_000)
        bench.start()  # what is cached, is cached now
        for number in range(options.rounds):
            for name in options.only:
                if number == 0 or name not in ("sweep", "at_once"):
                    rounds[name].append(getattr(bench, name)())
                    print(f"round {number + 1}/{options.rounds}, {name}: {json.dumps(rounds[name][-1])}", flush=True)

    skipped = {"over the same in bfloat16"} if "template-bf16" not in bench.peers else set()
    rows = [row for row in ROWS if row[0] in rounds and row[1] not in skipped]
    found = {row[1]: [row[2](of_round) for of_round in rounds[row[0]]] for row in rows}
    table = Table("", "median", "range", "aim", title=f"{machine['device']}, {machine['cpu']}, {now()}")
    for _, name, _, *aims in ROWS:
        if values := found.get(name):
            table.add_row(name, f"{median(values):.3g}", f"{min(values):.3g} to {max(values):.3g}", aims[on_gpu])
    precision = "; ".join(f"{who} in {what}" for who, what in machine["precision"].items())
    table.caption = f"{precision}; {options.workers} workers for every DataLoader"
    Console(width=120).print(table)
    if options.save:
        save(options.save, machine, {"options": vars(options), "ratios": found, "rounds": rounds})


if __name__ == "__main__":
    main()
