"""Runs as Weights & Biases and MLflow keep them: a sweep is killed, resumed, and read with their own parts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zygote import Zygote, said

EPOCHS = [1, 2, 3]
COMMAND = (
    *("data=shapes", "data.num_train=100", "data.num_test=20", "batch_size=20", "model=linear", "norm=standard"),
    *("trainer.max_epochs=3", "trainer.accelerator=cpu", "logger=[wandb,mlflow]", "logger.wandb.offline=true"),
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, the first of which was killed in its second epoch; then a rerun of the second."""
    folder = tmp_path_factory.mktemp("loggers")
    zygote, output = Zygote(folder), folder / "outputs"
    words = ("-m", "seed=0,1")
    killed = zygote.run(output, *words, command=COMMAND, faults=[("last.ckpt", 2, "SIGKILL")])
    assert killed["status"] == -9, said(output)
    assert zygote.run(output, *words, command=COMMAND)["status"] == 0, said(output)
    assert zygote.run(output, "seed=1", "rerun=true", command=COMMAND)["status"] == 0, said(output)
    zygote.process.communicate()
    return output


def runs(output: Path) -> dict[int, Path]:
    """The run directories by seed; that of the rerun is another one's."""
    found = {}
    for file in (output / "runs").glob("*/summary.json"):
        seed = json.loads(file.read_text())["seed"]
        found[-seed if file.parent.suffix == ".old1" else seed] = file.parent
    return found


def test_what_they_are_told_does_not_change_a_run(sweep):
    assert "Traceback" not in said(sweep)
    assert len(list((sweep / "runs").glob("*/summary.json"))) == 3


# --------------------------------------------------------------------------------------------- Weights & Biases


def records(path: Path) -> Iterator[Any]:
    """What an offline file holds: wandb's own records, in the form of LevelDB's logs, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, place, waiting = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (room := -place % 32768) < 7:  # the rest of a block that holds no header
            place += room
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        waiting += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(waiting)
            waiting = b""
            yield record


def values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def wandb_runs(sweep) -> dict[int, list[Any]]:
    """The records of each run's one folder."""
    found = {}
    for seed, path in runs(sweep).items():
        [file] = path.glob("wandb/offline-run-*/*.wandb")
        found[seed] = list(records(file))
    return found


def of_kind(found: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def test_wandb_has_each_run_once_by_its_name_and_an_id_of_its_own(sweep, wandb_runs):
    ids = set()
    for seed, found in wandb_runs.items():
        [run] = of_kind(found, "run")
        path = runs(sweep)[seed]
        assert (run.display_name, run.project) == (path.name.removesuffix(".old1"), "cnnlab")
        assert run.run_id == json.loads((path / "summary.json").read_text())["id"]
        assert run.run_id.startswith(run.display_name[-8:])
        ids.add(run.run_id)
    assert len(ids) == 3  # the rerun is another one
    [before] = runs(sweep)[0].glob("wandb/before-*/*.wandb")  # of the process that was killed, and perhaps empty
    assert before.name == f"run-{of_kind(wandb_runs[0], 'run')[0].run_id}.wandb"


def test_wandb_has_every_epoch_once_and_the_test_at_the_end(sweep, wandb_runs):
    for seed, found in wandb_runs.items():
        rows = [values(history.item) for history in of_kind(found, "history")]
        assert [row["epoch"] for row in rows if "epoch" in row] == EPOCHS
        assert {"train/loss", "train/acc", "val/loss", "val/acc", "lr", "epoch_seconds"} <= rows[0].keys()
        summary = json.loads((runs(sweep)[seed] / "summary.json").read_text())
        assert rows[-1]["test/acc"] == summary["metrics"]["test/acc"]
        assert of_kind(found, "exit")[-1].exit_code == 0


def test_wandb_knows_the_settings_before_the_first_epoch(sweep, wandb_runs):
    for seed, found in wandb_runs.items():
        kinds = [record.WhichOneof("record_type") for record in found]
        assert kinds.index("config") < kinds.index("history")
        config = values(of_kind(found, "config")[0].update)
        assert (config["seed"], config["model"], config["optim.lr"]) == (abs(seed), "linear", 0.01)
        assert config["path"] == str(runs(sweep)[seed]).removesuffix(".old1")


# ------------------------------------------------------------------------------------------------------- MLflow


@pytest.fixture(scope="module")
def mlflow_runs(sweep) -> tuple[Any, dict[str, Any]]:
    """A client, and the runs by our id."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.tracking import MlflowClient

        client = MlflowClient(f"file:{sweep}/mlruns")
    experiment = client.get_experiment_by_name("cnnlab")
    return client, {run.data.tags["cnnlab.run"]: run for run in client.search_runs([experiment.experiment_id])}


def test_mlflow_has_each_run_once_with_every_epoch_once(sweep, mlflow_runs):
    client, found = mlflow_runs
    assert len(found) == 3
    for seed, path in runs(sweep).items():
        summary = json.loads((path / "summary.json").read_text())
        run = found[summary["id"]]
        assert (run.info.run_name, run.info.status) == (path.name.removesuffix(".old1"), "FINISHED")
        for metric in ("train/loss", "val/acc", "lr"):
            assert [point.step for point in client.get_metric_history(run.info.run_id, metric)] == EPOCHS
        assert [point.value for point in client.get_metric_history(run.info.run_id, "test/acc")] == [
            summary["metrics"]["test/acc"]
        ]
        assert (run.data.params["seed"], run.data.params["model"]) == (str(abs(seed)), "linear")
        assert run.data.tags["cnnlab.path"] == run.data.params["path"] == str(path).removesuffix(".old1")
