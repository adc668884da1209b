"""Killed anywhere and typed again, a run ends where the undisturbed one does: bit for bit."""

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from conftest import ROOT
from faults import POINTS
from zygote import COMMAND, Zygote, differences, left_by, only_run, said

from cnnlab.config.options import UserError
from cnnlab.runs.directory import RunDirectory
from cnnlab.train import checkpoint
from cnnlab.train.checkpoint import CheckpointFiles
from cnnlab.train.records import DivergedError, Records


def save(checkpoint: dict, path: Path) -> None:
    files = CheckpointFiles()
    files.save_checkpoint(checkpoint, path)
    files.wait()


NUM_POINTS = int(os.environ.get("CNNLAB_FAULTS", "4"))  # random ones, beside those that have a name
LONG = NUM_POINTS > 4


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory) -> tuple[dict, dict]:
    """What an undisturbed run leaves, and how often it passes each point."""
    output = tmp_path_factory.mktemp("undisturbed") / "outputs"
    assert zygote.run(output.with_name("first"))["status"] == 0  # fills the cache, whose files are not counted then
    result = zygote.run(output)
    assert result["status"] == 0, said(output)
    return left_by(output), result["counts"]


NAMED = {
    "before the first step": [("step", 1)],
    "at an epoch's end": [("metrics.csv", 2)],
    "during validation": [("validation", 2)],
    "halfway through writing a checkpoint": [("write", 3)],
    "before renaming a finished checkpoint": [("last.ckpt", 4)],
    "after setting the previous checkpoint aside": [("previous.ckpt", 3)],
    "writing the best checkpoint": [("best.ckpt", 1)],
    "writing the digest of the best checkpoint": [("best.ckpt.sha256", 1)],
    "writing metrics.csv": [("metrics.csv", 1)],
    "writing the summary at the start": [("summary.json", 1)],
    "writing the summary at the end": [("summary.json", 2)],
    "after the decision to stop early": [("metrics.csv", 3)],
    "during the first test": [("validation", 4)],
    "during the last test": [("validation", 5)],
    "three times": [("step", 8), ("write", 2), ("validation", 1)],
}


SURVIVED: list[tuple[str, str]] = []


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """After the long form, what was survived is kept as docs/faults.md."""
    yield
    if LONG:
        rows = [f"| {number} | {name} | {faults} |" for number, (name, faults) in enumerate(SURVIVED, start=1)]
        page = ROOT / "docs" / "faults.md"
        _, title, others = page.read_text().partition("\n## Sweeps")
        page.write_text("\n".join((HEAD, *rows, "")) + title + others)


HEAD = """# Killed and resumed runs

Each row is a run that was killed at the given point, resumed by running the same command again, and compared with an
undisturbed run. Weights, their moving average, optimizer, schedule, random states, metrics.csv, TensorBoard points,
final metrics and the names of all files were identical, bit for bit. `make test-faults` repeats all of this and
writes this page; `make test` repeats a small part. The training uses dropout, batch normalization, noise, crops,
CutMix, ZCA whitening, Adam, a one-cycle schedule, a moving average of the weights and early stopping, and saves every
two steps.

In the last column, `step 3` is the third training step, `validation 2` the second evaluation step, `write 3` the
third checkpoint when half of it is written; `rename 4` and `renamed 4` are just before and just after the fourth time
that a file is renamed into place, and `last.ckpt 4` just before the fourth time for this file.

| | case | killed at |
|---|---|---|"""


def survives(
    zygote: Zygote,
    undisturbed: tuple[dict, dict],
    output: Path,
    name: str,
    faults: list[tuple[str, int]],
    how="SIGKILL",
) -> None:
    for point, number in faults:
        status = zygote.run(output, faults=[(point, number, how)])["status"]
        assert status == -9, (point, number, said(output))
    assert zygote.run(output)["status"] == 0, said(output)
    assert differences(undisturbed[0], left_by(output)) == []
    SURVIVED.append((name, ", then ".join(f"{point} {number}" for point, number in faults)))


@pytest.mark.parametrize("name", NAMED)
def test_killed_at_a_named_point(zygote, undisturbed, tmp_path, name):
    survives(zygote, undisturbed, tmp_path / "outputs", name, NAMED[name])


@pytest.mark.parametrize("seed", range(NUM_POINTS))
def test_killed_at_a_random_point(zygote, undisturbed, tmp_path, seed):
    draw = random.Random(seed)
    point = draw.choice(POINTS)
    faults = [(point, draw.randint(1, undisturbed[1][point]))]
    survives(zygote, undisturbed, tmp_path / "outputs", f"random point, seed {seed}", faults, "racing SIGKILL")


def test_a_search_goes_on_where_it_was(zygote, tmp_path):
    """The same trials, with the same results, as of a search that was left alone."""
    command = (
        *("-m", "hydra/sweeper=optuna", "hydra.sweeper.params=null", "hydra.sweeper.num_trials=7"),
        "hydra.sweeper.seed=13",  # with which the last two rates are far too small
        *("optim.lr=tag(log,interval(0.000001,0.01))", "model.dropout=interval(0,0.5)", "hydra.sweeper.prune_after=2"),
        *("data=shapes", "data.num_train=800", "data.num_test=60", "data.noise=0", "data.clutter=0", "norm=standard"),
        *("val_fraction=0.25", "batch_size=20", "model.channels=[16,16,16]", "model.batch_norm=true", "optim=adam"),
        *("trainer.max_epochs=4", "trainer.accelerator=cpu", "checkpoint.every_n_steps=20"),
    )

    def trials(output: Path) -> dict[str, tuple]:
        summaries = [json.loads(file.read_text()) for file in output.glob("runs/*/summary.json")]
        return {one["run"]: (one["status"], one.get("metrics"), one.get("error")) for one in summaries}

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    passed = zygote.run(whole, command=command)
    assert passed["status"] == 0, said(whole)
    assert {status for status, *_ in trials(whole).values()} == {"done", "interrupted"}  # that is, pruned
    steps = passed["counts"]["step"]
    for point in (steps // 3, steps // 3):
        assert zygote.run(killed, command=command, faults=[("step", point, "SIGKILL")])["status"] == -9
    assert zygote.run(killed, command=command)["status"] == 0, said(killed)
    assert trials(killed) == trials(whole)
    assert zygote.run(killed, command=command)["counts"].get("step", 0) == 0  # nothing is left to do


def test_the_comparison_fails_when_random_states_are_not_restored(zygote, undisturbed, tmp_path):
    """The negative control."""
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 6, "SIGKILL")])["status"] == -9
    assert zygote.run(output, faults=[("", 0, "forget")])["status"] == 0
    found = differences(undisturbed[0], left_by(output))
    assert any("network.conv1.weight" in path for path in found)


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


# ------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize(
    ("name", "point", "number", "status"),
    [
        ("SIGINT", "step", 5, 130),
        ("SIGTERM", "step", 14, 143),
        ("SIGUSR1", "validation", 1, 143),
        ("SIGUSR2", "step", 27, 143),  # the last step of all
        ("SIGTERM", "last.ckpt", 3, 143),  # while saving
        ("SIGHUP", "step", 15, 143),
    ],
)
def test_a_signal_saves_and_stops(zygote, undisturbed, tmp_path, name, point, number, status):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[(point, number, name)])["status"] == status
    assert summary_of(only_run(output))["status"] == "interrupted"
    assert f"{name}: saving and stopping" in said(output)
    assert "Traceback" not in said(output)
    assert zygote.run(output)["status"] == 0
    assert differences(undisturbed[0], left_by(output)) == []


def test_a_signal_saves_at_the_next_step(zygote, tmp_path):
    """Also where no checkpoint is due."""
    output = tmp_path / "outputs"
    rarely = "checkpoint.every_n_steps=null"
    assert zygote.run(output, rarely, faults=[("step", 5, "SIGTERM")])["status"] == 143
    assert torch.load(only_run(output) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5
    assert zygote.run(output, rarely)["counts"]["step"] == 27 - 5


@pytest.mark.parametrize("second", ["late SIGTERM", "SIGTERM"])
def test_a_second_signal_ends_once_what_is_being_written_is_whole(zygote, tmp_path, second):
    """But not one that follows the first immediately: torchrun passes on what the terminal has sent already."""
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 5, "SIGTERM"), ("last.ckpt", 3, second)])["status"] == 143
    summary = summary_of(only_run(output))
    assert (summary["status"], summary["error"]["message"]) == ("interrupted", "stopped by SIGTERM")
    newest = checkpoint.newest(only_run(output) / "checkpoints")
    assert torch.load(newest, weights_only=True)["global_step"] == 5


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_before_the_first_step_stops_with_a_reason(zygote, tmp_path, name):
    """When the run has been opened, and nothing would see that a signal was noted."""
    output = tmp_path / "outputs"
    stopped = zygote.run(output, faults=[("samples.png", 1, name)], command=SMALL)
    assert stopped["status"] == (130 if name == "SIGINT" else 143), said(output)
    summary = summary_of(only_run(output))
    assert (summary["status"], summary["error"]["message"]) == ("interrupted", f"stopped by {name}")
    assert "Traceback" not in said(output)


@pytest.mark.parametrize(
    ("kind", "ignored", "status"),
    [("terminal", False, "interrupted"), ("terminal", True, "done"), ("pipe", False, "done")],
    ids=["terminal", "terminal, after nohup", "pipe"],
)
def test_a_terminal_or_pipe_that_goes_away_ends_no_training(zygote, undisturbed, tmp_path, kind, ignored, status):
    """A closed terminal sends SIGHUP: saved and stopped. What cannot be printed is in train.log."""
    output = tmp_path / "outputs"
    faults = [("step", 12, "hang up"), *([("", 0, "nohup")] if ignored else [])]
    result = zygote.run(output, faults=faults, terminal=kind)
    log = (only_run(output) / "train.log").read_text()
    assert summary_of(only_run(output))["status"] == status, log
    assert result["status"] == (0 if status == "done" else 143)
    assert ("done: test accuracy" if status == "done" else "stopped by SIGHUP; saved") in log
    assert "Traceback" not in log
    if status == "interrupted":
        assert zygote.run(output)["status"] == 0
    assert differences(undisturbed[0], left_by(output)) == []


def test_a_folder_that_is_removed_during_a_run_is_one_line(zygote, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    request = {
        "arguments": [*SMALL, "output_dir=outputs"],
        "faults": [("step", 5, "remove")],
        "log": str(tmp_path / "log"),
    }
    assert zygote.ask(request | {"folder": str(folder)})["status"] == 1
    text = (tmp_path / "log").read_text()
    assert "was removed during the run. Run the same command again." in text
    assert "Traceback" not in text


def test_a_signal_that_is_ignored_stays_ignored(zygote, tmp_path):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 5, "SIGHUP"), ("", 0, "nohup")], command=SMALL)["status"] == 0


def test_a_signal_in_the_test_comes_too_late_for_this_run(zygote, undisturbed, tmp_path):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("validation", 4, "SIGTERM")])["status"] == 0
    assert differences(undisturbed[0], left_by(output)) == []


def test_weights_that_are_no_numbers_are_not_saved(zygote, tmp_path):
    """Two checkpoints within the epoch would otherwise take the place of all good ones."""
    output, often = tmp_path / "outputs", "checkpoint.every_n_steps=1"
    assert zygote.run(output, often, faults=[("step", 5, "SIGTERM")], command=SMALL)["status"] == 143
    good = (only_run(output) / "checkpoints" / "last.ckpt").read_bytes()
    assert zygote.run(output, often, faults=[("step", 1, "nan")], command=SMALL)["status"] == 1
    assert "Weights are not finite in epoch 1, step 6. The last good checkpoint: " in said(output)
    assert "last.ckpt, in epoch 1, step 5" in said(output)
    assert (only_run(output) / "checkpoints" / "last.ckpt").read_bytes() == good
    assert zygote.run(output, often, command=SMALL)["status"] == 0


def test_a_lost_best_checkpoint_is_told_before_training_goes_on(zygote, tmp_path):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 14, "SIGKILL")])["status"] == -9
    truncate(only_run(output) / "checkpoints" / "best.ckpt")
    assert zygote.run(output)["status"] == 2
    assert "best.ckpt is not what was written" in said(output)
    assert "rerun=true" in said(output)
    assert zygote.run(output, "rerun=true")["status"] == 0


PLATEAU = (
    *(word for word in COMMAND if not word.startswith(("sched", "callbacks", "+callbacks", "optim.lr"))),
    *("sched=plateau", "sched.patience=1", "optim.lr=0.000001"),  # the accuracy stays what it is
)


@pytest.mark.parametrize("fault", [("step", 14, "SIGTERM"), ("step", 14, "SIGKILL"), ("metrics.csv", 2, "SIGKILL")])
def test_plateau_waits_as_long_as_in_an_undisturbed_run(zygote, tmp_path, fault):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert zygote.run(whole, command=PLATEAU)["status"] == 0, said(whole)
    assert float(left_by(whole)["rows"][-1]["lr"]) < 1e-6
    assert zygote.run(stopped, command=PLATEAU, faults=[fault])["status"] in (143, -9)
    assert zygote.run(stopped, command=PLATEAU)["status"] == 0
    assert differences(left_by(whole), left_by(stopped)) == []


def test_rerun_trains_anew_what_was_half_archived(zygote, tmp_path):
    """As if it had been killed between the renames: the checkpoint of a finished run is no new training."""
    output = tmp_path / "outputs"
    assert zygote.run(output, command=SMALL)["status"] == 0
    (only_run(output) / "summary.json").unlink()
    again = zygote.run(output, "rerun=true", command=SMALL)
    assert again["status"] == 0, said(output)
    assert again["counts"]["step"] > 0


def test_a_rerun_that_was_killed_is_resumed(zygote, tmp_path):
    """The same command again goes on with it; once it is done, it is trained anew. In sweeps and searches, too."""
    search = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.params=null", "hydra.sweeper.num_trials=2")
    for num, sweep in (
        (1, ()),
        (2, ("-m", "seed=0,1")),
        (2, (*search, "optim.lr=interval(0.001,0.01)")),
    ):
        output = tmp_path / f"outputs{len(sweep)}"
        command = (*sweep, *SMALL, "checkpoint.every_n_steps=2")
        whole = zygote.run(output, command=command)
        assert whole["status"] == 0, said(output)
        steps = whole["counts"]["step"]
        killed = zygote.run(output, "rerun=true", command=command, faults=[("step", steps - 3, "SIGKILL")])
        assert killed["status"] == -9
        again = zygote.run(output, "rerun=true", command=command)
        assert again["status"] == 0, said(output)
        assert again["counts"]["step"] < steps // 2
        assert len(list(output.glob("runs/*.old1"))) == num
        assert not list(output.glob("runs/*.old2"))
        assert not list(output.glob("runs/*/.rerun"))
    anew = zygote.run(tmp_path / "outputs0", "rerun=true", command=SMALL)
    assert (anew["status"], 2 * anew["counts"]["step"]) == (0, steps)
    assert len(list(tmp_path.glob("outputs0/runs/*.old2"))) == 1


def test_another_version_of_torch_is_refused(zygote, tmp_path):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 5, "SIGKILL")])["status"] == -9
    last = only_run(output) / "checkpoints" / "last.ckpt"
    changed = torch.load(last, weights_only=True)
    changed["records"] |= {"torch": "2.0.1", "code": "other"}
    save(changed, last)
    assert zygote.run(output)["status"] == 2
    assert f"was written by torch 2.0.1 and would be resumed by torch {torch.__version__}" in said(output)
    changed["records"] |= {"torch": str(torch.__version__), "precision": "16-mixed"}
    save(changed, last)
    assert zygote.run(output)["status"] == 2
    assert "was written in precision 16-mixed and would be resumed in precision" in said(output)
    del changed["records"]["precision"]  # as before it was kept
    save(changed, last)
    assert zygote.run(output)["status"] == 0
    assert "The source code has changed since this run was interrupted" in said(output)


def test_a_run_goes_on_with_the_threads_that_it_began_with(zygote, tmp_path):
    """The number decides the last bits of sums; here both runs find one thread."""
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 5, "SIGKILL")], command=SMALL)["status"] == -9
    run = RunDirectory(only_run(output))
    begun = run.summary()
    assert begun["environment"]["num_threads"] == 1
    begun["environment"]["num_threads"] = 2
    run.write_summary(begun)
    assert zygote.run(output, command=SMALL)["status"] == 0
    assert run.summary()["environment"]["num_threads"] == 2
    assert "continues with 2 threads, as it began, instead of 1" in said(output)


def test_an_interrupted_sweep_stops_and_typed_again_goes_on(zygote, tmp_path):
    output, sweep = tmp_path / "outputs", ("-m", "seed=0,1", "trainer.max_epochs=1")
    assert zygote.run(output, *sweep, faults=[("step", 4, "SIGTERM")])["status"] == 143
    assert summary_of(only_run(output))["status"] == "interrupted"  # the second one has not begun
    again = zygote.run(output, *sweep)
    assert (again["status"], again["counts"]["step"]) == (0, 9 - 4 + 9)
    assert "2 of 2 runs done" in said(output)


def test_time_saves_too(zygote, tmp_path):
    output = tmp_path / "outputs"
    often = ("checkpoint.every_n_steps=null", "checkpoint.every_n_minutes=1e-9")
    assert zygote.run(output, *often, faults=[("step", 8, "SIGKILL")])["status"] == -9
    assert torch.load(only_run(output) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7


# --------------------------------------------------------------------------------------------------- jobs of a sweep


@pytest.mark.parametrize(
    ("what", "reason", "advice"),
    [
        ("exit", "SystemExit: 3", "see "),
        ("memory", "OutOfMemoryError: so much is not", "Use a smaller batch_size, or resident=host"),
        ("gpu", "AcceleratorError: CUDA error: device-side assert", "CUDA_LAUNCH_BLOCKING=1"),
    ],
)
def test_a_sweep_survives_its_jobs(zygote, tmp_path, what, reason, advice):
    """After a CUDA error no further run can use the GPU in that process."""
    output, sweep = tmp_path / "outputs", ("-m", "seed=0,1", "trainer.max_epochs=1")
    assert zygote.run(output, *sweep, faults=[("step", 4, what)])["status"] == 1
    summaries = {summary["seed"]: summary for summary in map(summary_of, (output / "runs").glob("shapes-*"))}
    assert {seed: summary["status"] for seed, summary in summaries.items()} == {0: "failed", 1: "done"}
    error = summaries[0]["error"]
    assert f"{error['type']}: {error['message']}".startswith(reason)
    assert f"failed: {reason}" in said(output)
    assert advice in said(output)
    assert "1 of 2 runs done" in said(output)
    assert "failed: " in said(output).split("1 of 2 runs done")[1]
    log = (output / "runs" / summaries[0]["run"] / "train.log").read_text()
    assert "Traceback" in log
    assert reason in log
    assert zygote.run(output, *sweep)["status"] == 0


SMALL = COMMAND[:5] + ("trainer.max_epochs=2", "trainer.accelerator=cpu")


def test_a_run_on_one_device_is_whole_whatever_rank_the_environment_names(zygote, tmp_path):
    output = tmp_path / "outputs"
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "1")
    started = {"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "x"}
    assert zygote.run(output, command=SMALL, environment=ranks | started)["status"] == 0, said(output)
    summary = summary_of(only_run(output))
    assert (summary["status"], summary["environment"]["num_devices"]) == ("done", 1)


def test_a_divergence_is_named_and_failed(zygote, tmp_path):
    output = tmp_path / "outputs"
    assert zygote.run(output, "optim.lr=1e6", command=SMALL)["status"] == 1
    summary = summary_of(only_run(output))
    assert summary["status"] == "failed"
    assert summary["error"]["type"] == "DivergedError"
    assert "train/loss is nan in epoch 1. There is no earlier checkpoint." in said(output)
    assert not (only_run(output) / "checkpoints" / "last.ckpt").exists()


def test_a_divergence_keeps_the_checkpoint_before(tmp_path):
    records = Records(RunDirectory(tmp_path), CheckpointFiles(), "digest", "val/acc")
    records.saved = "of epoch 3, step 30"
    with pytest.raises(DivergedError, match=r"val/loss is inf in epoch 4.*last\.ckpt, of epoch 3, step 30.*lr"):
        records.check_finite({"epoch": 4.0, "val/late": math.nan, "train/loss": 0.5, "val/loss": math.inf})
    with pytest.raises(UserError, match=r"val/late is nan in epoch 4\. A metric must be"):
        records.check_finite({"epoch": 4.0, "train/loss": 0.5, "val/late": math.nan})
    records.check_finite({"epoch": 4.0, "train/loss": 0.5, "val/acc": 1.0})
    with pytest.raises(UserError, match=r"val/acc is 91\.3, but an accuracy is from 0 to 1"):
        records.check_finite({"epoch": 4.0, "train/loss": 0.5, "val/acc": 91.3})


# -------------------------------------------------------------------------------------------------------------- files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_the_digest(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(truncate, "is not what was written"), (flip_a_byte, "SHA-256 differs"), (lose_the_digest, "has no digest")],
)
@pytest.mark.parametrize("names", [("last.ckpt",), ("last.ckpt", "previous.ckpt")])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(zygote, undisturbed, tmp_path, harm, reason, names):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 14, "SIGKILL")])["status"] == -9
    checkpoints = only_run(output) / "checkpoints"
    for name in names:
        harm(checkpoints / name)
    again = zygote.run(output)
    assert again["status"] == 0
    assert again["counts"]["step"] == 27 - (10 if len(names) == 1 else 0)  # from step 10, or from the start
    for name in names:
        assert f"{name} " in said(output)
        assert (checkpoints / f"{name}.damaged").exists()
        (checkpoints / f"{name}.damaged").unlink()
    assert reason in said(output)
    assert differences(undisturbed[0], left_by(output)) == []


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint(zygote, tmpfs, tmp_path):
    output, wide = tmpfs / "outputs", "model.hidden=128"
    assert zygote.run(tmp_path / "undisturbed", wide)["status"] == 0
    assert zygote.run(output, wide, faults=[("step", 14, "SIGTERM")])["status"] == 143
    last = only_run(output) / "checkpoints" / "last.ckpt"
    kept = last.read_bytes()
    room = len(kept) - 20_000  # enough for the board and the summary
    (tmpfs / "filler").write_bytes(b"x" * (os.statvfs(tmpfs).f_bavail * os.statvfs(tmpfs).f_bsize - room))
    assert zygote.run(output, wide)["status"] == 1
    assert "No space left on device" in said(output)
    assert last.read_bytes() == kept
    assert summary_of(only_run(output))["status"] == "failed"
    (tmpfs / "filler").unlink()
    assert zygote.run(output, wide)["status"] == 0, said(output)
    assert differences(left_by(tmp_path / "undisturbed"), left_by(output)) == []


def test_a_read_only_folder_is_said_in_one_paragraph(zygote, tmpfs, tmp_path):
    remount(tmpfs, "ro")
    request = {"arguments": [*SMALL, f"output_dir={tmpfs}/outputs"], "faults": [], "log": str(tmp_path / "log")}
    assert zygote.ask(request)["status"] == 2
    text = (tmp_path / "log").read_text()
    assert "Read-only file system" in text
    assert "output_dir=" in text
    assert "Traceback" not in text


def test_temporary_files_on_another_file_system_do_not_matter(zygote, undisturbed, tmp_path, tmpfs, monkeypatch):
    """Files are staged beside their target."""
    remount(tmpfs, "ro")
    output = tmp_path / "outputs"
    assert zygote.run(output, environment={"TMPDIR": str(tmpfs)})["status"] == 0
    assert differences(undisturbed[0], left_by(output)) == []


# ------------------------------------------------------------------------------------------------------------ loading


class Payload:
    """What pickle would run when it is loaded."""

    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_a_checkpoint_that_could_not_be_loaded_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"would contain .*scalar.*, and could not be loaded again"):
        CheckpointFiles().save_checkpoint({"callbacks": {"Own": {"best": np.float32(0.5)}}}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_saved_as_those_of_python_with_the_same_bits(tmp_path):
    rates = [np.float64(0.1), (np.int64(2**53 + 1), np.bool_(True))]
    weights = torch.nn.Linear(2, 2).state_dict()
    save({"lr_schedulers": [{"rates": rates}], "state_dict": weights}, tmp_path / "last.ckpt")
    found = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert str(found["lr_schedulers"]) == "[{'rates': [0.1, (9007199254740993, True)]}]"
    assert found["state_dict"]._metadata == weights._metadata
    assert type(rates[0]) is np.float64  # training goes on with it


def test_a_checkpoint_that_would_run_something_is_not_used(zygote, tmp_path, monkeypatch):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 5, "SIGKILL")])["status"] == -9
    run = only_run(output)
    planted = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) | {"payload": Payload()}
    monkeypatch.setattr("cnnlab.train.checkpoint.named_in", lambda content: "")
    CheckpointFiles().save_checkpoint(planted, run / "checkpoints" / "last.ckpt")  # with a digest that is right
    assert zygote.run(output)["status"] == 0  # from the checkpoint before
    assert "names posix system, which has no place in a checkpoint" in said(output)
    assert (run / "checkpoints" / "last.ckpt.damaged").exists()
    assert not list(zygote.folder.rglob("executed"))
    assert not list(tmp_path.rglob("executed"))


def test_a_checkpoint_of_another_network_is_refused_with_what_differs(zygote, tmp_path):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 5, "SIGKILL")])["status"] == -9
    last = only_run(output) / "checkpoints" / "last.ckpt"
    changed = torch.load(last, weights_only=True)
    for part in ("state_dict", "current_model_state"):
        changed[part]["network.conv1.weight"] = torch.zeros(9, 3, 5, 5)
    save(changed, last)
    assert zygote.run(output)["status"] == 1
    assert "size mismatch for network.conv1.weight" in said(output)


# ---------------------------------------------------------------------------------------------------------- one owner


def test_a_second_process_fails_if_asked_to_and_names_the_first(zygote, tmp_path):
    run = tmp_path / "outputs"
    assert zygote.run(run, faults=[("step", 5, "SIGKILL")])["status"] == -9
    with RunDirectory(only_run(run)).owned():
        assert zygote.run(run, "on_busy=fail")["status"] == 1
        assert f"in use by process {os.getpid()} on {socket.gethostname()} since 20" in said(run)
        assert "on_busy=wait" in said(run)
    assert zygote.run(run, "on_busy=fail")["status"] == 0


def test_a_busy_run_does_not_stop_a_sweep(zygote, tmp_path):
    output, sweep = tmp_path / "outputs", ("-m", "seed=0,1", "trainer.max_epochs=1", "on_busy=fail")
    assert zygote.run(output, *sweep, faults=[("step", 4, "SIGKILL")])["status"] == -9
    with RunDirectory(only_run(output)).owned():
        assert zygote.run(output, *sweep)["status"] == 1
    assert "1 of 2 runs done" in said(output)


def test_a_second_process_waits_for_the_first(zygote, tmp_path):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 5, "SIGKILL")])["status"] == -9
    with RunDirectory(only_run(output)).owned():
        waiting = Thread(target=zygote.run, args=(output,))
        waiting.start()
        while "waiting for it" not in said(output):
            time.sleep(0.05)
        assert summary_of(only_run(output))["status"] == "running"
    waiting.join()
    assert summary_of(only_run(output))["status"] == "done"


def test_a_dead_holder_does_not_matter(zygote, tmp_path):
    output = tmp_path / "outputs"
    assert zygote.run(output, faults=[("step", 5, "SIGKILL")])["status"] == -9
    assert (only_run(output) / ".holder").exists()
    (only_run(output) / ".holder").write_text("process 1 on elsewhere since yesterday")
    assert zygote.run(output, "on_busy=fail")["status"] == 0


# -------------------------------------------------------------------------------------------------- several processes


def processes_of(output: Path) -> dict[int, int]:
    """The processes of a run by rank: {0: pid, 1: pid}."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:  # it has just ended
            continue
        if b"cnnlab.launch.job" in words and any(word.startswith(str(output).encode()) for word in words):
            rank = next((int(line[11:]) for line in environment if line.startswith(b"LOCAL_RANK=")), 0)
            found[rank] = int(folder.name)
    return found


def run_ranks(output: Path, num_ranks: int, hit: int | None = None, name: str = "SIGKILL") -> int:
    """Train with several gloo processes; hit one of them with a signal once it has saved within an epoch."""
    command = [*COMMAND, "data.num_train=1200", "trainer=ddp", f"trainer.devices={num_ranks}", f"output_dir={output}"]
    command.remove("trainer.accelerator=cpu")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *command, "trainer.accelerator=cpu", "trainer.max_epochs=4"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        if hit is not None:
            deadline = time.monotonic() + 120
            while not list(output.glob("runs/*/metrics.csv")) or not list(output.glob("runs/*/*/previous.ckpt")):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.kill(processes_of(output)[hit], getattr(signal, name))
        text, _ = process.communicate(timeout=120)
        deadline = time.monotonic() + 60
        while processes_of(output):  # nobody is left behind
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
    finally:
        for pid in processes_of(output).values():
            os.kill(pid, signal.SIGKILL)
    print(text)
    return process.returncode


@pytest.fixture(scope="module", params=[2, 4] if LONG else [2])
def undisturbed_ranks(request, tmp_path_factory) -> tuple[int, dict]:
    output = tmp_path_factory.mktemp("ranks") / "outputs"
    assert run_ranks(output, request.param) == 0
    return request.param, left_by(output)


HITS = {
    "SIGKILL to the first": (0, "SIGKILL", {1}, {"failed"}),
    "SIGTERM to the last only": (-1, "SIGTERM", {143}, {"interrupted"}),
    "SIGKILL to the last": (-1, "SIGKILL", {1}, {"failed"}),
    "SIGINT to the first": (0, "SIGINT", {130}, {"interrupted"}),
}


@pytest.mark.parametrize("name", list(HITS) if LONG else list(HITS)[:2])
def test_one_of_several_processes_is_hit(undisturbed_ranks, tmp_path, name):
    num_ranks, undisturbed = undisturbed_ranks
    rank, what, exit_statuses, statuses = HITS[name]
    output = tmp_path / "outputs"
    assert run_ranks(output, num_ranks, hit=rank % num_ranks, name=what) in exit_statuses
    assert summary_of(only_run(output))["status"] in statuses
    assert run_ranks(output, num_ranks) == 0
    assert differences(undisturbed, left_by(output)) == []
    SURVIVED.append((f"{num_ranks} processes", name))


def test_accumulated_gradients_are_those_of_larger_batches_and_go_on(zygote, tmp_path):
    common = (
        *("data=shapes", "data.num_train=400", "data.num_test=60", "model.channels=[8,8,8]", "model.hidden=32"),
        *("norm=standard", "aug=pad_crop_flip", "trainer.max_epochs=2", "trainer.accelerator=cpu", "sched=cosine"),
        *("callbacks=ema", "callbacks.ema.decay=0.5", "checkpoint.every_n_steps=1", "optim.lr=0.1"),
        "trainer.precision=32-true",
    )
    whole, halves, killed = (tmp_path / name for name in ("whole", "halves", "killed"))
    assert zygote.run(whole, "batch_size=40", command=common)["status"] == 0, said(whole)
    accumulated = (*common, "batch_size=20", "+trainer.accumulate_grad_batches=2")
    assert zygote.run(halves, command=accumulated)["status"] == 0, said(halves)
    losses = [[float(row["val/loss"]) for row in left_by(output)["rows"]] for output in (whole, halves)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    whole, incomplete = tmp_path / "whole of 4", tmp_path / "incomplete"  # 18 batches: the last two make no step
    assert zygote.run(whole, "batch_size=80", command=common)["status"] == 0, said(whole)
    words = ("batch_size=20", "+trainer.accumulate_grad_batches=4")
    assert zygote.run(incomplete, *words, command=common)["status"] == 0, said(incomplete)
    losses = [[float(row["val/loss"]) for row in left_by(output)["rows"]] for output in (whole, incomplete)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for step in (8, 9):  # within a pair, and between two
        assert zygote.run(killed, command=accumulated, faults=[("step", step, "SIGKILL")])["status"] == -9
    assert zygote.run(killed, command=accumulated)["status"] == 0
    assert differences(left_by(halves), left_by(killed)) == []
