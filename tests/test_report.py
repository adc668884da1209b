"""The statistics against SciPy and by simulation, the report against runs with known answers, the page in a browser."""

import io
import math
import os
import re
import socket
import time
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cnnlab.config.identity import configuration, run_path
from cnnlab.config.options import UserError
from cnnlab.report import compare, figures, page, run_figures, tables
from cnnlab.report.answer import answer
from cnnlab.report.effects import effects
from cnnlab.report.listing import handle, labels, print_list, print_table
from cnnlab.report.plan import past_speeds
from cnnlab.report.runs import find, read, short_names
from cnnlab.report.sections import document
from cnnlab.report.statistics import estimate, mcnemar
from cnnlab.report.sweep import Sweep
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.named import named

VALUES = [0.71, 0.74, 0.69, 0.75]
DATA = {"classes": ["cat", "dog"], "task": "multiclass", "fingerprint": "f" * 64, "num_train": 90}


# --------------------------------------------------------------------------------------------------------- statistics


def test_the_interval_is_students_t():
    made = estimate(VALUES)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(VALUES), scale=stats.sem(VALUES))
    assert (made.low, made.high) == pytest.approx((low, high))
    assert (made.num, made.std) == (4, pytest.approx(np.std(VALUES, ddof=1)))
    assert math.isinf(estimate([0.5]).half_width)


def test_the_interval_covers_the_truth_in_95_of_100_cases():
    generator = np.random.default_rng(0)
    covered = [
        abs((made := estimate(sample)).mean - 0.7) <= made.half_width
        for sample in generator.normal(0.7, 0.02, (4000, 3))
    ]
    assert stats.binomtest(sum(covered), 4000, 0.95).pvalue > 1e-3


@pytest.mark.parametrize(
    ("kept", "typed", "same"),
    [
        ("0.001", "1e-3", True),
        ("crop_flip+cutmix", "[cutmix,crop_flip]", True),
        ("crop_flip", "crop_flip", True),
        ("crop_flip", "[crop_flip]", True),
        ("0.001", "0.01", False),
        ("crop_flip+cutmix", "cutmix", False),
    ],
)
def test_settings_are_found_however_they_are_typed(kept, typed, same):
    assert compare.same(kept, typed) is same


def test_mcnemar_counts_images_that_only_one_has_right():
    labels = np.zeros(100, dtype=np.uint8)
    first, second = labels.copy(), labels.copy()
    first[:10] = 1  # wrong on ten
    second[5:30] = 1  # wrong on 25, five of them the same
    assert mcnemar(first, second, labels) == (20, 5, pytest.approx(stats.binomtest(20, 25, 0.5).pvalue))
    assert mcnemar(labels, labels, labels) == (0, 0, 1)


# ------------------------------------------------------------------------------------------------------------- reports


def make_run(
    folder: Path, seed: int, accuracy: float, choices: dict | None = None, test: float | None = None, **more
) -> Path:
    """The files of a finished run of three epochs.

    accuracy: on held-out images; test: on test images, the same by default.
    """
    test = accuracy if test is None else test
    choices = {"data": "shapes", "norm": "none", "aug": "none", "optim": "sgd"} | (choices or {})
    changes = more.pop("changes", {}) | {"seed": seed}
    name = "-".join([*choices.values(), *map(str, changes.values())])
    run = RunDirectory(folder / name)
    run.path.mkdir(parents=True)
    wrong = round(200 * (1 - test))
    summary = {
        "run": name,
        "status": "done",
        "choices": choices,
        "changes": changes,
        "seed": seed,
        "overrides": [*(f"{group}={option}" for group, option in choices.items()), f"seed={seed}", "launcher=local"],
        "selected_on": "val/acc",
        "select_mode": "max",
        "best_epoch": 3,
        "epochs_done": 3,
        "metrics": {"test/acc": test, "val/acc": accuracy, "test/loss": 1 - test},
        "metric_bounds": {"acc": {"low": 0.0, "high": 1.0}},
        "train_seconds": 60.0,
        "images_per_second": 1000.0,
        "num_weights": 10,
        "data": DATA,
        "environment": {"device": "cpu", "precision": "32-true", "torch": "2.15.0"},
        "code_digest": "c" * 64,
    }
    run.write_summary(summary | more)
    labels = np.repeat([0, 1], 100)
    run.write_predictions(labels, np.where(np.arange(200) < wrong, 1, labels), np.ones(200))
    rows = [
        {
            "epoch": epoch,
            "train/loss": 2 / epoch,
            "train/acc": 0.2 * epoch,
            "val/loss": 2 / epoch,
            "val/acc": 0.2 * epoch,
        }
        for epoch in (1, 2, 3)
    ]
    run.write_metrics(rows)
    return run.path


def sweep_of(folder: Path) -> Sweep:
    return Sweep(*read(find([folder])))


@pytest.fixture
def two_by_two(tmp_path: Path) -> Path:
    """Adam is better by 0.1, cutmix worse by 0.05, both for three seeds."""
    for seed, noise in enumerate((0.0, 0.01, -0.01)):
        for optim, gain in (("sgd", 0.0), ("adam", 0.1)):
            for aug, loss in (("none", 0.0), ("cutmix", 0.05)):
                jitter = 0.002 * ((seed + len(aug)) % 3)
                make_run(tmp_path, seed, 0.6 + gain - loss + noise + jitter, {"optim": optim, "aug": aug})
    return tmp_path


def test_long_paths_are_named_by_their_last_parts_where_these_differ(tmp_path):
    for number, (kept, others) in enumerate((("a.pt", "b.pt"), ("a/w.pt", "b/w.pt"))):
        paths = [f"/a/folder/with/a/long/name/{name}" for name in (kept, others)]
        runs = (
            make_run(tmp_path / f"{number}{at}", seed, 0.8 + at / 10, changes={"weights": path})
            for at, path in enumerate(paths)
            for seed in (0, 1)
        )
        found = Sweep(*read(runs))
        shown = ["b.pt", "a.pt"] if number == 0 else paths[::-1]
        assert [found.label(place.setting) for place in found.ranking] == [f"weights={name}" for name in shown]
        assert f"Which weights ({', '.join(shown[::-1])}) gives" in found.question()


def test_a_mean_over_seeds_ends_where_the_first_seed_stopped(tmp_path):
    for seed, num in enumerate((6, 3)):
        for optim in ("sgd", "adam"):
            run = RunDirectory(make_run(tmp_path, seed, 0.9 - 0.4 * seed, {"optim": optim}))
            rows = [{"epoch": epoch + 1, "val/acc": 0.9 - 0.4 * seed, "val/loss": 1.0} for epoch in range(num)]
            run.write_metrics(rows if optim == "sgd" else rows[:2])
    figure = next(figure for figure in document(sweep_of(tmp_path)).figures() if figure.name == "curves")
    curve = next(line for line in figure.chart["lines"] if line["name"] == "optim=sgd")
    assert curve["epochs"] == [1, 2, 3]
    assert curve["values"]["acc"]["held out"] == {"mean": [70.0] * 3, "low": [50.0] * 3, "high": [90.0] * 3}
    assert figure.caption.endswith("bands span all seeds. A line ends where the first of its seeds stopped.")


def test_names_in_sentences_are_as_short_as_they_can_be(tmp_path, monkeypatch):
    paths = ["optim.lr", "aug.cutmix.alpha", "aug.mixup.alpha", "aug", "model.seed", "seed"]
    short = ["lr", "cutmix.alpha", "mixup.alpha", "aug", "model.seed", "seed"]
    assert list(short_names(paths).values()) == short
    for cutmix in (0.2, 1.0):
        for mixup in (0.2, 1.0):
            make_run(tmp_path, 0, 0.5 + cutmix * mixup / 3, changes={paths[1]: cutmix, paths[2]: mixup})
    sweep = sweep_of(tmp_path)
    assert sweep.question().startswith("Which cutmix.alpha (0.2, 1.0) and which mixup.alpha (0.2, 1.0) gives")
    assert answer(sweep).startswith("cutmix.alpha=1.0, mixup.alpha=1.0 has the highest")
    assert labels(sweep.runs)[0] == "cutmix.alpha=0.2 mixup.alpha=0.2"
    monkeypatch.setattr(page, "write", lambda sweep, folder, latex: folder / "report.html")
    written = page.write_beside(sweep, [run.path for run in sweep.runs])
    assert written.parent.name.startswith("report-cutmix.alpha=0.2+1.0-mixup.alpha=0.2+1.0-")


def test_question_answer_and_ranking(two_by_two):
    sweep = sweep_of(two_by_two)
    assert (
        sweep.question()
        == "Which aug (cutmix, none) and which optim (adam, sgd) gives the highest validation accuracy?"
    )
    assert [sweep.label(place.setting) for place in sweep.ranking] == [
        "aug=none, optim=adam",
        "aug=cutmix, optim=adam",
        "aug=none, optim=sgd",
        "aug=cutmix, optim=sgd",
    ]
    best = sweep.ranking[0].score
    assert (best.num, best.mean) == (3, pytest.approx(0.702))
    assert answer(sweep).startswith(
        "aug=none, optim=adam has the highest validation accuracy: 70.20% (95% CI 66.45 to 73.95, n = 3); its test "
        "accuracy is 70.20% (95% CI 67.22 to 73.18, n = 3). It is better than all 3 others; aug=cutmix, optim=adam is "
        "5.00 points behind (4.19 to 5.81)."
    )
    found = {effect.value: effect for effect in effects(sweep, "optim")}
    assert found["adam"].change.mean == pytest.approx(0.1)  # sgd is the default
    assert found["adam"].combinations == ["aug=cutmix", "aug=none"]


@pytest.mark.parametrize("higher", [True, False])
def test_of_equal_settings_the_same_one_is_the_first_everywhere(tmp_path, capsys, higher):
    """The sweep reads its runs in the order of its jobs, the report and `best` in that of their names."""
    more = {"select_mode": "max" if higher else "min"}
    paths = [
        make_run(tmp_path, seed, score, {"optim": optim}, **more)
        for optim, scores in (("sgd", (0.1, 0.2, 0.3)), ("adam", (0.3, 0.2, 0.1)))
        for seed, score in enumerate(scores)
    ]
    for order in (paths, paths[::-1], list(find([tmp_path]))):
        found = Sweep(*read(order))
        assert [found.label(place.setting) for place in found.ranking] == ["optim=adam", "optim=sgd"]
        assert answer(found).startswith("optim=adam has the ")
    for order in (paths, paths[::-1]):
        print_table(order)
        rows = [line for line in capsys.readouterr().out.splitlines() if re.search("sgd|adam", line)]
        assert "adam" in rows[0]
        assert "sgd" in rows[1]
    assert "-adam-" in named("best", tmp_path).name


def test_what_cannot_be_told_apart_is_said(tmp_path):
    for seed, noise in enumerate((0.02, -0.03, 0.01)):
        make_run(tmp_path, seed, 0.7 + noise, {"aug": "none"})
        make_run(tmp_path, seed, 0.7 - noise, {"aug": "cutmix"})
    assert "It cannot be distinguished from aug=none, which may be as good" in answer(sweep_of(tmp_path))


def test_one_run_of_each_is_no_answer_over_seeds(tmp_path):
    make_run(tmp_path, 0, 0.7, {"aug": "none"})
    make_run(tmp_path, 0, 0.6, {"aug": "cutmix"})
    assert "one run of a setting does not show whether other seeds would reverse that" in answer(sweep_of(tmp_path))


@pytest.mark.parametrize(
    "other",
    [
        {"code_digest": "d" * 64},
        {"data": DATA | {"fingerprint": "e" * 64}},
        {"environment": {"device": "cpu", "precision": "bf16-mixed", "torch": "2.15.0"}},
        {"environment": {"device": "cpu", "precision": "32-true", "torch": "2.15.0", "lightning": "2.6.0"}},
        {"data": DATA | {"num_held_out": 10}},
        {"data": DATA | {"num_test": 100}},
        {"changes": {"optim.lr": 0.5}},
    ],
    ids=["code", "data", "precision", "lightning", "held out", "test", "knob"],
)
def test_only_seeds_are_averaged_over(tmp_path, other):
    make_run(tmp_path, 0, 0.7)
    make_run(tmp_path, 1, 0.8, **other)
    sweep = sweep_of(tmp_path)
    assert [place.score.num for place in sweep.ranking] == [1, 1]
    assert len({sweep.label(place.setting) for place in sweep.ranking}) == 2


def test_runs_of_other_configurations_are_not_averaged_whatever_their_settings_say(tmp_path):
    for seed, setting in enumerate(("a" * 64, "a" * 64, "b" * 64)):  # an option's file was edited before the last one
        make_run(tmp_path, seed, 0.5 + 0.1 * seed, setting=setting)
    sweep = sweep_of(tmp_path)
    assert sorted(place.score.num for place in sweep.ranking) == [1, 2]
    assert "configuration=bbbbbbbbbbbb has the highest" in answer(sweep)
    assert "configuration: aaaaaaaaaaaa, bbbbbbbbbbbb" in page.markdown(document(sweep)) + page.html(document(sweep))


def test_another_setting_is_another_configuration_and_no_more_is_said_of_it(tmp_path):
    first, second = (
        make_run(tmp_path, 0, 0.5, {"optim": name}, setting=name, data=DATA | {"num_held_out": len(name)})
        for name in ("sgd", "adam")
    )
    sweep = sweep_of(tmp_path)
    assert (sweep.axes, sweep.warnings) == (["optim"], [])
    assert compare.names(*(compare.chosen(str(run), tmp_path) for run in (first, second))) == [
        "optim=sgd",
        "optim=adam",
    ]


def test_before_and_after_a_change_of_the_code(tmp_path, command):
    for seed, accuracy in enumerate((0.70, 0.71)):
        make_run(tmp_path / "before", seed, accuracy)
        make_run(tmp_path / "after", seed, accuracy + 0.05, code_digest="d" * 64)
    result = command("-m", "cnnlab", "compare", "after", "before", "--out", "pictures/c.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("code=dddddddddddd: validation accuracy 75.50% (")
    assert (tmp_path / "pictures" / "c.png").exists()
    both = command("-m", "cnnlab", "report", "before", str(tmp_path / "after"))
    assert "code=dddddddddddd has the highest" in both.stdout, both.stderr


def test_what_trains_a_setting_again_has_no_words_about_how(two_by_two):
    for command in tables.commands(sweep_of(two_by_two)):
        assert command.startswith("python train.py -m ")
        assert "launcher" not in command
        assert command.count("seed=") == 1
    prefixed = ["optim=sgd", "++optim.lr=0.1", "~sched.milestones", "++seed=0", "+launcher=local"]
    make_run(two_by_two / "prefixed", 7, 0.5, overrides=prefixed)
    [command] = tables.commands(sweep_of(two_by_two / "prefixed"))
    assert command == "python train.py optim=sgd ++optim.lr=0.1 '~sched.milestones' seed=7"


def test_a_class_without_test_images_has_no_accuracy(tmp_path):
    run = RunDirectory(make_run(tmp_path, 0, 0.9, data=DATA | {"classes": ["ant", "bee", "cat"]}))
    labels = np.array([1] * 4 + [2] * 4)
    run.write_predictions(labels, np.array([1, 1, 1, 2] + [2] * 4), np.ones(8))
    assert tables.per_class_table(sweep_of(tmp_path))[1:] == [
        ["bee", "75.00", "cat (25.0%)"],
        ["cat", "100.00", "-"],
        ["ant", "-", "-"],
    ]


def test_a_default_is_a_value_too(tmp_path):
    """Rates 0.01, the default, and 0.1; the figures of the report have both."""
    for seed in (0, 1):
        for rate, accuracy in ((None, 0.6), (0.1, 0.7)):
            path = make_run(tmp_path, seed, accuracy + 0.01 * seed, changes={"optim.lr": rate} if rate else {})
            (path / ".hydra").mkdir()
            (path / ".hydra" / "config.yaml").write_text(f"optim: {{lr: {rate or 0.01}}}\nseed: {seed}\n")
    sweep = sweep_of(tmp_path)
    assert sweep.values("optim.lr") == ["0.01", "0.1"]
    head, *rows = tables.runs_table(sweep)
    assert sorted(row[head.index("optim.lr")] for row in rows) == ["0.01", "0.01", "0.1", "0.1"]
    assert sweep.question() == "Which lr (0.01, 0.1) gives the highest validation accuracy?"
    figures = {figure.name: figure for figure in document(sweep).figures()}
    assert [point["x"] for point in figures["axis-1"].chart["points"]] == [0.01, 0.1]
    lines = figures["axis-1-curves"].chart["lines"]
    assert [line["name"] for line in lines] == ["optim.lr=0.01", "optim.lr=0.1"]
    assert lines[0]["values"]["loss"]["training"]["mean"] == pytest.approx([2, 1, 2 / 3], rel=1e-4)


@pytest.mark.parametrize(
    ("logged", "first"), [("val/loss", "Loss"), ("train/loss", "Loss"), ("val/f1", "Accuracy (%)")]
)
def test_curves_are_of_what_was_logged_and_have_a_legend(tmp_path, logged, first):
    for rate in (0.01, 0.1):
        run = RunDirectory(make_run(tmp_path, 0, 0.6 + rate, changes={"optim.lr": rate}))
        run.write_metrics([{"epoch": epoch, "val/acc": 0.6 + rate, logged: 1.0} for epoch in (1, 2)])
    found = next(figure for figure in document(sweep_of(tmp_path)).figures() if figure.name == "axis-1-curves")
    assert found.caption.startswith(f"{first} over epochs for every value of optim.lr.")
    [legend] = figures._curves(found.chart).legends
    assert [text.get_text() for text in legend.get_texts()] == ["optim.lr=0.01", "optim.lr=0.1"]


def test_bad_directories_are_named_and_left_out(two_by_two):
    half, foreign, old = (two_by_two / name for name in ("half", "foreign", "old"))
    for folder, text in ((half, '{"run": "x", "sta'), (foreign, '{"a": 1}'), (old, '{"run": "o", "status": "done"}')):
        folder.mkdir()
        (folder / "summary.json").write_text(text)
    failed = make_run(
        two_by_two, 9, 0.9, status="failed", error={"type": "DivergedError", "message": "train/loss is nan"}
    )
    make_run(two_by_two, 8, 0.9, status="interrupted")
    sweep = sweep_of(two_by_two)
    assert sweep.ranking[0].score.num == 3
    lines = "\n".join(tables.left_out(sweep))
    for words in (
        "half: left out: ",
        "foreign: left out: ",
        "old: left out: ",
        f"{failed.name}: diverged: DivergedError",
    ):
        assert words in lines
    assert "interrupted" in lines


def test_a_thousand_runs_without_torch(tmp_path, command):
    for number in range(1000):
        lr = 0.01 * (1 + number // 10)
        make_run(tmp_path / "runs", number % 10, 0.5 + 1e-4 * number, changes={"optim.lr": lr})
    result = command("-X", "importtime", "-m", "cnnlab", "report", "runs")
    assert result.returncode == 0, result.stderr
    assert " torch\n" not in result.stderr
    assert "Warning" not in result.stderr
    assert "lr=1.0 has the highest validation accuracy: 59.95%" in result.stdout


def test_wrong_folders_are_one_paragraph(command, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, words in (("nowhere", "is no folder"), ("empty", "There is no run")):
        result = command("-m", "cnnlab", "report", folder)
        assert result.returncode == 2
        assert words in result.stderr
        assert "Traceback" not in result.stderr


# ---------------------------------------------------------------------------------------------------------- comparison


def test_comparison_in_three_lines(two_by_two, command, tmp_path):
    for path in find([two_by_two]):
        right = 90 if "adam" in path.name else 80
        predicted = np.array([0] * right + [1] * (100 - right))
        RunDirectory(path).write_predictions(np.zeros(100, dtype=np.int64), predicted, np.ones(100))
    result = command("-m", "cnnlab", "compare", "optim=adam,aug=none", "optim=sgd,aug=none", "--runs", str(two_by_two))
    assert result.returncode == 0, result.stderr
    first, second, third, curves = result.stdout.splitlines()
    assert curves == "Curves: compare.png"
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.size == (1100, 418)
    assert first.startswith("optim=adam: validation accuracy 70.20% (")
    assert "Difference in validation accuracy: +10.00 points (95%: " in second
    expected = stats.binomtest(10, 10, 0.5).pvalue  # of one seed: the images of all three are the same
    assert third.startswith(
        "Would these trained networks differ on other images? Image by image (100 test images, mean of 3 seeds): 10 "
        "images are correct only with the first, 0 only with the second"
    )
    assert f"p = {expected:.2g})" in third


def test_comparison_refuses_what_differs_in_more_than_the_seed(two_by_two):
    with pytest.raises(UserError, match="aug=none names 6 runs that differ in more than their seed: optim"):
        compare.chosen("aug=none", two_by_two)
    with pytest.raises(UserError, match="names no finished run"):
        compare.chosen("aug=mixup", two_by_two)


# ---------------------------------------------------------------------------------------------------------------- plan


def test_plan_shows_what_is_done_and_trains_nothing(command, tmp_path):
    sweep = ("train.py", "-m", "data=shapes", "optim=sgd,adam", "optim.lr=0.1,0.1", "trainer.max_epochs=7", "plan=true")
    first = command("-X", "importtime", *sweep, COLUMNS="200")
    assert first.returncode == 0, first.stderr
    assert " torch\n" not in first.stderr
    assert not (tmp_path / "outputs").exists()
    assert first.stdout.count("new, given 2 times") == 2
    assert "14 epochs to train, time not known yet." in first.stdout
    assert "2 runs, all with data=shapes optim.lr=0.1 trainer.max_epochs=7" in " ".join(first.stdout.split())
    [handle] = re.findall(r"optim=adam .* ([0-9a-f]{8})", first.stdout)
    name = run_path(configuration(["data=shapes", "optim=adam", "optim.lr=0.1", "trainer.max_epochs=7"])).name
    assert name.endswith(handle)
    path = make_run(tmp_path / "outputs" / "runs", 0, 0.7, {"model": "cnn"})
    path.rename(path.with_name(name))
    again = command(*sweep, COLUMNS="200")
    assert re.search(rf"optim=adam .* done, given 2 times .* 0 .*{handle}", again.stdout)
    assert "7 epochs to train, about 1 min 3 s at the speed of past runs here." in again.stdout  # 7 x 9,000 / 1,000
    assert "14 epochs to train" in command(*sweep, "rerun=true").stdout


def test_speeds_of_the_past_are_those_of_the_same_network_in_runs_that_are_not_short(tmp_path):
    few, wide = {"images_per_second": 1.0, "train_seconds": 60.0}, {"changes": {"model.hidden": 7}}
    for number, more in enumerate(({}, few, wide | {"images_per_second": 500.0}, {"images_per_second": 2000.0})):
        make_run(tmp_path / str(number), 0, 0.7, {"model": "cnn"}, **more)
    speeds = past_speeds(tmp_path)
    assert speeds == {("cnn",): 1500.0, ("cnn", ("model.hidden", "7")): 500.0}


def test_without_a_finished_run_the_speed_is_that_of_an_unfinished_one(tmp_path):
    begun = {"status": "interrupted", "train_seconds": 0.0, "images_per_second": 70.0}
    run = RunDirectory(make_run(tmp_path, 0, 0.7, {"model": "cnn"}, **begun))
    (run.path / "metrics.csv").unlink()  # in its first epoch
    assert past_speeds(tmp_path) == {("cnn",): 70.0}
    run.write_metrics([{"epoch": 1, "images_per_second": 60.0}, {"epoch": 2, "images_per_second": 80.0}])
    assert past_speeds(tmp_path) == {("cnn",): 80.0}
    make_run(tmp_path, 1, 0.7, {"model": "cnn"}, images_per_second=1000.0)
    assert past_speeds(tmp_path) == {("cnn",): 1000.0}


def test_plan_of_a_mistake_is_a_mistake(command):
    result = command("train.py", "-m", "optim.lr=0.1,0.2,-1", "plan=true")
    assert (result.returncode, result.stdout) == (2, "")
    assert "optim.lr=-1" in result.stderr


# ---------------------------------------------------------------------------------------------------------------- list


def test_runs_are_listed_newest_first_or_by_a_metric(command, tmp_path):
    for number, accuracy in enumerate((0.5, 0.7, 0.6)):
        run = make_run(tmp_path / "outputs" / "runs", number, accuracy, test=1 - accuracy)
        os.utime(run / "summary.json", (1e9 + 3600 * number,) * 2)
    killed = make_run(tmp_path / "outputs" / "runs", 3, 0.9, status="running", metrics={})
    (killed / ".holder").write_text("process 999999999 on " + socket.gethostname() + " since 2026")
    alive = make_run(tmp_path / "outputs" / "runs", 4, 0.9, status="running", metrics={})
    (alive / ".holder").write_text(f"process {os.getpid()} on {socket.gethostname()} since 2026")

    def listed(*words: str) -> list[str]:
        result = command("-X", "importtime", "-m", "cnnlab", "ls", *words)
        assert result.returncode == 0, result.stderr
        assert " torch\n" not in result.stderr
        return re.findall(r"sgd-(\d) .* (done|killed|running) ", result.stdout)

    assert listed()[2:] == [("2", "done"), ("1", "done"), ("0", "done")]
    assert set(listed()[:2]) == {("3", "killed"), ("4", "running")}
    assert listed("--by", "test/acc") == [("0", "done"), ("2", "done"), ("1", "done")]
    assert listed("--by") == [("1", "done"), ("2", "done"), ("0", "done")]  # by what each was selected by
    assert listed("outputs/runs", "--by", "test/loss", "--num", "1") == [("0", "done")]
    wrong = command("-m", "cnnlab", "ls", "--by", "acc")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Use one of test/acc, test/loss, val/acc." in wrong.stderr


def test_the_status_of_a_failed_run_says_why(tmp_path, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    reason = "the loss could not be computed because there is something wrong with the labels of the images"
    error = {"type": "ValueError", "message": reason}
    failed = make_run(tmp_path / "outputs" / "runs", 0, 0.9, status="failed", metrics={}, error=error)
    assert f"{handle(failed)}: {reason}\n" in verb("status").stdout


def test_links_to_runs_are_followed_once(tmp_path):
    """Also where links form a loop."""
    run = make_run(tmp_path / "elsewhere", 0, 0.5)
    collected = tmp_path / "collected"
    collected.mkdir()
    (collected / "linked").symlink_to(run.parent)
    (collected / "again").symlink_to(run)
    (run.parent / "loop").symlink_to(collected)
    [found] = find([collected])
    assert found.resolve() == run


@pytest.mark.parametrize(
    ("metric", "summary", "first"),
    [
        ("val/acc", {}, "high"),
        ("test/loss", {}, "low"),
        ("test/error", {"selected_on": "val/error", "select_mode": "min"}, "low"),
        ("last/val/error", {"selected_on": "val/error", "select_mode": "min"}, "low"),
        ("last/test/error", {"metric_modes": {"acc": "max", "error": "min"}}, "low"),
        ("test/error", {}, "high"),  # not known
    ],
)
def test_the_best_by_a_metric_is_listed_first(tmp_path, capsys, metric, summary, first):
    for seed, value in enumerate((0.25, 0.75)):
        metrics = {summary.get("selected_on", "val/acc"): 0.5, metric: value}
        make_run(tmp_path, seed, 0.5, {"optim": ("low", "high")[seed]}, metrics=metrics, **summary)
    print_list(tmp_path, metric, 50)
    assert re.findall(r"optim=(\w+)", capsys.readouterr().out)[0] == first


# ------------------------------------------------------------------------------------------------------------- figures


SCRIPTS = ["US$1_$5", "$\\alpha$", "собака", "γάτα", "猫", "🙂", "x" * 80, "two\nlines", "\ud800"]


def test_figures_are_the_same_whatever_matplotlibrc_says(tmp_path):
    counts = np.arange(81).reshape(9, 9)
    run_figures.confusion(tmp_path / "plain.png", counts, SCRIPTS)
    theirs = {"text.usetex": True, "font.family": "Comic Sans MS", "figure.facecolor": "red", "savefig.dpi": 30}
    with matplotlib.rc_context(theirs):
        run_figures.confusion(tmp_path / "theirs.png", counts, SCRIPTS)
    assert (tmp_path / "theirs.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_class_names_are_text_and_those_that_cannot_be_drawn_are_numbers():
    shown = ["US$1_$5", "$\\alpha$", "собака", "γάτα", "#4", "#5", "x" * 23 + "…", "two lines", "#8"]
    assert run_figures.drawable(SCRIPTS) == shown
    with matplotlib.rc_context(run_figures.STYLE):
        figure = run_figures.confusion_figure(np.eye(9), SCRIPTS)
        figure.savefig(io.BytesIO())  # a warning about a missing letter would be an error
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == shown


def test_a_figure_that_cannot_be_drawn_is_a_warning(tmp_path, caplog):
    run_figures.reliability(tmp_path / "missing" / "reliability.png", [(0.5, 0.5, 1)], 0.1)
    assert "reliability.png could not be drawn: FileNotFoundError" in caplog.text


def test_markdown_names_the_classes_that_its_figure_numbers(tmp_path):
    names = ["猫", "dog"]
    make_run(tmp_path, 0, 0.9, data={"classes": names, "fingerprint": "f" * 64, "num_train": 90})
    made = document(sweep_of(tmp_path))
    assert "Classes whose names cannot be drawn with this font: #0 is 猫.\n" in page.markdown(made)
    assert "#0 is" not in page.html(made)  # the page draws the names themselves


def test_a_thousand_classes_have_a_figure_a_page_and_a_summary_that_fit(tmp_path):
    names = [f"n{number:08d}" for number in range(1000)]
    run = RunDirectory(make_run(tmp_path, 0, 0.9, data={"classes": names, "fingerprint": "f" * 64, "num_train": 90}))
    labels = np.repeat(np.arange(1000), 2)
    run.write_predictions(labels, labels[::-1], np.ones(2000))
    assert np.array_equal(run.confusion(1000), np.fliplr(np.eye(1000) * 2))
    begun = time.monotonic()
    run_figures.confusion(run.path / "confusion.png", run.confusion(1000), names)
    text = page.html(document(sweep_of(tmp_path)))
    assert time.monotonic() - begun < 30
    with Image.open(run.path / "confusion.png") as image:
        assert max(image.size) < 2000
    assert len(text) < 2_000_000
    assert text.count("<tr>") < 100
    assert (run.path / "summary.json").stat().st_size < 50_000
