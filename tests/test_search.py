"""The search: what it proposes, that it goes on where it was, and that it bears runs that fail."""

import re
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState
from test_report import make_run

from cnnlab.config.options import UserError
from cnnlab.launch.search import Search
from cnnlab.report.runs import find, read
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.signals import should_prune

SPACE = (
    "optim.lr=tag(log,interval(0.001,0.1))",
    "batch_size=choice(32,64)",
    "model.hidden=int(interval(50,500))",
    "sched=exponential",
    "aug=none,[crop_flip,cutmix]",
)


def search(*overrides: str, seed: int = 0, prune_after: int | None = None) -> Search:
    return Search(OverridesParser.create().parse_overrides(list(overrides)), seed, prune_after)


def test_the_space_is_what_hydra_reads():
    made = search(*SPACE)
    assert made.fixed == ["sched=exponential"]
    proposed = [made.propose()[0].params for _ in range(40)]
    rates = [params["optim.lr"] for params in proposed]
    assert all(0.001 <= rate <= 0.1 for rate in rates)
    assert 10 < sum(rate < 0.01 for rate in rates) < 30  # half of a logarithmic scale
    assert {params["batch_size"] for params in proposed} == {"32", "64"}
    assert {params["aug"] for params in proposed} == {"none", "[crop_flip,cutmix]"}
    assert all(isinstance(params["model.hidden"], int) and 50 <= params["model.hidden"] <= 500 for params in proposed)


def test_the_ready_space_gives_way_to_what_is_typed(composed_search):
    keys = composed_search().varied.keys()
    assert keys == {"optim.lr", "batch_size", "model.dropout", "sched.gamma"}
    assert composed_search("sched=cosine").varied.keys() == keys - {"sched.gamma"}
    assert composed_search("model=linear", "++batch_size=128").varied.keys() == keys - {"model.dropout", "batch_size"}
    narrowed = composed_search("optim.lr=interval(0.01,0.02)")
    assert narrowed.space["optim.lr"].low == 0.01
    assert composed_search("hydra.sweeper.params=null", "optim=glob(*)").space["optim"].choices[0] == "adadelta"


@pytest.fixture
def composed_search():
    """The search of `python train.py -m hydra/sweeper=optuna WORDS`."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from cnnlab.config.options import CONF
    from cnnlab.launch.search import of_config

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: of_config(
            GlobalHydra.instance()
            .config_loader()
            .load_configuration("train", ["hydra/sweeper=optuna", *words], run_mode=RunMode.MULTIRUN)
        )


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("decay=interval(0.99,0.9999)", {0.99: "0.99", 0.9999: "0.9999", 0.99876543: "0.99877", 0.99989999: "0.9999"}),
        ("lr=tag(log,interval(0.0001,1))", {0.000123456: "0.000123", 0.99999: "1", 1.0: "1"}),
        ("p=interval(0,0.5)", {0.0: "0", 0.123456: "0.123", 0.49999: "0.5"}),
        ("h=int(interval(5,500))", {73: "73"}),
    ],
)
def test_values_have_a_readable_length_and_stay_within(typed, values):
    made = search(typed)
    key = typed.partition("=")[0]
    assert {value: made.overrides({key: value})[0].partition("=")[2] for value in values} == values


def test_corners_are_checked_before_the_first_run():
    made = search("optim.lr=interval(0.001,0.1)", "batch_size=choice(32,64,128)", "sched=exponential")
    assert made.corners() == [
        ["sched=exponential", "optim.lr=0.001", "batch_size=32"],
        ["sched=exponential", "optim.lr=0.1", "batch_size=32"],
        ["sched=exponential", "optim.lr=0.0505", "batch_size=32"],
        ["sched=exponential", "optim.lr=0.001", "batch_size=64"],
        ["sched=exponential", "optim.lr=0.001", "batch_size=128"],
    ]


def finished(folder: Path, accuracies: list[float], **more) -> RunDirectory:
    """The files of a run with these accuracies on held-out images."""
    run = RunDirectory(make_run(folder / str(len(list(folder.iterdir()))), 0, accuracies[-1], **more))
    rows = [{"epoch": epoch, "val/acc": value} for epoch, value in enumerate(accuracies, start=1)]
    run.write_metrics(rows)
    return run


def test_a_search_goes_where_it_is_better(tmp_path):
    """Accuracy is highest at a rate of 0.01: trials come to it."""
    made = search("optim.lr=tag(log,interval(0.0001,1))")
    rates = []
    for _ in range(40):
        trial, [typed] = made.propose()
        rates.append(float(typed.removeprefix("optim.lr=")))
        accuracy = 1 - abs(rates[-1] - 0.01) / (rates[-1] + 0.01)
        made.conclude(trial, finished(tmp_path, [accuracy]))
    first, last = (sum(0.003 < rate < 0.03 for rate in part) for part in (rates[:10], rates[-10:]))
    assert last > first
    assert last >= 6


@pytest.mark.parametrize(("accuracy", "given_up"), [(0.3, True), (0.6, False)])
def test_what_is_worse_than_half_of_the_others_is_given_up(tmp_path, accuracy, given_up):
    made = search("optim.lr=interval(0.001,0.1)", prune_after=2)
    for place in range(5):
        trial, _ = made.propose()
        made.conclude(trial, finished(tmp_path, [0.2, 0.4 + 0.05 * place, 0.9]))
    trial, _ = made.propose()
    rows = [{"epoch": 1, "val/acc": 0.1}, {"epoch": 2, "val/acc": accuracy}]
    assert not should_prune(rows)  # no search is watching
    with made.watching(trial):
        assert not should_prune(rows[:1])
        assert should_prune(rows) == given_up
    assert not should_prune(rows)


def test_a_run_that_was_given_up_counts_so_though_it_was_finished_later(tmp_path):
    made = search("optim.lr=interval(0.001,0.1)", prune_after=2)
    for _ in range(5):
        trial, _ = made.propose()
        made.conclude(trial, finished(tmp_path, [0.2, 0.5, 0.9]))
    trial, _ = made.propose()
    assert not made.would_have_been_pruned(trial, RunDirectory(tmp_path / "new"))
    assert made.would_have_been_pruned(trial, finished(tmp_path, [0.2, 0.3, 0.95]))
    made.prune(trial)
    last, _ = made.propose()
    assert not made.would_have_been_pruned(last, finished(tmp_path, [0.6, 0.6, 0.1]))  # the last epoch is no reason
    assert made.study.trials[trial.number].intermediate_values == {1: 0.2, 2: 0.3}


def test_diverged_and_failed_runs_are_told_apart(tmp_path):
    made = search("optim.lr=interval(0.001,0.1)")
    for error in ("DivergedError", "Pruned", "MemoryError"):
        trial, _ = made.propose()
        made.conclude(trial, finished(tmp_path, [0.5], status="failed", error={"type": error, "message": ""}))
    made.conclude(made.propose()[0], RunDirectory(tmp_path / "refused"))
    states = [trial.state for trial in made.study.trials]
    assert states == [TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]


def test_mistakes_are_one_paragraph(command, monkeypatch):
    for words, said in (
        (("optim.lr=tag(log,interval(0.001,-1))",), "optim.lr"),
        (("batch_size=choice(32,999999)",), "batch_size=999999 is larger than"),
        (("val_fraction=0",), "val_fraction=0 is not possible"),
        (("plan=true",), "there is no plan to show"),
        (("hydra.sweeper.num_trials=0",), "num_trials=0 is not allowed"),
        (("hydra.sweeper.prune_after=-1",), "prune_after=-1 is not allowed"),
        (("seed=range(3)",), "does not vary the seed"),
        (("++seed=1,2",), "does not vary the seed"),
        (("optim.weight_decay=tag(log,interval(0,0.1))",), "cannot be searched"),
        (("optim.lr=interval(0.1,0.001)",), "cannot be searched"),
        (("batch_size=interval(16,64)",), "is not a whole number"),
        (("val_fraction=0.1,0",), "val_fraction=0 is not possible"),
        (("trainer=ddp",), "trainer.devices=1"),
    ):
        result = command("-X", "importtime", "train.py", "-m", "hydra/sweeper=optuna", "data=shapes", *words)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr[-500:]
        errors = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
        assert len(errors) == 1
        assert said in errors[0]
        assert " torch\n" not in result.stderr
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        search("optim.lr=interval(0.001,0.1)")


def test_a_search_ends_in_a_report_and_bears_bad_runs(command, tmp_path):
    """Of three rates one diverges."""
    words = (
        *("train.py", "-m", "hydra/sweeper=optuna", "hydra.sweeper.params=null", "hydra.sweeper.num_trials=4"),
        "hydra.sweeper.seed=2",
        *("data=shapes", "data.num_train=400", "data.num_test=100", "data.image_size=16", "model.channels=[8,8,8]"),
        *("optim=adam", "optim.lr=choice(0.00001,0.005,1e30)", "model.dropout=interval(0,0.3)", "batch_size=10"),
        *("trainer.max_epochs=4", "trainer.accelerator=cpu"),
    )
    result = command(*words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(
        r"has the highest validation accuracy: .*\nReport: outputs/runs/report-\S+/report.html", result.stdout
    )
    runs, _ = read(find([tmp_path / "outputs"]))
    assert {run.summary.get("error", {}).get("type") for run in runs} == {None, "DivergedError"}
    assert result.stdout.count("diverged: outputs") == sum(not run.done for run in runs)
