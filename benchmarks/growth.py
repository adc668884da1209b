"""How cost grows: with the batch size, the number of images, the jobs of a sweep, the runs of a report.

    batch     images/s of `train.py norm=standard aug=pad_crop_flip` and of the limit (see contenders.py), by batch size
    images    seconds of an epoch and largest memory, by number of training images
    sweep     seconds of a whole sweep of tiny runs, by number of jobs: linear models, 100 images, one epoch each
    report    seconds of `python -m cnnlab report` over those runs

Whole commands, one after the other, once each; the second epoch is measured, or the second and third in `batch`.

    python benchmarks/growth.py --save growth_cpu     50 minutes on two cores; leave the machine alone
    python benchmarks/growth.py --smoke               a minute, to see that it runs; its numbers mean nothing

`--save NAME` writes benchmarks/results/NAME.json and the picture docs/NAME.png.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.figure
import numpy as np
from table import DRAWN, ROOT, Bench, command, durations, save

from cnnlab.data.cifar import CIFAR10
from cnnlab.data.images import DataSet, Images
from cnnlab.report.run_figures import STYLE
from cnnlab.runs.files import atomic_path

Points = list[dict[str, Any]]  # each with its "size"

TINY = (
    *("data=shapes", "data.num_train=100", "data.num_test=20", "model=linear", "batch_size=50"),
    *("trainer.max_epochs=1", "name=growth", "-m"),
)


def by_batch(bench: Bench, sizes: Sequence[int]) -> Points:
    """Images per second."""
    points = []
    for size in sizes:
        bench.options.batch_size = size
        num_images = bench.options.images // size * size
        seconds = {
            "cnnlab": bench.epochs(),
            "limit": durations(bench.contender("limit", bench.options.images, 3)["ends"]),
        }
        points.append({"size": size} | {name: num_images / median(of) for name, of in seconds.items()})
    return points


def by_images(bench: Bench, sizes: Sequence[int]) -> Points:
    """Seconds of the second epoch; largest memory in bytes."""
    points = []
    drawn = CIFAR10([], DRAWN, str(bench.cache)).load()
    bench.options.batch_size = 128
    for size in sizes:
        sha256 = f"{size:015}".ljust(64, "f")
        bench.prepare(sha256, partial(repeated, drawn, size))
        bench.options.all_images = size  # ten of which are held out
        made = bench.train("trainer.max_epochs=2", sha256=sha256)
        points.append(
            {"size": size, "seconds": durations(made["ends"])[0], "bytes": made["summaries"][0]["peak_memory"]}
        )
    return points


def repeated(data: DataSet, num: int) -> tuple[Images, Images]:
    """So many training images, the given ones again and again."""
    index = np.arange(num) % len(data.train.targets)
    return Images(data.train.pixels[index], data.train.targets[index], data.train.classes), data.test


def by_jobs(bench: Bench, sizes: Sequence[int]) -> Points:
    """Seconds of the whole command; the runs of the largest sweep stay in the folder `runs`."""
    points = []
    for size in sizes:
        folder = bench.place()
        words = [sys.executable, str(ROOT / "train.py"), *TINY, f"cache_dir={bench.cache}", f"seed=range({size})"]
        points.append({"size": size, "seconds": command(words, folder)})
        shutil.rmtree(bench.folder / "runs", ignore_errors=True)
        shutil.move(folder / "outputs" / "growth", bench.folder / "runs")
    return points


def by_runs(bench: Bench, sizes: Sequence[int]) -> Points:
    """Seconds of the report."""
    points = []
    for size in sizes:
        runs = sorted(str(path.parent) for path in (bench.folder / "runs").glob("*/summary.json"))[:size]
        words = [sys.executable, "-m", "cnnlab", "report", *runs, "--out", "report"]
        points.append({"size": size, "seconds": command(words, bench.place())})
    return points


MEASUREMENTS: dict[str, tuple[Callable[[Bench, Sequence[int]], Points], list[int], list[int]]] = {
    "batch": (by_batch, [32, 64, 128, 256, 512, 1024, 2048], [64]),
    "images": (by_images, [5_000, 15_000, 50_000, 150_000, 500_000], [500]),
    "sweep": (by_jobs, [1, 10, 100, 1_000], [2]),
    "report": (by_runs, [1, 10, 100, 1_000], [2]),
}


@matplotlib.rc_context(STYLE)
def draw(path: Path, found: dict[str, Points]) -> None:
    """A panel for every measurement."""
    figure = matplotlib.figure.Figure(figsize=(10, 7), layout="constrained")
    axes = dict(zip(MEASUREMENTS, figure.subplots(2, 2).flat, strict=True))
    values = {name: {key: [point[key] for point in points] for key in points[0]} for name, points in found.items()}
    if "batch" in found:
        axis, of = axes["batch"], values["batch"]
        for name in ("cnnlab", "limit"):
            axis.plot(of["size"], of[name], "o-", label=name)
        axis.set(xlabel="images per batch", ylabel="images per second", xscale="log")
        axis.set_ylim(0, 1.1 * max(*of["cnnlab"], *of["limit"]))
        axis.set_xticks(of["size"], of["size"])
        axis.legend()
    if "images" in found:
        axis, of = axes["images"], values["images"]
        thousands = np.array(of["size"]) / 1000
        axis.plot(thousands, of["seconds"], "o-", label="seconds per epoch")
        memory = axis.twinx()
        memory.plot(thousands, np.array(of["bytes"]) / 1e9, "s--", color="C1", label="memory, GB (right)")
        memory.set_ylim(0, None)
        axis.set(xlabel="training images, in thousands", ylabel="seconds per epoch", xlim=(0, None), ylim=(0, None))
        axis.legend(handles=[*axis.lines, *memory.lines])
    if "sweep" in found:
        axis, of = axes["sweep"], values["sweep"]
        axis.plot(of["size"], of["seconds"], "o-", label="whole command")
        proportional = [of["seconds"][-1] * size / of["size"][-1] for size in of["size"]]
        axis.plot(of["size"], proportional, ":", color="gray", label="in proportion to the largest")
        axis.set(xlabel="jobs of a sweep", ylabel="seconds", xscale="log", yscale="log")
        axis.legend()
    if "report" in found:
        axis, of = axes["report"], values["report"]
        axis.plot(of["size"], of["seconds"], "o-")
        axis.set(xlabel="runs in a report", ylabel="seconds, whole command", xscale="log")
        axis.set_ylim(0, 1.1 * max(of["seconds"]))
    for axis in axes.values():
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--images", type=int, help="of an epoch, in `batch` (default 20480, on a GPU 49152)")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json and docs/NAME.png")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes")
    options = parser.parse_args()
    options.epochs, options.workers, options.batch_size, options.all_images = 2, 2, 128, 50_000
    if options.smoke:
        options.images, options.epochs, options.all_images = 640, 1, 640
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        machine = bench.find_machine()
        options.images = options.images or (20_480 if machine["device"] == "cpu" else 49_152)
        found: dict[str, Points] = {}
        for name in options.only:
            measure, sizes, smallest = MEASUREMENTS[name]
            found[name] = measure(bench, smallest if options.smoke else sizes)
            print(f"{name}: {json.dumps(found[name])}", flush=True)
    if options.save:
        save(options.save, machine, {"points": found})
        draw(ROOT / "docs" / f"{options.save}.png", found)


if __name__ == "__main__":
    main()
