"""The search: what it proposes, that it goes on where it was, and that it bears runs that fail."""

import re
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import TrialState
from test_report import make_run

from cnnlab.config import UserError
from cnnlab.records import RunDirectory
from cnnlab.report.runs import find, read
from cnnlab.search import Search, hopeless

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


def test_corners_are_checked_before_the_first_run():
    made = search("optim.lr=interval(0.001,0.1)", "batch_size=choice(32,64,128)", "sched=exponential")
    assert made.corners() == [
        ["sched=exponential", "optim.lr=0.001", "batch_size=32"],
        ["sched=exponential", "optim.lr=0.1", "batch_size=32"],
        ["sched=exponential", "optim.lr=0.001", "batch_size=64"],
        ["sched=exponential", "optim.lr=0.001", "batch_size=128"],
    ]


def finished(folder: Path, accuracies: list[float], **more) -> RunDirectory:
    """The files of a run with these accuracies on held-out images."""
    run = RunDirectory(make_run(folder / str(len(list(folder.iterdir()))), 0, accuracies[-1], **more))
    rows = [{"epoch": epoch, "val/acc": value} for epoch, value in enumerate(accuracies, start=1)]
    run.write_metrics(rows, list(rows[0]))
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
    assert not hopeless(rows)  # no search is watching
    with made.watching(trial):
        assert not hopeless(rows[:1])
        assert hopeless(rows) == given_up
        assert hopeless(rows) == given_up  # asked again after a kill
    assert not hopeless(rows)


def test_diverged_and_failed_runs_are_told_apart(tmp_path):
    made = search("optim.lr=interval(0.001,0.1)")
    for error in ("DivergedError", "Pruned", "MemoryError"):
        trial, _ = made.propose()
        made.conclude(trial, finished(tmp_path, [0.5], status="failed", error={"type": error, "message": ""}))
    states = [trial.state for trial in made.study.trials]
    assert states == [TrialState.PRUNED, TrialState.PRUNED, TrialState.FAIL]


def test_mistakes_are_one_paragraph(command, monkeypatch):
    for words, said in (
        (("optim.lr=tag(log,interval(0.001,-1))",), "optim.lr"),
        (("batch_size=choice(32,999999)",), "batch_size=999999 is larger than"),
        (("val_fraction=0",), "there are none"),
        (("plan=true",), "there is no plan to show"),
        (("hydra.sweeper.num_trials=0",), "num_trials=0 is not allowed"),
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
    assert re.search(r" has the highest.*\nReport: outputs/runs/report-\w+/report.html", result.stdout)
    runs, _ = read(find([tmp_path / "outputs"]))
    assert {run.summary.get("error", {}).get("type") for run in runs} == {None, "DivergedError"}
    assert result.stdout.count("failed: outputs") == sum(not run.done for run in runs)
