"""The study: formulas by hand, verdicts, what is run and what is not, files that grow, mistakes; small real runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, until

from cnnlab.config.identity import configuration, run_path
from cnnlab.config.options import CONF, UserError
from cnnlab.report.statistics import estimate
from cnnlab.runs.directory import RunDirectory
from study import claims, measures, page, results
from study.__main__ import KEPT, collect, commands, main, plan
from study.claims import FAILS, HOLDS, UNKNOWN, Finding
from study.results import FACTS, Run
from study.variants import BASELINE, BEST, CURVES, ONE_EPOCH, SEARCH, variants

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


def test_roughness_does_not_see_a_smooth_curve():
    assert measures.roughness([epoch * (40 - epoch) for epoch in range(20)]) == pytest.approx((0, 0), abs=1e-9)
    zigzag = [(-1) ** epoch for epoch in range(9)]
    assert measures.smooth(zigzag)[4] == pytest.approx((17 - 2 * 12 - 2 * 3) / 35)  # weights: -3, 12, 17, 12, -3
    early, late = measures.roughness([10 * epoch for epoch in range(10)] + [100 + value for value in zigzag + [-1]])
    assert early < 0.5 < late
    assert measures.smooth([1, 5, 2]) == [1, 5, 2]


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


def test_a_delay_needs_a_loss_that_rises_again():
    overfits, later = made([0.5, 0.6, 0.5, 0.5, 0.5]), made([0.4, 0.5, 0.55, 0.6, 0.5])
    assert measures.delay(later, overfits) == 2
    assert measures.delay(overfits, later) is None
    some, much = ({"reevaluated_train_acc": trained} for trained in (0.52, 0.9))
    assert measures.gap_where_others_overfit(made([0.5], **some), made([0.5], **much)) == pytest.approx(2)
    assert measures.gap_where_others_overfit(made([0.5], **much), made([0.5], **some)) is None
    assert measures.smaller_gap(made([0.5], **some), made([0.5], **much)) == pytest.approx(-38)
    assert measures.smaller_gap(made([0.5], **some), made([0.5], **some)) is None


def test_what_hardly_learns_is_not_called_steady():
    rough, smooth = [0.6 + 0.01 * (-1) ** epoch for epoch in range(12)], [0.5] * 12
    assert measures.rougher(made(rough), made(smooth)) > 0.5
    assert measures.rougher(made([0.2] * 12), made(rough)) is None


def test_training_that_goes_on_after_epoch_15():
    train = [0.5] * 13 + [0.6] * 4 + [0.7] * 3
    assert measures.GOES_ON.of(made([0.5] * 20, train)) == pytest.approx(10)
    assert measures.GOES_ON.of(made([0.5] * 18, train[:18])) is None


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
    run = made([0.4], train=[0.2], reevaluated_train_acc=0.5)
    assert measures.AVERAGING_ACCURACY.of(run) == pytest.approx(1.5)
    assert measures.AVERAGING_ACCURACY.of(made([0.2], train=[0.4], reevaluated_train_acc=0.5)) is None


def test_times_are_compared_on_one_device_alone():
    def timed(*seconds: float, **facts: str) -> Run:
        run = made([0.5] * len(seconds), **facts)
        for row, value in zip(run.rows, seconds, strict=True):
            row["epoch_seconds"] = value
        return run

    assert measures.times_slower(timed(90, 30), timed(20, 200)) == pytest.approx(1.5)
    assert measures.times_slower(timed(30), timed(20, device="H100")) is None


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


def test_larger_batches_are_compared_by_their_order():
    def saw(height: float) -> list[float]:
        return [0.5, 0.5 + height] * 5

    way = next(claim.way for claim in claims.CLAIMS if claim.figure == "fig02")
    keys = list(CURVES["fig02"].values())
    assert (
        way.find(of(*(made(saw(0.01 * (5 - place)), variant=key) for place, key in enumerate(keys)))).verdict == HOLDS
    )
    assert (
        way.find(of(*(made(saw(0.01 * (5 + place)), variant=key) for place, key in enumerate(keys)))).verdict == FAILS
    )
    heights = (0.05, 0.04, 0.02, 0.03, 0.01)  # one pair the other way round
    found = way.find(of(*(made(saw(height), variant=key) for height, key in zip(heights, keys, strict=True))))
    assert (found.num, found.verdict) == (5, UNKNOWN)
    assert found.number.endswith("(p = 0.08)")
    assert way.find(of(*(made([0.5], variant=key) for key in keys))).num == 0


SLOW = [0.02 * epoch for epoch in range(1, 21)]
FAST = [min(2 * value, 0.4) for value in SLOW]
ROUGH = [value + 0.05 * (-1) ** epoch for epoch, value in enumerate(SLOW)]


@pytest.mark.parametrize(
    ("way", "first", "second"),
    [
        (claims.faster, {"test": FAST}, {"test": SLOW}),
        (claims.steadier, {"test": SLOW}, {"test": ROUGH}),
        (claims.better, {"test": [0.5, 0.6]}, {"test": [0.6, 0.5]}),
        (claims.overfits_less, {"reevaluated_train_acc": 0.6}, {"reevaluated_train_acc": 0.9}),
        (claims.delays_overfitting, {"test": [0.4] * 4 + [0.6, 0.5]}, {"test": [0.6] + [0.5] * 5}),
    ],
)
def test_every_way_has_a_direction(way, first, second):
    """Three seeds that differ a little: it holds, and the other way round it does not."""

    def verdict(one: dict, other: dict) -> str:
        runs = []
        for seed in range(3):
            for variant, about in (("fig12", one), (BASELINE, other)):
                about = {"test": [0.5, 0.5]} | about
                test = [value + 0.001 * seed * (variant == BASELINE) for value in about.pop("test")]
                runs.append(made(test, variant=variant, seed=seed, **about))
        return way("fig12").find(of(*runs)).verdict

    assert verdict(first, second) == HOLDS
    assert verdict(second, first) in ((FAILS, UNKNOWN) if way is claims.delays_overfitting else (FAILS,))


def test_a_seed_that_learns_nothing_lets_nothing_be_told():
    runs = [made(SLOW, seed=seed) for seed in range(3)]
    runs += [made(FAST, variant="fig12", seed=seed) for seed in range(2)]
    runs += [made([0.1], variant="fig12", seed=2, status="diverged")]
    found = claims.faster("fig12").find(of(*runs))
    assert (found.num, found.verdict) == (2, UNKNOWN)
    assert "nothing in other seeds" in found.number


def test_adam_is_compared_with_its_own_best_rate():
    way = claims.crawls("adam-lr=0.01", "fig10")
    assert way.find(of(made([0.1], variant="adam-lr=0.01"), made([0.6], variant="fig10"))).verdict == HOLDS
    assert way.find(of(made([0.5], variant="adam-lr=0.01"), made([0.6], variant="fig10"))).verdict == FAILS


def test_the_best_of_the_others_has_the_highest_mean_over_the_same_seeds():
    runs = [made([0.7], variant="fig13", seed=seed) for seed in range(2)]
    runs += [made([0.6], variant="fig04", seed=seed) for seed in range(2)]
    runs += [made([level], variant="fig12", seed=seed) for seed, level in enumerate((0.65, 0.5, 0.9))]
    assert claims.best_of("fig13", ["fig04", "fig12"], "both").find(of(*runs)).number.endswith("(to fig04)")


def test_every_claim_can_be_told_of_trainings_that_diverge_in_epoch_1(tmp_path):
    failed = Run(dict.fromkeys(FACTS, "") | {"status": "diverged", "settings": "", "device": "cpu"}, [])
    runs = [
        Run({**failed.facts, "variant": variant.key, "seed": str(seed)}, [])
        for variant in variants()
        for seed in (0, 1)
    ]
    text = page.write(tmp_path, runs, quick=False).read_text()
    assert "diverged in epoch 1" in text
    assert page.search_table(of(*runs))[-2].count("diverged") == 1


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
    assert rows[2:] == ["| b | 70.00 | 70.00 | 1.0 | 1 |", "| a | 60.00 | 60.00 | 1.0 | 1 |"]
    assert page.search_table(of(made([0.5]))) == []


# --------------------------------------------------------------------------------------------------------- what is run


def test_the_best_recipe_has_its_epoch_by_held_out_images_and_its_minutes():
    facts = {"settings": "data=shapes val_fraction=0.02 optim.lr=0.1", "train_seconds": "1200"}
    runs = [made([0.6, 0.9, 0.8], variant="best", **facts)]
    [row] = [line for line in page.summary_table(of(*runs)) if line.startswith("| best |")]
    assert row == "| best | val_fraction=0.02 optim.lr=0.1 | 80.00 | 90.00 | 1 |  |  | 1 |"
    said = page.outcome("best", {"": runs})
    assert "at the last epoch, in points (n = 1): 80.00; at the epoch that is best by held-out images: 90.00." in said
    assert "20 minutes on cpu" in said


@pytest.mark.parametrize("figure", [*CURVES, BEST])
def test_an_experiment_says_what_came_out(figure):
    """Its file's head has the page's sentence, of the runs that are kept: python -m study --page writes it."""
    held = results.by_variant(results.read(KEPT).values())
    said = page.outcome(figure, page.figures_of(held)[figure])
    head = (CONF / "experiment" / f"{figure}.yaml").read_text().partition("\n\n")[0]
    assert said in head.replace("\n# ", " ")


def test_the_page_says_how_long_all_trainings_took():
    runs = [made([0.5], seed=seed, train_seconds=5400) for seed in range(2)]
    assert "Training took 3.0 hours in sum" in " ".join("\n".join(page.head(of(*runs), quick=True)).split())


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
    last = plan([KNOWN[SEARCH], KNOWN["fig03"]], ["data=shapes"], 2, everything=True)[-1]
    assert last.key == (SEARCH, 0)


def test_of_the_search_nothing_of_the_test_images_is_kept(tmp_path):
    [run] = plan([KNOWN[SEARCH]], SMALL, 1, False)
    finished(run)
    facts = collect([run], tmp_path)[SEARCH, 0].facts
    assert (facts["last_test_acc"], facts["best_test_acc"]) == ("", "")


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
    data = {"num_train": 300, "num_test": 50, "fingerprint": "f", "classes": ["cat", "dog"], "task": "multiclass"}
    summary = {"status": status, "seed": run.seed, "started": started, "code_digest": "d", "best_epoch": 1}
    summary |= {"run": run.path.name, "choices": {}, "changes": {}, "selected_on": "test/acc", "select_mode": "max"}
    summary |= {"train_seconds": 1.0, "images_per_second": 1.0}
    summary |= {"environment": environment, "data": data, "metrics": {"test/acc": 0.5, "last/test/acc": 0.5}, **more}
    directory.write_summary(summary)
    row = {name: 0.5 for name in results.MEASURED if not name.startswith("val")}
    directory.write_metrics([{"epoch": 1, **row}])


def test_new_results_replace_old_ones_and_others_are_kept(tmp_path):
    planned = plan([KNOWN["fig03"], KNOWN["fig04"]], SMALL, 1, False)
    finished(planned[0])
    assert [*collect(planned, tmp_path / "page")] == [("fig03", 0)]
    shutil.rmtree(planned[0].path)
    finished(planned[1])
    held = collect(planned, tmp_path / "page")
    assert [*held] == [("fig03", 0), ("fig04", 0)]
    assert held == results.read(tmp_path / "page")
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
