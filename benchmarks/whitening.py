"""What whitening adds to an epoch: norm=pca and norm=zca against norm=standard, with different augmentations.

The lab report found its PCA whitening to nearly double the training time. Here it is applied once to the whole data set
where nothing random precedes it (aug none, cutmix), and as one matrix product for eight batches after random crops.

The normalisations take turns in one process; an epoch is whole, checkpoint and log included, and the first one of every
run is warm-up. Fitting comes before and is not in the numbers. The ratio is that of the median epochs of one round; its
median over the rounds is shown with its range.

    python benchmarks/whitening.py                 about a quarter of an hour on two cores; leave the machine alone
    python benchmarks/whitening.py --save NAME     also write benchmarks/results/NAME.json, with every number
    python benchmarks/whitening.py --smoke         half a minute, to see that it runs; its numbers mean nothing
"""

import argparse
import contextlib
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from throughput import ROOT, Nowhere, describe, run_cnnlab

from cnnlab.data.images import DataSet
from cnnlab.data.shapes import Shapes
from cnnlab.records import write_text

AUGS = ("none", "cutmix", "crop_flip", "pad_crop_flip")
NORMS = ("standard", "pca", "zca")


def epoch_seconds(data: DataSet, options: argparse.Namespace, folder: Path, *chosen: str) -> float:
    """The median epoch of one run."""
    with contextlib.redirect_stdout(Nowhere()):
        ends, _ = run_cnnlab(data, options, folder, *chosen)
    return median(end - start for start, end in pairwise(ends))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="training images (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--epochs", type=int, default=2, help="measured in every run, after one (default %(default)s)")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--smoke", action="store_true", help="384 images, one round of one measured epoch")
    options = parser.parse_args()
    if options.smoke:
        options.images, options.rounds, options.epochs = 384, 1, 1
    augs = AUGS[:1] if options.smoke else AUGS

    data = Shapes(options.images // options.batch_size * options.batch_size, num_test=10).load()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            seconds = {
                aug: {
                    norm: epoch_seconds(
                        data, options, Path(folder, f"{number}{aug}{norm}"), f"norm={norm}", f"aug={aug}"
                    )
                    for norm in NORMS
                }
                for aug in augs
            }
            rounds.append(seconds)
            print(f"round {number + 1}/{options.rounds}: {json.dumps(seconds)}", flush=True)

    machine = describe(options)
    table = Table("aug", *(f"{norm} / standard" for norm in NORMS[1:]), title=f"{machine['device']}, {machine['cpu']}")
    for aug in augs:
        ratios = [sorted(seconds[aug][norm] / seconds[aug]["standard"] for seconds in rounds) for norm in NORMS[1:]]
        table.add_row(aug, *(f"{median(values):.3f} ({values[0]:.3f} to {values[-1]:.3f})" for values in ratios))
    Console().print(table)
    if options.save:
        path = ROOT / "benchmarks" / "results" / f"{options.save}.json"
        write_text(path, json.dumps(machine | {"epoch_seconds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
