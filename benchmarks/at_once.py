"""A sweep of two runs on a processor: one after the other with all cores, or both at once with half of the cores each.

Whole commands, `python train.py -m seed=0,1 ...`, start-up included, without and with `launcher=local
launcher.jobs_per_device=2`. They take turns; the ratio is that of one round, and its median over the rounds is shown
with its range.

    python benchmarks/at_once.py                 about nine minutes on two cores; leave the machine alone
    python benchmarks/at_once.py --save NAME     also write benchmarks/results/NAME.json, with every number
    python benchmarks/at_once.py --smoke         a minute, to see that it runs; its numbers mean nothing
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from statistics import median

from throughput import ROOT, describe

from cnnlab.records import write_text

WAYS = {"in turn": [], "at once": ["launcher=local", "launcher.jobs_per_device=2"]}


def seconds(options: argparse.Namespace, words: list[str]) -> float:
    """Of the whole command."""
    knobs = [f"data.num_train={options.images}", "data.num_test=100", f"trainer.max_epochs={options.epochs}"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", "seed=0,1", "data=shapes", "trainer.accelerator=cpu"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = subprocess.run(
            [*command, *knobs, f"cache_dir={folder}", *words], cwd=folder, capture_output=True, text=True
        )
        duration = time.perf_counter() - start
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    return duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="training images (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--smoke", action="store_true", help="384 images, one round of one epoch")
    options = parser.parse_args()
    if options.smoke:
        options.images, options.rounds, options.epochs = 384, 1, 1

    rounds = []
    for number in range(options.rounds):
        rounds.append({name: seconds(options, words) for name, words in WAYS.items()})
        print(f"round {number + 1}/{options.rounds}: {json.dumps(rounds[-1])}", flush=True)
    ratios = sorted(of_one["at once"] / of_one["in turn"] for of_one in rounds)
    print(f"at once / in turn: {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    if options.save:
        path = ROOT / "benchmarks" / "results" / f"{options.save}.json"
        write_text(path, json.dumps(describe(options) | {"seconds": rounds, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
