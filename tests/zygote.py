"""Whole runs by the dozen: each is a fork of one process that has imported everything (see faults.py)."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
TIMES = ("epoch_seconds", "images_per_second")
COMMAND = (
    *("data=shapes", "data.num_train=400", "data.num_test=60", "batch_size=40", "model.channels=[8,8,8]"),
    *("model.hidden=32", "model.dropout=0.5", "model.batch_norm=true", "aug=[crop_flip,noise,cutmix]"),
    *("optim=adam", "optim.lr=0.003", "sched=onecycle", "callbacks=[ema,early_stopping]", "callbacks.ema.decay=0.9"),
    *("callbacks.early_stopping.patience=2", "+callbacks.early_stopping.min_delta=1"),  # stops after three epochs
    *("norm=zca", "norm.num_components=20", "trainer.max_epochs=5"),
    *("trainer.accelerator=cpu", "checkpoint.every_n_steps=2", "deterministic=true"),
    "seed=1",  # with which the last epoch is not the best: there are two tests
)


class Zygote:
    """The process that forks runs; see faults.py."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = os.pathsep.join((str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])))  # train.py is in ROOT
        own = {"CNNLAB_CACHE": str(folder / "cache"), "COLUMNS": "200", "PYTHONPATH": path}
        environment = os.environ | own
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "faults.py")],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(
        self,
        output: Path,
        *words: str,
        command: Sequence[str] = COMMAND,
        faults: Sequence[tuple[str, int, str]] = (),
        environment: dict[str, str] | None = None,
        terminal: str = "",
    ) -> dict:
        """Type the command, with more words; returns exit status and counts.

        terminal: "terminal" or "pipe": what it prints to, instead of the file that `said` reads.
        """
        arguments = [*command, f"output_dir={output}", *words]
        request = {"arguments": arguments, "faults": faults, "log": f"{output}.log", "environment": environment or {}}
        return self.ask(request | {"terminal": terminal})

    def ask(self, request: dict) -> dict:
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def said(output: Path) -> str:
    """What the runs have printed."""
    return Path(f"{output}.log").read_text()


def only_run(output: Path) -> Path:
    [summary] = (output / "runs").glob("*/summary.json")
    return summary.parent


def left_by(output: Path) -> dict:
    """Everything that a run leaves and that must not depend on how often it was killed."""
    run = only_run(output)
    with open(run / "metrics.csv", newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]
    checkpoints = {}
    for name in ("last", "best"):
        saved = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        kept = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "callbacks")
        checkpoints[name] = {key: saved[key] for key in kept if key in saved}
        checkpoints[name]["random"] = [process["random"] for process in saved["records"]["processes"]]
    summary = json.loads((run / "summary.json").read_text())
    predictions = {}
    if (run / "predictions.npz").exists():
        with np.load(run / "predictions.npz") as arrays:
            predictions = {name: torch.from_numpy(values.astype(np.float64)) for name, values in arrays.items()}
    board = EventAccumulator(str(run), size_guidance={"images": 0})
    board.Reload()
    points = {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if tag.removeprefix("speed/") not in TIMES
    }
    return {
        "rows": rows,
        "checkpoints": checkpoints,
        "summary": {key: summary[key] for key in ("status", "metrics", "best_epoch", "epochs_done")},
        "predictions": predictions,
        "points": points,
        "filters": [
            (event.step, event.encoded_image_string)
            for tag in board.Tags()["images"]
            if tag == "weights/filters"
            for event in board.Images(tag)
        ],
        "files": sorted(path.name for path in run.rglob("*") if "tfevents" not in path.name),
    }


def differences(first, second, path: str = "") -> list[str]:
    """Where two nested structures of numbers, texts and tensors are not the same to the last bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and first.equal(second) else [path]
    if type(first) is not type(second):
        return [path]
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{path}: {sorted(map(str, first.keys() ^ second.keys()))}"]
        return [found for key in first for found in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list | tuple):
        if len(first) != len(second):
            return [f"{path}: {len(first)} and {len(second)}"]
        pairs = enumerate(zip(first, second, strict=True))
        return [found for place, (a, b) in pairs for found in differences(a, b, f"{path}/{place}")]
    return [] if first == second else [f"{path}: {first!r} and {second!r}"]
