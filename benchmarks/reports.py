"""Time and size of reports of many runs, and whether a browser can still use the page.

    python benchmarks/reports.py 16 1000 10000     prints a Markdown table

The run directories are made up, with 20 epochs each and no predictions: "grid" has ten seeds of every learning rate,
"search" a trial of four hyperparameters in each run. Seconds are those of the processor (user and system)
for the whole command `python -m cnnlab report`, which other work on the machine changes little; "opened" is the time
until Chromium has drawn the page (from the start of the navigation), "sorted" that of a click on the head of a column
of the table of runs.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cnnlab.runs.directory import RunDirectory

CLASSES = [f"class {number}" for number in range(10)]


def write_run(folder: Path, number: int, kind: str, generator: np.random.Generator) -> None:
    seed, changes = 0, {}
    if kind == "grid":
        seed, changes = number % 10, {"optim.lr": 0.001 * (1 + number // 10)}
    else:
        drawn = generator.uniform(size=3)
        changes = {
            "optim.lr": float(f"{10 ** (-4 + 3 * drawn[0]):.4g}"),
            "model.dropout": round(float(drawn[1]), 4),
            "optim.weight_decay": float(f"{10 ** (-5 + 3 * drawn[2]):.4g}"),
        }
    optim = ("sgd", "adam")[number % 2] if kind == "search" else "sgd"
    accuracy = float(0.8 - 0.02 * abs(np.log10(changes["optim.lr"]) + 2) + generator.normal(0, 0.01))
    run = RunDirectory(folder / f"made-up-{number}")
    run.path.mkdir(parents=True)
    run.write_summary(
        {
            "run": run.path.name,
            "status": "done",
            "choices": {"data": "cifar10", "norm": "standard", "aug": "pad_crop_flip", "model": "cnn", "optim": optim},
            "changes": {**changes, "seed": seed},
            "seed": seed,
            "overrides": [f"optim={optim}", *(f"{key}={value}" for key, value in changes.items()), f"seed={seed}"],
            "selected_on": "val/acc",
            "select_mode": "max",
            "best_epoch": 20,
            "epochs_done": 20,
            "metrics": {"test/acc": accuracy - 0.01, "val/acc": accuracy, "test/loss": 1.0},
            "train_seconds": 500.0,
            "images_per_second": 2000.0,
            "data": {"classes": CLASSES, "task": "multiclass", "fingerprint": "f" * 64, "num_train": 45000},
            "environment": {"device": "cpu", "precision": "bf16-mixed", "torch": "2.15.0"},
            "code_digest": "c" * 64,
        }
    )
    epochs = np.arange(1, 21)
    curve = accuracy * (1 - np.exp(-epochs / 4)) + generator.normal(0, 0.003, 20)
    names = {"train/acc": 1.05 * curve, "val/acc": curve, "train/loss": 2.3 - 2 * curve, "val/loss": 2.4 - 2 * curve}
    run.write_metrics(
        [{"epoch": int(epoch), **{name: float(of[epoch - 1]) for name, of in names.items()}} for epoch in epochs]
    )


def cpu_seconds() -> float:
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_browser(written: Path) -> tuple[float, float]:
    """Seconds until the page is drawn, and until its table of runs is sorted."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page()
        begun = time.perf_counter()
        tab.goto(written.as_uri())
        tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        opened = time.perf_counter() - begun
        begun = time.perf_counter()
        tab.locator("section:has(h2:text-is('Runs')) th button").nth(3).click()
        tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        clicked = time.perf_counter() - begun
        browser.close()
    return opened, clicked


def main() -> None:
    print("| runs | kind | CPU seconds | page, MB | opened, s | sorted, s |\n| --- | --- | --- | --- | --- | --- |")
    for size in map(int, sys.argv[1:] or ["16"]):
        for kind in ("grid", "search"):
            with tempfile.TemporaryDirectory() as folder:
                generator = np.random.default_rng(0)
                for number in range(size):
                    write_run(Path(folder, "runs"), number, kind, generator)
                begun = cpu_seconds()
                words = [sys.executable, "-m", "cnnlab", "report", "runs", "--out", "report"]
                subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
                seconds = cpu_seconds() - begun
                written = Path(folder, "report", "report.html")
                opened, clicked = in_browser(written)
                megabytes = written.stat().st_size / 1e6
                print(
                    f"| {size:,} | {kind} | {seconds:.1f} | {megabytes:.2f} | {opened:.2f} | {clicked:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
