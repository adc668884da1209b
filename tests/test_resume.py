"""Killed anywhere and typed again, a run ends where the undisturbed one does: bit for bit."""

import csv
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from faults import POINTS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NUM_POINTS = int(os.environ.get("CNNLAB_FAULTS", "4"))  # random ones, beside those that have a name
TIMES = ("epoch_seconds", "images_per_second")
COMMAND = (
    *("data=shapes", "data.num_train=400", "data.num_test=60", "batch_size=40", "model.channels=[8,8,8]"),
    *("model.hidden=32", "model.dropout=0.5", "model.batch_norm=true", "norm=zca", "aug=[crop_flip,noise,cutmix]"),
    *("optim=adam", "optim.lr=0.003", "sched=onecycle", "callbacks=[ema,early_stopping]", "callbacks.ema.decay=0.9"),
    *("trainer.max_epochs=3", "trainer.accelerator=cpu", "checkpoint.every_n_steps=2"),
)


class Zygote:
    """The process that forks runs; see faults.py."""

    def __init__(self, folder: Path):
        environment = os.environ | {"CNNLAB_CACHE": str(folder / "cache"), "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "faults.py")],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, output: Path, fault: tuple[str, int] | None = None, *more: str) -> dict:
        """Type the command; returns exit status and counts."""
        arguments = [*COMMAND, f"output_dir={output}", *more]
        request = {"arguments": arguments, "fault": fault, "log": f"{output}.log"}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.process.communicate()


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory) -> tuple[dict, dict]:
    """What an undisturbed run leaves, and how often it passes each point."""
    output = tmp_path_factory.mktemp("undisturbed") / "outputs"
    result = zygote.run(output)
    assert result["status"] == 0, Path(f"{output}.log").read_text()
    return left_by(output), result["counts"]


def left_by(output: Path) -> dict:
    """Everything that a run leaves and that must not depend on how often it was killed."""
    [run] = [path for path in (output / "runs").iterdir() if path.is_dir()]
    with open(run / "metrics.csv", newline="") as file:
        rows = [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]
    checkpoints = {}
    for name in ("last", "best"):
        saved = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        kept = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "global_step", "callbacks")
        checkpoints[name] = {key: saved[key] for key in kept}
        checkpoints[name]["random"] = [process["random"] for process in saved["records"]["processes"]]
    summary = json.loads((run / "summary.json").read_text())
    board = EventAccumulator(str(run))
    board.Reload()
    points = {
        tag: [(event.step, event.value) for event in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
        if tag not in TIMES
    }
    return {
        "rows": rows,
        "checkpoints": checkpoints,
        "summary": {key: summary[key] for key in ("status", "metrics", "confusion", "best_epoch", "epochs_done")},
        "points": points,
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


NAMED = {
    "before the first step": [("step", 1)],
    "at an epoch's end": [("metrics.csv", 2)],
    "in validation": [("validation", 2)],
    "in the middle of a checkpoint": [("write", 3)],
    "between a checkpoint's file and its name": [("last.ckpt", 4)],
    "when the checkpoint before has been put aside": [("previous.ckpt", 3)],
    "writing the best checkpoint": [("best.ckpt", 1)],
    "writing the digest of the best checkpoint": [("best.ckpt.sha256", 2)],
    "writing metrics.csv": [("metrics.csv", 1)],
    "writing the summary at the start": [("summary.json", 1)],
    "writing the summary at the end": [("summary.json", 2)],
    "three times": [("step", 8), ("write", 2), ("validation", 1)],
}


def survives(zygote: Zygote, undisturbed: tuple[dict, dict], output: Path, faults: list[tuple[str, int]]) -> None:
    for fault in faults:
        status = zygote.run(output, fault)["status"]
        assert status == -9, (fault, Path(f"{output}.log").read_text())
    assert zygote.run(output)["status"] == 0, Path(f"{output}.log").read_text()
    assert differences(undisturbed[0], left_by(output)) == []


@pytest.mark.parametrize("name", NAMED)
def test_killed_at_a_named_point(zygote, undisturbed, tmp_path, name):
    survives(zygote, undisturbed, tmp_path / "outputs", NAMED[name])


@pytest.mark.parametrize("seed", range(NUM_POINTS))
def test_killed_at_a_random_point(zygote, undisturbed, tmp_path, seed):
    draw = random.Random(seed)
    point = draw.choice(POINTS)
    survives(zygote, undisturbed, tmp_path / "outputs", [(point, draw.randint(1, undisturbed[1][point]))])


def test_the_comparison_fails_when_random_states_are_not_restored(zygote, undisturbed, tmp_path):
    """The negative control."""
    output = tmp_path / "outputs"
    assert zygote.run(output, ("step", 6))["status"] == -9
    assert zygote.run(output, ("forget", 0))["status"] == 0
    found = differences(undisturbed[0], left_by(output))
    assert any("network.conv1.weight" in path for path in found)
