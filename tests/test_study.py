"""The study: formulas by hand, verdicts, what is run and what is not, files that grow, mistakes; small real runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, until

from cnnlab.cli import configuration
from cnnlab.config import UserError, run_path
from cnnlab.records import RunDirectory
from cnnlab.report.statistics import estimate
from study import claims, measures, page, results
from study.__main__ import collect, commands, main, plan
from study.claims import FAILS, HOLDS, UNKNOWN, Finding
from study.results import FACTS, Run
from study.variants import BASELINE, CURVES, ONE_EPOCH, variants

SMALL = (
    *("data=shapes", "data.num_train=300", "data.num_test=50", "num_train_images=null", "trainer.max_epochs=2"),
    *("model.channels=[4,4,4]", "model.hidden=16"),
)
KNOWN = {variant.key: variant for variant in variants()}


def made(test, train=None, variant=BASELINE, seed=0, **facts) -> Run:
    """A run with these accuracies over the epochs; its loss is 1 - accuracy."""
    train = train or test
    rows = [
        {"epoch": epoch, "train/acc": ours, "train/loss": 1 - ours, "test/acc": theirs, "test/loss": 1 - theirs}
        for epoch, (ours, theirs) in enumerate(zip(train, test, strict=True), 1)
    ]
    said = {"variant": variant, "seed": seed, "status": "done", "device": "cpu", "fingerprint": "f"}
    said |= {"last_test_acc": test[-1], "best_test_acc": max(test), "best_epoch": 1, "settings": "val_fraction=0.0"}
    return Run({name: str((said | facts).get(name, "")) for name in FACTS}, rows)


def of(*runs: Run) -> results.Results:
    return results.by_variant(runs)


# ------------------------------------------------------------------------------------------------------------ formulas


def test_roughness_does_not_see_a_slope():
    assert measures.roughness([10, 20, 30, 40]) == 0
    assert measures.roughness([10, 30, 20, 40]) == pytest.approx((15 + 15) / 2)
    assert measures.early_and_late([10, 20, 30, 40, 45, 40]) == (0, pytest.approx(5))


def test_the_target_is_interpolated_and_shared():
    assert measures.epochs_to([10, 20, 40], 30) == pytest.approx(2.5)
    assert measures.epochs_to([50, 60], 30) == 1
    assert measures.epochs_to([10, 20], 30) is None
    slow, fast = made([0.2, 0.4, 0.6]), made([0.6, 0.7, 0.8])  # the target is 0.57
    assert measures.lead(slow, fast) == pytest.approx(2.85 - 1)
    assert measures.lead(made([0.1, 0.1, 0.1]), fast) is None


def test_overfitting_begins_with_the_first_large_gap():
    run = made([0.5, 0.6, 0.62, 0.61], train=[0.4, 0.62, 0.68, 0.75])
    assert measures.onset(run) == 3
    assert measures.loss_rise(run) == (3, pytest.approx(0.01))
    assert measures.onset(made([0.5, 0.6])) is None


def test_the_gap_is_that_of_the_last_weights_on_images_as_they_are():
    assert measures.gap(made([0.5, 0.6], train=[0.3, 0.4], reevaluated_train_acc=0.65)) == pytest.approx(5)
    assert measures.gap(made([0.5, 0.6], train=[0.3, 0.4])) is None


def test_a_curve_that_flattens_at_the_end_is_still_rising():
    assert measures.flattens([30, 50, 59.5, 60, 60.2, 59]) == 3
    assert measures.flattens([10, 20, 30, 40, 50]) is None


def test_what_failed_or_ends_near_guessing_diverges():
    assert measures.diverges(made([0.5], status="diverged"))
    assert measures.diverges(made([0.5, 0.11]))
    assert not measures.diverges(made([0.5, 0.51]))


def test_the_share_of_the_excess_that_averaging_explains():
    run = made([0.4], train=[0.2], reevaluated_train_loss=0.65)  # 0.8 while training, 0.6 on the test images
    assert measures.AVERAGING.of(run) == pytest.approx(0.75)
    assert measures.EXCESS.of(run) == pytest.approx(0.2)


def test_times_are_compared_on_one_device_alone():
    one, other = made([0.5], epoch_seconds=30), made([0.5], epoch_seconds=20)
    assert measures.times_slower(one, other) == pytest.approx(1.5)
    assert measures.times_slower(one, made([0.5], epoch_seconds=20, device="H100")) is None


# ------------------------------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("values", "sign", "verdict"),
    [
        ([1, 1.1, 1.2], 1, HOLDS),
        ([1, 1.1, 1.2], -1, FAILS),
        ([-1, 1, 2], 1, UNKNOWN),
        ([5], 1, UNKNOWN),
        ([0, 0, 0], 1, UNKNOWN),
    ],
)
def test_a_claim_holds_if_the_interval_is_on_its_side(values, sign, verdict):
    assert claims.above(estimate(values), sign=sign) == verdict


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.1, 0, -0.1], HOLDS), ([2, 2.1, 2.2], FAILS), ([-3, 0, 3], UNKNOWN), ([0], UNKNOWN)],
)
def test_settings_are_alike_if_the_interval_is_within_a_point(values, verdict):
    assert claims.alike(estimate(values)) == verdict


def test_differences_are_taken_seed_by_seed():
    """The seeds differ much, the settings little; a seed that only one has counts for nothing."""
    runs = [made([level], seed=seed) for seed, level in enumerate((0.3, 0.5, 0.7))]
    runs += [made([level], variant="fig04", seed=seed) for seed, level in enumerate((0.31, 0.512, 0.711, 0.1))]
    found = claims.more(measures.ACCURACY, "fig04").find(of(*runs))
    assert found == Finding("+1.1 ± 0.2 points", 3, HOLDS)
    one = claims.more(measures.ACCURACY, "fig04").find(of(runs[0], runs[3]))
    assert one == Finding("+1.0 points", 1, UNKNOWN)
    assert claims.more(measures.ACCURACY, "fig04").find({}).num == 0


def test_what_is_seen_must_be_seen_in_every_seed():
    def verdict(*finals: float) -> str:
        runs = (made([0.2, final], variant="lr=0.1", seed=seed) for seed, final in enumerate(finals))
        return claims.DIVERGES.find(of(*runs)).verdict

    assert verdict(0.1, 0.1) == HOLDS
    assert verdict(0.5, 0.5) == FAILS
    assert verdict(0.1, 0.5) == UNKNOWN


def test_larger_batches_are_compared_by_a_straight_line():
    def saw(height: float) -> list[float]:
        return [0.5, 0.5 + height, 0.5, 0.5 + height, 0.5, 0.5 + height]

    runs = [made(saw(0.01 * (5 - place)), variant=key) for place, key in enumerate(CURVES["fig02"].values())]
    way = next(claim.way for claim in claims.CLAIMS if claim.figure == "fig02")
    assert way.find(of(*runs)) == Finding("-1.00 ± 0.00 points", 5, HOLDS)
    assert way.find(of(*(made([0.5], variant=key) for key in CURVES["fig02"].values()))).verdict == UNKNOWN


def test_the_claims_are_in_the_order_of_the_report():
    figures = [claim.figure for claim in claims.CLAIMS]
    assert figures == sorted(figures)
    assert set(figures) == set(CURVES)


def test_the_search_is_ranked_by_held_out_images():
    runs = [made([0.9, value], variant=f"search {key}", epoch_seconds=1) for key, value in (("a", 0.6), ("b", 0.7))]
    for run in runs:
        for row in run.rows:
            row["val/acc"] = row.pop("test/acc")
    rows = [line for line in page.search_table(of(*runs)) if line.startswith("|")]
    assert rows[2:] == ["| b | 70.00 | 70.00 | 1.0 |", "| a | 60.00 | 60.00 | 1.0 |"]
    assert page.search_table(of(made([0.5]))) == []


# --------------------------------------------------------------------------------------------------------- what is run


def test_every_variant_composes_and_is_a_run_of_its_own():
    """`plan` checks every configuration."""
    planned = plan(variants(), ["data=shapes", "name=study"], seeds=1, everything=False)
    assert len({run.path for run in planned}) == len(variants())
    assert {key for curves in CURVES.values() for key in curves.values()} <= KNOWN.keys()


def test_figures_share_the_runs_that_they_have_in_common():
    for words, key in (
        (["experiment=fig02", "batch_size=32"], "lr=0.01"),
        (["experiment=fig02", "batch_size=128"], BASELINE),
    ):
        assert run_path(configuration(words)) == run_path(configuration([*KNOWN[key].words]))


def test_one_seed_of_everything_comes_first_and_neighbours_are_one_sweep():
    planned = plan([KNOWN[key] for key in ("fig03", "fig04", "lr=0.1", ONE_EPOCH)], ["data=shapes"], 2, False)
    assert [" ".join(command) for command in commands(planned, ["data=shapes"])] == [
        "-m data=shapes experiment=fig03,fig04 seed=0",
        "-m data=shapes experiment=fig01 optim.lr=0.1 seed=0",
        "-m data=shapes experiment=fig01 optim.lr=0.01 trainer.max_epochs=1 seed=0",
        "-m data=shapes experiment=fig03,fig04 seed=1",
        "-m data=shapes experiment=fig01 optim.lr=0.01 trainer.max_epochs=1 seed=1",
    ]


# ------------------------------------------------------------------------------------------------------------ the files


def test_files_grow_and_give_back_what_was_written(tmp_path):
    first = made([0.123456789, 0.5], seed=0)
    results.write(tmp_path, [first])
    results.write(tmp_path, [*results.read(tmp_path).values(), made([0.2], seed=1, status="diverged")])
    held = results.read(tmp_path)
    assert list(held) == [(BASELINE, 0), (BASELINE, 1)]
    assert held[BASELINE, 0].facts == first.facts
    assert held[BASELINE, 0].curve("test/acc") == [0.12346, 0.5]
    assert held[BASELINE, 1].failed
    with pytest.raises(UserError, match="different pictures"):
        results.write(tmp_path, [first, made([0.2], seed=1, fingerprint="g")])


def finished(run, status="done", started="2026-01-01", **more) -> None:
    """Write a run directory as train.py leaves it."""
    directory = RunDirectory(run.path)
    environment = {"device": "cpu", "precision": "32-true", "torch": "2", "commit": "c" * 40, "dirty": True}
    data = {"num_train": 300, "num_test": 50, "fingerprint": "f"}
    summary = {"status": status, "seed": run.seed, "started": started, "code_digest": "d", "best_epoch": 1}
    summary |= {"environment": environment, "data": data, "metrics": {"test/acc": 0.5, "last/test/acc": 0.5}, **more}
    directory.write_summary(summary)
    row = {name: 0.5 for name in results.MEASURED if not name.startswith("val")}
    directory.write_metrics([{"epoch": 1, **row}], ["epoch", *results.MEASURED])


def test_new_results_replace_old_ones_and_others_are_kept(tmp_path):
    planned = plan([KNOWN["fig03"], KNOWN["fig04"]], SMALL, 1, False)
    finished(planned[0])
    assert [*collect(planned, tmp_path / "page")] == [("fig03", 0)]
    shutil.rmtree(planned[0].path)
    finished(planned[1])
    assert [*collect(planned, tmp_path / "page")] == [("fig03", 0), ("fig04", 0)]
    finished(planned[1], started="2026-01-02")
    held = collect(planned, tmp_path / "page")
    assert held["fig04", 0].facts["started"] == "2026-01-02"
    assert held["fig04", 0].facts["commit"] == "c" * 12 + "+"
    assert collect(planned, tmp_path / "page")["fig03", 0].facts["started"] == "2026-01-01"
    other = plan([KNOWN["fig03"]], [*SMALL, "batch_size=16"], 1, False)
    finished(other[0])
    with pytest.raises(UserError, match="other settings"):
        collect(other, tmp_path / "page")


def test_a_run_that_diverges_is_a_result(tmp_path, monkeypatch, capfd):
    """It is not trained again, and the page says what happened. Any other failure makes the command fail."""
    [run] = plan([KNOWN["lr=0.1"]], ["name=study-quick", *SMALL], 1, False)
    finished(run, "failed", error={"type": "DivergedError", "message": "the loss is not finite"}, metrics={})
    (run.path / "metrics.csv").unlink()  # in epoch 1
    monkeypatch.setattr("study.__main__.QUICK", ())
    trained: list[list[str]] = []
    monkeypatch.setattr("study.__main__.train", lambda words: trained.append(words) or 1)

    def status(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["study", "--quick", "--seeds", "1", *SMALL, *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code

    assert status("--only", "lr=0.1") == 0
    assert not trained
    text = Path("outputs/study-quick/page/README.md").read_text()
    assert "Failed as the loss was no longer a finite number: lr=0.1 (seed 0)." in text
    assert "| diverged in epoch 1 | 1 | holds |" in text
    shutil.rmtree(run.path)  # as after a session on another machine
    assert status("--only", "lr=0.1") == 0
    assert not trained
    assert status("--only", "lr=0.1,fig03") == 1
    assert len(trained) == 1
    assert "fig03, seed 0 has failed" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------------- the command


def test_killed_it_goes_on_and_when_done_it_trains_nothing(command, tmp_path):
    words = ["-m", "study", "--quick", "--seeds", "1", "--only", f"fig03,fig04,{ONE_EPOCH}", *SMALL]
    environment = {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *words], env=os.environ | environment, stdout=subprocess.DEVNULL)
    until(lambda: any('"done"' in path.read_text() for path in tmp_path.glob("outputs/*/*/summary.json")), 120, process)
    process.kill()
    process.wait()
    result = command(*words, **environment)
    assert result.returncode == 0, result.stderr
    assert "study: python train.py -m" in result.stdout
    again = command(*words, **environment)
    assert again.returncode == 0, again.stderr
    assert "train.py" not in again.stdout
    folder = tmp_path / "outputs" / "study-quick" / "page"
    held = results.read(folder)
    assert {key for key, _ in held} == {"fig03", "fig04", ONE_EPOCH}
    assert 0 < float(held[ONE_EPOCH, 0].facts["reevaluated_train_loss"]) < 3
    assert len(held["fig03", 0].rows) == 2
    text = (folder / "README.md").read_text()
    assert "The quick form" in text
    assert "Not run yet: fig05" in text

    copy = tmp_path / "copy"  # the page needs no more than the two files
    copy.mkdir()
    for name in ("runs.csv", "epochs.csv"):
        shutil.copy(folder / name, copy)
    shutil.rmtree(tmp_path / "outputs")
    result = command("-m", "study", "--quick", "--page", "--out", str(copy), **environment)
    assert result.returncode == 0, result.stderr
    assert (copy / "README.md").read_text() == text
    first = {path.name: path.read_bytes() for path in copy.iterdir()}
    page.write(copy, held.values(), quick=True)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == first
    assert {"fig03.png", "fig04.png", "fig02.png"} <= first.keys()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=image_folder"], "data.root must be given"),
        (["optim.lrr=1"], "Did you mean optim.lr?"),
        (["seed=3"], "--seeds N"),
        (["--only", "fig3"], "fig03,fig04"),
        (["--seeds", "0"], "a number from 1"),
        (["--page", "--out", "nowhere"], "holds no runs"),
        (["--page", "data=shapes", "trainer.max_epochs=0"], "max_epochs >= 1"),
    ],
)
def test_mistakes_answer_in_one_paragraph(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1
