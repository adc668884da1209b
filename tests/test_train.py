"""The main path: train.py trains, records, returns what is done, goes on where it was killed, and survives failures."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from lightning import seed_everything
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cnnlab.config.objects import instantiate
from cnnlab.config.options import CONF, options
from cnnlab.config.shape import Shape
from cnnlab.runs.directory import RunDirectory
from cnnlab.train.parts import make_network
from cnnlab.train.run import train_run

SMALL = (
    "data=shapes",
    "data.num_train=700",
    "data.num_test=100",
    "batch_size=64",
    "model.channels=[8,8,8]",
    "model.hidden=32",
    "trainer.max_epochs=2",
)
TIMES = ("epoch_seconds", "images_per_second")


def train_here(path: Path, *overrides: str, small: tuple[str, ...] = SMALL) -> dict:
    """Train in this process; returns the summary."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*small, "logger=none", *overrides])
    about = {"run": path.name, "choices": {}, "changes": {}, "overrides": []}
    run = RunDirectory(path)
    run.path.mkdir(exist_ok=True)
    return train_run(config, run, instantiate(config.data).load(), about)


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, as text, without the times."""
    with open(run / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def only_run(folder: Path) -> Path:
    [run] = [path for path in folder.iterdir() if path.is_dir()]
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """One whole run of train.py: its directory, and what it said. Matplotlib is set up as a notebook and a user do."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "matplotlibrc").write_text("text.usetex: True\nfont.family: Comic Sans MS\n")
    notebook = os.environ | {"MPLBACKEND": "module://not_there.backend_inline"}
    words = [sys.executable, str(ROOT / "train.py"), *SMALL, "aug=[crop_flip,cutmix]", "logger=[tensorboard,csv]"]
    result = subprocess.run(words, cwd=folder, env=notebook, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "could not be drawn" not in result.stdout
    return only_run(folder / "outputs" / "runs"), result


def test_a_run_leaves_the_files_that_the_contract_names(finished):
    run, _ = finished
    for name in ("summary.json", "metrics.csv", "curves.png", "confusion.png", "samples.png", "train.log"):
        assert (run / name).stat().st_size > 0, name
    for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
        assert (run / ".hydra" / name).stat().st_size > 0, name
    for name in ("last.ckpt", "best.ckpt"):
        digest = (run / "checkpoints" / f"{name}.sha256").read_text()
        checked = subprocess.run(["sha256sum", "--check"], input=digest, cwd=run / "checkpoints", text=True)
        assert checked.returncode == 0
    assert not list(run.rglob(".*.*")), "no partial file"


def test_the_summary_says_what_was_run_and_what_came_out(finished):
    run, _ = finished
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "done"
    assert summary["run"] == run.name
    assert summary["choices"]["aug"] == "crop_flip+cutmix"
    assert summary["choices"]["optim"] == "sgd"
    assert summary["changes"]["model.hidden"] == 32
    assert summary["overrides"][:1] == ["data=shapes"]
    assert summary["seed"] == 0
    assert summary["epochs_done"] == 2
    assert summary["num_weights"] == sum(values.numel() for values in weights(run).values())
    data = summary["data"]
    assert (data["num_train"], data["num_held_out"], data["num_test"], data["input_size"]) == (630, 70, 100, [28, 28])
    confusion = RunDirectory(run).confusion(10)
    assert confusion.sum() == 100
    assert {"device", "precision", "torch", "lightning", "commit", "dirty"} <= set(summary["environment"])
    table = rows(run)
    best = max(table, key=lambda row: float(row["val/acc"]))
    assert summary["best_epoch"] == int(best["epoch"])
    assert summary["metrics"]["val/acc"] == float(best["val/acc"])
    assert summary["metrics"]["last/train/loss"] == float(table[-1]["train/loss"])
    assert summary["metrics"]["test/acc"] == pytest.approx(confusion.trace() / 100)


def test_metrics_have_a_row_per_epoch_and_test_images_are_touched_at_the_end_alone(finished):
    run, _ = finished
    table = rows(run)
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert list(table[0]) == ["epoch", "train/loss", "train/acc", "val/loss", "val/acc", "lr"]
    assert all(0 <= float(row["val/acc"]) <= 1 for row in table)


def test_without_a_terminal_one_plain_line_per_epoch(finished):
    _, result = finished
    lines = [line for line in result.stdout.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_tensorboard_has_curves_layout_choices_and_pictures(finished):
    run, _ = finished
    [events] = run.glob("events.out.tfevents.*")
    board = EventAccumulator(str(events)).Reload()
    tags = board.Tags()
    assert {"loss/train", "acc/train", "loss/val", "acc/val", "lr", "acc/test"} <= set(tags["scalars"])
    assert [(point.step, point.value) for point in board.Scalars("acc/val")] == [
        (int(row["epoch"]), pytest.approx(float(row["val/acc"]))) for row in rows(run)
    ]
    assert set(tags["images"]) == {
        *("samples", "weights/filters", "results/curves", "results/confusion", "results/mistakes")
    }
    assert "custom_scalars__config__" in tags["tensors"]
    plugins = board.summary_metadata
    assert plugins["_hparams_/session_start_info"].plugin_data.plugin_name == "hparams"
    with open(run / "csv" / "metrics.csv", newline="") as file:
        *_, last = csv.DictReader(file)
    assert float(last["test/acc"]) == json.loads((run / "summary.json").read_text())["metrics"]["test/acc"]


def test_the_same_command_returns_the_finished_run_at_once_and_without_torch(finished, command):
    run, _ = finished
    shutil.copytree(run.parent.parent, Path("outputs"))
    words = ("-X", "importtime", "train.py", *SMALL, "aug=[crop_flip,cutmix]", "logger=[tensorboard,csv]")
    before = (Path("outputs/runs") / run.name / "summary.json").stat().st_mtime_ns
    again = command(*words)
    assert again.returncode == 0
    assert re.search(r": already finished \(\d{4}-\d\d-\d\d \d\d:\d\d\): test accuracy", again.stdout)
    assert "changed since" not in again.stdout
    assert " torch\n" not in again.stderr
    assert (Path("outputs/runs") / run.name / "summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("what", ["code", "data"])
def test_a_finished_run_says_when_code_or_data_changed_since(finished, command, what):
    run, _ = finished
    shutil.copytree(run.parent.parent, Path("outputs"))
    copy = Path("outputs/runs") / run.name / "summary.json"
    copy.write_text(json.dumps(json.loads(copy.read_text()) | {f"{what}_digest": "of another day"}))
    again = command("train.py", *SMALL, "aug=[crop_flip,cutmix]", "logger=[tensorboard,csv]")
    assert again.returncode == 0
    assert f"the {'source code' if what == 'code' else 'data'} changed since: rerun=true" in again.stdout


def test_rerun_trains_anew_and_keeps_the_old_run(finished, command):
    run, _ = finished
    shutil.copytree(run.parent.parent, Path("outputs"))
    marker = Path("outputs/runs") / run.name / "marker"
    marker.touch()
    again = command("train.py", *SMALL, "aug=[crop_flip,cutmix]", "logger=none", "rerun=true")
    assert again.returncode == 0
    assert not marker.exists()
    assert (Path("outputs/runs") / f"{run.name}.old1" / "marker").exists()
    assert rows(Path("outputs/runs") / run.name) == rows(run), "the same seed gives the same metrics, to the last bit"


def test_killed_and_typed_again_gives_what_an_undisturbed_run_gives(tmp_path, command):
    overrides = ("model.dropout=0.5", "aug=crop_flip", "sched=exponential", "trainer.max_epochs=4", "logger=none")
    train_here(tmp_path / "undisturbed", *overrides)
    words = [sys.executable, str(ROOT / "train.py"), *SMALL, *overrides]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    folder = tmp_path / "outputs" / "runs"
    while not list(folder.glob("*/metrics.csv")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = only_run(folder)
    assert json.loads((run / "summary.json").read_text())["status"] == "running"
    again = command("train.py", *SMALL, *overrides)
    assert again.returncode == 0
    assert "epoch 1/4" not in again.stdout, "goes on, does not start over"
    assert rows(run) == rows(tmp_path / "undisturbed")
    expected = weights(tmp_path / "undisturbed")
    assert all(values.equal(expected[name]) for name, values in weights(run).items())


@pytest.mark.parametrize("overrides", [("aug=[crop_flip,cutmix]",), ("model.dropout=0.5", "model.batch_norm=true")])
def test_same_seed_same_bits_another_seed_another_run(tmp_path, overrides):
    for name, seed in (("first", 0), ("second", 0), ("third", 1)):
        train_here(tmp_path / name, f"seed={seed}", *overrides)
    assert rows(tmp_path / "first") == rows(tmp_path / "second")
    assert rows(tmp_path / "first") != rows(tmp_path / "third")
    second = weights(tmp_path / "second")
    assert all(values.equal(second[name]) for name, values in weights(tmp_path / "first").items())


def test_two_processes_see_the_batches_of_one_and_learn_the_same(tmp_path, command):
    """Equal up to the order of sums: losses differed by 2e-6 at most over two epochs of 1,800 images, in bfloat16."""
    overrides = ("aug=[crop_flip,cutmix]", "loss.class_weights=[1,1,1,1,1,1,1,1,1,50]", "logger=none")
    train_here(tmp_path / "one", *overrides)
    result = command("train.py", *SMALL, *overrides, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    assert result.returncode == 0, result.stderr
    assert "terminate" not in result.stderr
    run = only_run(Path("outputs/runs"))
    assert json.loads((run / "summary.json").read_text())["environment"]["num_devices"] == 2
    for row, expected in zip(rows(run), rows(tmp_path / "one"), strict=True):
        for name in ("train/loss", "val/loss"):
            assert float(row[name]) == pytest.approx(float(expected[name]), abs=1e-4)


def test_images_in_host_memory_give_the_same_results(tmp_path):
    train_here(tmp_path / "device", "aug=[crop_flip,cutmix]")
    train_here(tmp_path / "host", "aug=[crop_flip,cutmix]", "resident=host")
    assert rows(tmp_path / "device") == rows(tmp_path / "host")


def test_the_reports_protocol_evaluates_the_test_images_after_every_epoch(tmp_path):
    summary = train_here(tmp_path / "run", "val_fraction=0")
    table = rows(tmp_path / "run")
    assert all(row["test/acc"] and "val/acc" not in row for row in table)
    assert summary["selected_on"] == "test/acc"
    assert summary["data"]["num_train"] == 700
    assert summary["metrics"]["last/test/acc"] == float(table[-1]["test/acc"])


def test_adam_learns_the_shapes_and_early_stopping_stops(tmp_path):
    summary = train_here(
        tmp_path / "run",
        "optim=adam",
        "optim.lr=0.003",
        "norm=standard",
        "data.num_train=4000",
        "data.clutter=0",
        "trainer.max_epochs=30",
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=2",
    )
    assert summary["metrics"]["test/acc"] > 0.6
    assert summary["best_epoch"] + 2 == summary["epochs_done"] < 30


def test_debug_overfit_reaches_a_training_accuracy_of_one(tmp_path):
    summary = train_here(tmp_path / "run", "debug=overfit", "optim=adam", "optim.lr=0.003", "trainer.max_epochs=100")
    assert summary["data"]["num_train"] == 64
    assert summary["metrics"]["last/train/acc"] == 1


def test_what_is_fitted_before_the_training_is_fitted_anew_without_a_good_checkpoint(tmp_path):
    words = ("data=shapes", "data.num_train=300", "data.num_test=50", "model=bow", "model.num_words=30")
    train_here(tmp_path, "trainer.max_epochs=1", small=words)
    first = weights(tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"damaged")
    train_here(tmp_path, "trainer.max_epochs=1", small=words)
    again = weights(tmp_path)
    assert first.keys() == again.keys()
    assert all(values.equal(again[name]) for name, values in first.items())


TINY = ("data=shapes", "data.num_train=500", "data.num_test=10", "batch_size=16", "logger=none", "debug=one_batch")
OPTIONS = [
    (group, option)
    for group in ("norm", "aug", "model", "optim", "sched", "callbacks", "experiment")
    for option in options(group)
]


MORE = {  # what an option cannot do without, or is smaller with
    "model=bow": ("model.num_words=30",),
    "model=resnet18": ("model.width=8",),
    "experiment=resnet18": ("model.width=8",),
    "model=timm": ("model.model_name=resnet10t",),
    "model=torchvision": ("model.name=squeezenet1_1",),
    "optim=timm": ("optim.opt=nadamw",),
}


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda word: word)
def test_every_option_trains_one_batch(tmp_path, group, option):
    """From the files that ship; the weights change, and the metrics are finite."""
    chosen = f"{group}={option}"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [chosen, *TINY, *MORE.get(chosen, ())])
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    about = {"run": "run", "choices": {}, "changes": {}, "overrides": []}
    summary = train_run(config, run, instantiate(config.data).load(), about)
    assert summary["status"] == "done"
    assert all(math.isfinite(value) for value in summary["metrics"].values())
    if chosen not in ("callbacks=ema", "model=timm"):  # a checkpoint that hardly moves; layers that begin as zeros
        seed_everything(config.seed, verbose=False)
        untrained = make_network(config.model, Shape(10, 3, *summary["data"]["input_size"])).state_dict()
        trained = weights(run.path)
        names = [name for name in untrained if name.endswith("weight")]
        assert names
        assert not any(trained[f"network.{name}"].equal(untrained[name]) for name in names if "norm" not in name)


def test_debug_one_batch_and_profile(tmp_path):
    summary = train_here(tmp_path / "one", "debug=one_batch", "trainer.max_epochs=1", "data.num_test=600")
    assert summary["epochs_done"] == 1
    assert [len(values) for values in RunDirectory(tmp_path / "one").predictions()] == [500, 500, 500]  # of 600
    train_here(tmp_path / "profile", "debug=profile")
    assert "run_training_batch" in (tmp_path / "profile" / "fit-profile.txt").read_text()


def test_a_sweep_ends_with_a_table_and_typed_again_trains_what_is_missing(command, tmp_path):
    words = ("train.py", "-m", "optim=sgd,adam", "aug=crop_flip,cutmix", *SMALL, "trainer.max_epochs=1")
    first = command(*words, MPLCONFIGDIR=str(tmp_path / "fonts"))  # the first run of an account
    assert first.returncode == 0, first.stderr
    assert "[HYDRA]" not in first.stdout
    runs = sorted(path.name for path in Path("outputs/runs").glob("shapes-*"))
    assert len(runs) == 4
    [report] = Path("outputs/runs").glob("report-*/report.html")
    assert f"Report: {report}" in first.stdout
    assert "Which aug (crop_flip, cutmix) and which optim (adam, sgd)" in report.read_text()
    table = first.stdout[first.stdout.index("4 of 4 runs done") :]
    metrics = [json.loads((Path("outputs/runs") / run / "summary.json").read_text())["metrics"] for run in runs]
    shown = [re.findall(r"\b\d+\.\d\d\b", line) for line in table.splitlines()]
    ranked = sorted((f"{100 * one['val/acc']:.2f}" for one in metrics), key=float, reverse=True)
    assert [values[0] for values in shown if len(values) == 2][:4] == ranked
    assert all(f"{100 * one['test/acc']:.2f}" in table for one in metrics)
    assert all(run[-8:] in table for run in runs)
    assert [f"run {number} of 4, " in first.stdout for number in (1, 2, 3, 4)] == [True] * 4

    again = command("-X", "importtime", *words)
    assert again.returncode == 0
    assert again.stdout.count("already finished") == 4
    assert " torch\n" not in again.stderr

    shutil.rmtree(Path("outputs/runs") / runs[2])
    third = command(*words)
    assert third.returncode == 0
    assert third.stdout.count("already finished") == 3
    assert third.stdout.count("epoch 1/1") == 1


def test_a_file_that_is_edited_meanwhile_does_not_change_a_sweep(tmp_path):
    """In a copy of the project; the second job would otherwise be composed when the first one has ended."""
    for name in ("cnnlab", "conf", "train.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    words = ("-m", "seed=0,1", *SMALL, "trainer.max_epochs=1")
    sweep = subprocess.Popen([sys.executable, "train.py", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("outputs/runs/*/summary.json")):
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.05)
    option = tmp_path / "conf" / "optim" / "sgd.yaml"
    option.write_text(option.read_text().replace("lr: 0.01", "lr: 0.7"))
    _, errors = sweep.communicate()
    assert sweep.returncode == 0, errors
    configs = [path.read_text() for path in tmp_path.glob("outputs/runs/*/.hydra/config.yaml")]
    assert len(configs) == 2
    assert all("lr: 0.01" in config for config in configs)


def test_a_failed_job_is_recorded_the_others_run_and_the_sweep_fails(command):
    result = command("train.py", "-m", *SMALL, "trainer.max_epochs=1", "model.hidden=32,100000000000,16")
    assert result.returncode == 1
    assert "2 of 3 runs done" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    [failed] = Path("outputs/runs").glob("*hidden=100000000000*")
    summary = json.loads((failed / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["error"]["type"] == "RuntimeError"
    assert "alloc" in summary["error"]["message"]
    assert "Traceback" in (failed / "train.log").read_text()
    assert f"failed: outputs/runs/{failed.name}" in result.stdout.replace("\n", "")


def test_a_failed_single_run_exits_with_1(command):
    result = command("train.py", *SMALL, "model.hidden=100000000000")
    assert result.returncode == 1
    assert "failed: RuntimeError" in result.stdout


@pytest.mark.pictures
def test_real_pictures_are_learned(pictures, command):
    """A single epoch of a fifth of them."""
    result = command(
        "train.py",
        "data=image_folder",
        f"data.root={pictures}",
        "num_train_images=10000",
        "model.batch_norm=true",
        "aug=pad_crop_flip",
        "optim=sgd_momentum",
        "optim.lr=0.05",
        "sched=onecycle",
        "trainer.max_epochs=1",
        timeout=580,
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((only_run(Path("outputs/runs")) / "summary.json").read_text())
    assert summary["data"]["num_train"] == 10_000
    assert summary["metrics"]["test/acc"] > 0.38
