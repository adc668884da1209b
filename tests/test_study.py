"""The study: formulas by hand, verdicts, what is run and what is not, files that grow, mistakes; small real runs."""

import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, until
from scipy import stats

from cnnlab.config.identity import configuration, run_path
from cnnlab.config.options import CONF, UserError
from cnnlab.report.statistics import estimate
from cnnlab.runs.directory import RunDirectory
from study import calibration, claims, figures, measures, page, results, verdicts, ways
from study.__main__ import FIRST, WAYS, collect, main, plan, refuse_others, train
from study.results import FACTS, Run
from study.variants import (
    BASELINE,
    CALIBRATED,
    CANDIDATES,
    CURVES,
    LARGE,
    ONE_EPOCH,
    STATED,
    calibrated,
    candidate,
    variants,
)
from study.verdicts import FAILS, HOLDS, NOT_COMPARABLE, UNKNOWN, Finding

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
    nothing = made([0.1], reevaluated_train_acc=0.1)
    assert measures.smaller_gap(nothing, made([0.5], **much)) is None  # what learns nothing does not overfit less
    assert measures.gap_where_others_overfit(nothing, made([0.5], **much)) is None


def test_thresholds_are_not_decided_by_rounding():
    assert measures.flattens([30.02, 31.02, 31.02, 31.02, 31.02, 31.02, 31.02]) == 2  # 1.00 point is not below 1 point
    assert all(measures.onset(made([low / 1e4], train=[low / 1e4 + 0.05])) is None for low in range(3000, 9000, 7))


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
    found, p = verdicts.above(estimate(values), sign=sign)
    assert found == verdict
    assert (p < 0.05) is (verdict in (HOLDS, FAILS))


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.1, 0, -0.1], HOLDS), ([2, 2.1, 2.2], FAILS), ([-3, 0, 3], UNKNOWN), ([0], UNKNOWN)],
)
def test_settings_are_alike_if_the_interval_is_within_a_point(values, verdict):
    assert verdicts.alike(estimate(values))[0] == verdict


def test_p_values_are_those_of_scipy():
    values = [0.3, 0.9, 0.2, 0.5]
    assert verdicts.above(estimate(values), 0.1)[1] == pytest.approx(stats.ttest_1samp(values, 0.1).pvalue)
    assert verdicts.above(estimate(values), 1, sign=-1)[1] == pytest.approx(stats.ttest_1samp(values, 1).pvalue)
    both = [stats.ttest_1samp(values, bound, alternative=side).pvalue for bound, side in ((-1, "greater"), (1, "less"))]
    assert verdicts.alike(estimate(values))[1] == pytest.approx(max(both))
    large = [1.5, 1.9, 1.4]
    assert verdicts.alike(estimate(large))[1] == pytest.approx(stats.ttest_1samp(large, 1).pvalue)


def test_p_values_are_corrected_over_the_report_s_claims():
    """Holm by his definition, in a loop; Benjamini and Hochberg by theirs. Without a p-value nothing is corrected."""
    values = [0.045, 0.001, 0.03, 0.5, 0.011]
    ordered, most = sorted(values), 0.0
    for rank, p in enumerate(ordered):
        most = max(most, min(1, (len(values) - rank) * p))
        assert verdicts.holm(values)[values.index(p)] == pytest.approx(most)
    found = verdicts.corrected([Finding("", 3, HOLDS, p) for p in values] + [Finding("", 3, HOLDS)])
    for rank, p in enumerate(ordered, 1):
        least = min(len(values) * other / place for place, other in enumerate(ordered, 1) if place >= rank)
        assert found[values.index(p)].corrected == pytest.approx((least, verdicts.holm(values)[values.index(p)]))
    assert found[-1].corrected is None
    assert [verdicts.after(found[0], place) for place in range(3)] == [HOLDS, UNKNOWN, UNKNOWN]
    assert [verdicts.after(found[4], place) for place in range(3)] == [HOLDS, HOLDS, HOLDS]
    assert [verdicts.after(found[-1], place) for place in range(3)] == [HOLDS, HOLDS, HOLDS]


def test_differences_are_taken_seed_by_seed():
    """The seeds differ much, the settings little; a seed that only one has counts for nothing."""
    runs = [made([level], seed=seed) for seed, level in enumerate((0.3, 0.5, 0.7))]
    runs += [made([level], variant="fig04", seed=seed) for seed, level in enumerate((0.31, 0.512, 0.711, 0.1))]
    found = ways.better("fig04").find(of(*runs))
    assert (found.number, found.num, found.verdict) == ("+1.1 ± 0.2 points", 3, HOLDS)
    assert found.p == pytest.approx(stats.ttest_1samp([1, 1.2, 1.1], 0).pvalue)
    assert ways.better("fig04").find(of(runs[0], runs[3])) == Finding("+1.0 points; one seed", 1, UNKNOWN)
    assert ways.better("fig04").find({}).num == 0


def test_what_is_seen_must_be_seen_in_every_seed_and_in_two():
    def found(*finals: float) -> Finding:
        runs = [made([0.6], variant="lr=0.01", seed=seed) for seed in range(len(finals))]
        runs += [made([final], variant="lr=0.0001", seed=seed) for seed, final in enumerate(finals)]
        return ways.crawls("lr=0.0001", "lr=0.01").find(of(*runs))

    assert found(0.1, 0.1).verdict == HOLDS
    assert found(0.5, 0.5).verdict == FAILS
    assert found(0.1, 0.5).verdict == UNKNOWN
    assert found(0.1) == Finding("10.0 points against 60.0 points; one seed", 1, UNKNOWN)


def test_a_rate_is_too_large_from_the_smallest_at_which_every_seed_diverges():
    def found(**finals: tuple[float, ...]) -> Finding:
        runs = [
            made([final], variant=f"lr={rate}", seed=seed)
            for rate, of_seeds in zip(LARGE, finals["of_rates"], strict=False)
            for seed, final in enumerate(of_seeds)
        ]
        return ways.diverges_somewhere().find(of(*runs))

    learns, breaks = (0.5, 0.5), (0.1, 0.1)
    broken = found(of_rates=(learns, (0.1, 0.5), breaks, breaks))
    assert (broken.verdict, broken.num) == (HOLDS, 2)
    assert broken.number.startswith("every seed diverges at 1 (0.1: 0 of 2, 0.3: 1 of 2, 1: 2 of 2")
    assert found(of_rates=(learns, learns, learns, learns)).verdict == FAILS
    assert found(of_rates=(learns, learns)).verdict == UNKNOWN  # larger rates have not been run
    assert found(of_rates=(learns, learns, learns, (0.1, 0.5))).verdict == UNKNOWN
    assert found(of_rates=((0.1,),)) == Finding("seeds that diverge: 0.1: 1 of 1; one seed", 1, UNKNOWN)
    assert found(of_rates=()).num == 0


def test_batch_sizes_are_compared_by_a_slope_for_every_seed():
    """n counts seeds; the slope is that of a line through the five sizes, by the normal equations."""
    sizes = list(map(int, CURVES["fig02"]))

    def saw(height: float) -> list[float]:
        return [0.5, 0.5 + height] * 5

    [rough, epochs, steps] = [claim.way for claim in claims.CLAIMS if claim.figure == "fig02"][:3]

    def runs(heights: list[float], seeds: int = 3) -> results.Results:
        return of(
            *(
                made(saw(height + 0.001 * seed * place), variant=key, seed=seed, num_train=1000)
                for seed in range(seeds)
                for place, (height, key) in enumerate(zip(heights, CURVES["fig02"].values(), strict=True))
            )
        )

    falling = [0.05, 0.04, 0.03, 0.02, 0.01]
    found = rough.find(runs(falling))
    assert (found.num, found.verdict) == (3, HOLDS)
    assert rough.find(runs(falling[::-1])).verdict == FAILS
    assert rough.find(runs(falling, seeds=1)).verdict == UNKNOWN
    one = {key: of_seeds[0] for key, of_seeds in runs(falling).items()}
    x = np.log2(sizes) - np.log2(sizes).mean()
    y = [measures.ROUGHNESS.of(one[key]) for key in CURVES["fig02"].values()]
    assert float(rough.find(runs(falling, 1)).number.split()[0]) == pytest.approx(float(x @ y / (x @ x)), abs=1e-3)
    # own targets: 0.95 of 50 is reached at once, whatever others reach
    flat = [
        made([level] * 8, variant=key, num_train=1000)
        for level, key in zip(falling, CURVES["fig02"].values(), strict=True)
    ]
    assert measures.epochs_to_own_target(made([0.2, 0.2, 0.2])) == 1
    assert measures.epochs_to_own_target(made([0.2, 0.38, 0.4])) == 2
    assert measures.steps_to_own_target(made([0.2, 0.38, 0.4], num_train=1000), 10) == 200
    assert epochs.find(of(*flat)).number == "nothing to measure"  # they are no better than guessing
    flat = [made([0.5] * 8, variant=k, seed=seed, num_train=1000) for k in CURVES["fig02"].values() for seed in (0, 1)]
    assert epochs.find(of(*flat)).verdict == UNKNOWN
    assert steps.find(of(*flat)).verdict == HOLDS  # one epoch each, of fewer steps


SLOW = [0.02 * epoch for epoch in range(1, 21)]
FAST = [min(2 * value, 0.4) for value in SLOW]
ROUGH = [value + 0.05 * (-1) ** epoch for epoch, value in enumerate(SLOW)]


@pytest.mark.parametrize(
    ("way", "first", "second"),
    [
        (ways.faster, {"test": FAST}, {"test": SLOW}),
        (ways.steadier, {"test": SLOW}, {"test": ROUGH}),
        (ways.better, {"test": [0.5, 0.6]}, {"test": [0.6, 0.5]}),
        (ways.overfits_less, {"reevaluated_train_acc": 0.6}, {"reevaluated_train_acc": 0.9}),
        (ways.delays_overfitting, {"test": [0.4] * 4 + [0.6, 0.5]}, {"test": [0.6] + [0.5] * 5}),
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
    assert verdict(second, first) in ((FAILS, UNKNOWN) if way is ways.delays_overfitting else (FAILS,))


def test_a_seed_that_learns_nothing_lets_nothing_be_told():
    runs = [made(SLOW, seed=seed) for seed in range(3)]
    runs += [made(FAST, variant="fig12", seed=seed) for seed in range(2)]
    runs += [made([0.1], variant="fig12", seed=2, status="diverged")]
    found = ways.faster("fig12").find(of(*runs))
    assert (found.num, found.verdict) == (2, UNKNOWN)
    assert "nothing in other seeds" in found.number


def test_adam_is_compared_with_its_own_best_rate():
    def verdict(final: float) -> str:
        runs = [made([final], variant="adam-lr=0.01", seed=seed) for seed in (0, 1)]
        runs += [made([0.6], variant="fig10", seed=seed) for seed in (0, 1)]
        return ways.crawls("adam-lr=0.01", "fig10").find(of(*runs)).verdict

    assert verdict(0.1) == HOLDS
    assert verdict(0.5) == FAILS


def test_the_best_of_the_others_has_the_highest_mean_over_the_same_seeds():
    runs = [made([0.7], variant="fig13", seed=seed) for seed in range(2)]
    runs += [made([0.6], variant="fig04", seed=seed) for seed in range(2)]
    runs += [made([level], variant="fig12", seed=seed) for seed, level in enumerate((0.65, 0.5, 0.9))]
    assert ways.best_of("fig13", ["fig04", "fig12"], "both").find(of(*runs)).number.endswith("(to fig04)")


def test_every_claim_can_be_told_of_trainings_that_diverge_in_epoch_1(tmp_path):
    failed = Run(dict.fromkeys(FACTS, "") | {"status": "diverged", "settings": "", "device": "cpu"}, [])
    runs = [
        Run({**failed.facts, "variant": variant.key, "seed": str(seed)}, [])
        for variant in variants()
        for seed in (0, 1)
    ]
    text = page.write(tmp_path, runs, quick=True).read_text()
    assert "diverged in epoch 1" in text
    assert "every seed diverges at 0.1" in text


def test_the_claims_are_in_the_order_of_the_report():
    figures = [claim.figure for claim in claims.CLAIMS]
    assert figures == sorted(figures)
    assert set(figures) == set(CURVES)


# ---------------------------------------------------------------------------------------------------------- calibration


def curve(onset: int, flat: int, num: int = 20) -> dict:
    """A run that begins to overfit and flattens at these epochs; never after `num`."""
    test = [0.02 * min(epoch, flat) for epoch in range(1, num + 1)]
    return {"test": test, "train": [value + 0.06 * (epoch >= onset) for epoch, value in enumerate(test, 1)]}


def candidates(**distances: float) -> list[Run]:
    """Two seeds of every candidate; those not named flatten and overfit as the chosen one, and one epoch later."""
    runs = []
    for change in CANDIDATES:
        for seed in (0, 1):
            about = curve(17, 15) if change == CALIBRATED else curve(18, 15)
            runs.append(made(**about, variant=candidate(change), seed=seed))
    return runs


@pytest.mark.parametrize(
    ("onset", "flat", "distance"),
    [(17, 15, 0), (14, 15, 3), (20, 17, 5), (21, 15, 4), (21, 20, 4 + 6)],  # 21: never, as is a flattening at 20
)
def test_the_distance_to_figure_3_is_in_epochs(onset, flat, distance):
    assert calibration.distance(made(**curve(onset, flat))) == distance


def test_the_nearest_candidate_is_the_baseline_or_there_is_no_page(tmp_path):
    runs = candidates()
    assert calibration.nearest(of(*runs)) == CALIBRATED
    text = page.write(tmp_path, runs, quick=False).read_text()
    assert f"| {CALIBRATED}, chosen | 17.0 ± 0.0 | 15.0 ± 0.0 | 0.0 ± 0.0 | 2 |" in text
    assert f"Chosen: {CALIBRATED}." in " ".join(text.split())
    tied = [made(**curve(17, 15), variant=candidate(change), seed=seed) for change in CANDIDATES for seed in (0, 1)]
    assert calibration.nearest(of(*tied)) == CALIBRATED
    nearer = [*runs[2:], *(made(**curve(17, 15), variant=candidate(CANDIDATES[0]), seed=seed) for seed in (0, 1))]
    far = [run for run in nearer if run.key[0] != candidate(CALIBRATED)]
    far += [made(**curve(9, 21), variant=candidate(CALIBRATED), seed=seed) for seed in (0, 1)]
    with pytest.raises(UserError, match=rf'Set CALIBRATED = "{CANDIDATES[0]}"') as refusal:
        page.write(tmp_path, far, quick=False)
    assert "(0.0 epochs) than with" in str(refusal.value)
    assert "(14.0)" in str(refusal.value)
    assert page.write(tmp_path, far, quick=True).exists()
    assert calibration.nearest(of(*far[1:])) is None  # one seed tells nothing
    assert page.write(tmp_path, far[1:], quick=False).exists()
    broken = [replace(run, facts=dict(run.facts) | {"status": "diverged"}) for run in runs[:1]]
    assert calibration.distance(broken[0]) == math.inf
    assert ["optim.momentum=0.5", "diverged", "diverged", "diverged", "2"] in calibration.table(of(*broken, *runs[1:]))


def test_every_claim_from_figure_4_on_is_judged_against_both_baselines(tmp_path):
    """It holds against one of them and not against the other, and the summary counts both."""
    levels = {BASELINE: 0.5, "fig07": 0.4, candidate(CALIBRATED): 0.5, calibrated("fig07"): 0.6}
    runs = [
        made([level + 0.001 * seed * (level != 0.5)], variant=key, seed=seed)
        for key, level in levels.items()
        for seed in range(3)
    ]
    judged = [one for one in claims.judge(of(*runs)) if one.claim.says == "crops and flips give better results"]
    assert [(one.baseline, one.finding.verdict, one.finding.num) for one in judged] == [
        ("as stated", FAILS, 3),
        (CALIBRATED, HOLDS, 3),
    ]
    family = [one.finding for one in claims.judge(of(*runs)) if one.finding.p is not None and not one.claim.asked_here]
    assert len(family) == 2
    corrected = list(zip(*(found.corrected for found in family), strict=True))
    assert corrected[1] == pytest.approx(verdicts.holm([found.p for found in family]))
    text = page.write(tmp_path, runs, quick=False).read_text()
    assert f"- crops and flips give better results: **does not hold**; with {CALIBRATED}: **holds**" in text
    assert "| holds | 0 | 0 | 0 | 1 | 1 | 1 |" in text
    assert "| does not hold | 3 | 3 | 3 | 0 | 0 | 0 |" in text  # with two of figure 3
    lines = page.section("fig09", {}, [one for one in claims.judge({}) if one.claim.figure == "fig09"])
    assert lines.count(f"- ... and more steadily: **not run yet**; with {CALIBRATED}: **not run yet**") == 2
    assert {one.baseline for one in claims.judge(of(*runs)) if one.claim.figure <= BASELINE} == {"as stated"}


def test_adam_keeps_its_own_rate_beside_another_baseline(monkeypatch):
    assert calibrated("fig10") == f"fig10+{CALIBRATED}"
    monkeypatch.setattr("study.variants.CALIBRATED", "optim.lr=0.02")
    assert {key for key in STATED if calibrated(key) == key} == {"fig10", "adam-lr=0.001", "adam-lr=0.01"}


def test_times_have_no_verdict_as_fitting_is_not_recorded():
    def timed(variant: str, seconds: float, device: str) -> list[Run]:
        runs = [made([0.5], variant=variant, seed=seed, device=device) for seed in (0, 1)]
        for run in runs:
            run.rows[0]["epoch_seconds"] = seconds
        return runs

    way = ways.same_speed("fig05", "fig06")
    found = way.find(of(*timed("fig05", 30, "cpu"), *timed("fig06", 20, "cpu")))
    assert (found.verdict, found.num, found.p) == (NOT_COMPARABLE, 2, None)
    assert found.number.startswith("1.50 ± 0.00 times; fitting and applying come before")
    other = way.find(of(*timed("fig05", 30, "cpu"), *timed("fig06", 20, "H100")))
    assert other.number.startswith("different devices")


# --------------------------------------------------------------------------------------------------------- what is run


def test_a_setting_is_shown_with_its_best_epoch():
    runs = [made([0.6, 0.9, 0.8], settings="data=shapes val_fraction=0.0 optim.lr=0.1", train_seconds="1200")]
    [row] = [line for line in page.settings_table(of(*runs)) if line.startswith(f"| {BASELINE} |")]
    assert row == f"| {BASELINE} | optim.lr=0.1 | 80.00 | 90.00 | 1 |  | 1 |"
    assert "An empty gap was not measured" in " ".join(page.settings_table(of(*runs)))
    assert "An empty gap" not in " ".join(page.settings_table(of(made([0.6], reevaluated_train_acc="0.7"))))
    said = page.outcome(BASELINE, {"as stated": runs})
    assert "in points (n = 1), and its gap to training accuracy: as stated: 80.00." in said
    assert said.endswith("Device: cpu.")


def test_a_training_that_diverged_is_named_beside_the_curves(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    figures.draw(tmp_path, {"0.1": [made([0.5, 0.6])], "1": [replace(made([0.5], status="diverged"), rows=[])]}, {}, "")
    said = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert said == ["0.1, training", "0.1, test", "1 (diverged), training", "1 (diverged), test"]
    many = {name: [made([0.5, 0.6])] for name in "abcde"} | {"f": [replace(made([0.5], status="diverged"), rows=[])]}
    figures.draw(tmp_path, many, {}, "")
    assert [axis.get_title() for axis in drawn[1].axes[:6]] == ["a", "b", "c", "d", "e", "f (diverged)"]


def test_an_experiment_says_what_came_out(tmp_path, monkeypatch):
    """The page's sentence goes to the head of the experiment's file, in place of an older one; the rest stays."""
    path = tmp_path / "experiment" / "fig04.yaml"
    path.parent.mkdir()
    shutil.copy(CONF / "experiment" / "fig04.yaml", path)
    monkeypatch.setattr(page, "CONF", tmp_path)
    for level in (0.5, 0.6):
        runs = [made([level], variant="fig04", seed=seed) for seed in (0, 1)]
        page.write_heads(runs)
        head, _, rest = path.read_text().partition("\n\n")
        assert head.count("Test accuracy at the last epoch") == 1
        assert page.outcome("fig04", {"as stated": runs}) in head.replace("\n# ", " ")
        assert rest == (CONF / "experiment" / "fig04.yaml").read_text().partition("\n\n")[2]


def test_the_page_says_how_long_all_trainings_took():
    runs = [made([0.5], seed=seed, train_seconds=5400) for seed in range(2)]
    assert "Training took 3.0 hours in total" in " ".join("\n".join(page.head(of(*runs), quick=True)).split())


def test_every_variant_composes_and_is_a_run_of_its_own():
    """`plan` checks every configuration."""
    planned = plan(variants(), ["data=shapes", "name=study"], seeds=1)
    assert len({run.path for run in planned}) == len(variants())
    assert {run.key[0] for run in planned[: len(FIRST)]} == {*FIRST}
    assert {key for curves in CURVES.values() for key in curves.values()} <= KNOWN.keys()


def test_figures_share_the_runs_that_they_have_in_common():
    for words, key in (
        (["experiment=fig02", "batch_size=32"], "lr=0.01"),
        (["experiment=fig02", "batch_size=128"], BASELINE),
    ):
        assert run_path(configuration(words)) == run_path(configuration([*KNOWN[key].words]))


def test_everything_with_a_verdict_has_all_seeds():
    planned = plan([KNOWN[key] for key in ("fig04", "lr=0.1", ONE_EPOCH, BASELINE)], ["data=shapes"], 2)
    assert [run.key for run in planned] == [
        *((BASELINE, seed) for seed in (0, 1)),  # decides about the others
        *((key, seed) for key in ("fig04", "lr=0.1", ONE_EPOCH) for seed in (0, 1)),
    ]
    assert [run.config.seed for run in planned] == [run.seed for run in planned]
    assert planned[1].path == run_path(configuration(["data=shapes", "experiment=fig03", "seed=1"]))
    assert planned[0].num_images == 50_000 * 20
    assert len(variants()) <= 50


def test_any_launcher_trains_the_runs(monkeypatch):
    """They are one sweep, so that several can share a GPU; what they are called does not depend on the launcher."""
    given = []
    monkeypatch.setitem(WAYS, "local", WAYS["local"]._replace(do=lambda *sweep: given.append(sweep)))
    words = ["data=shapes", "launcher=local", "launcher.jobs_per_device=4"]
    runs = plan([KNOWN["fig03"], KNOWN["fig12"]], words, 2)
    train(runs)
    [(settings, jobs, sweep)] = given
    assert settings.jobs_per_device == 4
    assert [job.path for job in jobs] == [run.path for run in runs]
    assert jobs == sweep
    assert jobs[1].content["about"]["overrides"][-1] == "seed=1"
    [alone] = plan([KNOWN["fig03"]], ["data=shapes"], 1)
    assert (alone.path, alone.settings) == (runs[0].path, runs[0].settings)


def test_words_that_change_what_is_held_are_refused(tmp_path):
    """Not only for what is still to be trained."""
    [run] = plan([KNOWN["fig03"]], ["data=shapes", "optim=adam"], 1)
    held = made([0.5], variant="fig03", seed=0)
    with pytest.raises(UserError, match="holds fig03, seed 0, with other settings"):
        refuse_others([run], {held.key: held}, tmp_path)


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
    for name in ("fingerprint", "code", "precision", "torch", "commit"):
        with pytest.raises(UserError, match=f"that differ in {name}"):
            results.write(tmp_path, [first, made([0.2], seed=1, **{name: "other"})])


def test_a_page_is_of_one_code_and_a_setting_of_one_commit(tmp_path):
    runs = [made([0.5], code="a", commit="c"), made([0.6], variant="fig04", code="a", commit="d")]
    assert page.write(tmp_path, runs, quick=False).exists()
    both = [*runs, made([0.5], seed=1, code="a", commit="c+")]  # with changes to files that no result depends on
    assert page.write(tmp_path, both, quick=False).exists()
    with pytest.raises(UserError, match=r"of fig03 that differ in commit \(fig03 seed 0: c, fig03 seed 1: d\)"):
        page.write(tmp_path, [*runs, made([0.5], seed=1, code="a", commit="d")], quick=False)
    with pytest.raises(UserError, match="differ in code"):
        page.write(tmp_path, [runs[0], made([0.6], variant="fig04", code="b", commit="c")], quick=False)


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
    planned = plan([KNOWN["fig03"], KNOWN["fig04"]], SMALL, 1)
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
    finished(planned[1], started="2026-01-03", code_digest="e")
    with pytest.raises(UserError, match=r"differ in code \(fig03 seed 0: d, fig04 seed 0: e\)"):
        collect(planned, tmp_path / "page")
    assert results.read(tmp_path / "page") == held
    other = plan([KNOWN["fig03"]], [*SMALL, "batch_size=16"], 1)
    finished(other[0])
    with pytest.raises(UserError, match="other settings"):
        collect(other, tmp_path / "page")


def test_a_run_that_diverges_is_a_result(tmp_path, monkeypatch, capfd):
    """It is not trained again, and the page says what happened. Any other failure makes the command fail."""
    [run] = plan([KNOWN["lr=0.1"]], ["name=study-quick", *SMALL], 1)
    finished(run, "failed", error={"type": "DivergedError", "message": "the loss is not finite"}, metrics={})
    (run.path / "metrics.csv").unlink()  # in epoch 1
    monkeypatch.setattr("study.__main__.QUICK", ())
    monkeypatch.setattr("study.__main__.code_digest", lambda targets: "d")
    trained: list[object] = []
    monkeypatch.setattr("study.__main__.train", trained.append)

    def status(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["study", "--quick", "--seeds", "1", *SMALL, *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code

    assert status("--only", "lr=0.1") == 0
    assert not trained
    text = Path("outputs/study-quick/page/README.md").read_text()
    assert "Failed because the loss was not a finite number: lr=0.1 (seed 0)." in text
    assert "| seeds that diverge: 0.1: 1 of 1; one seed | 1 | cannot be told |" in text
    shutil.rmtree(run.path)  # as after a session on another machine
    assert status("--only", "lr=0.1") == 0
    assert not trained
    assert status("--only", "lr=0.1,fig03") == 1
    assert len(trained) == 1
    assert "fig03, seed 0 has failed" in capfd.readouterr().err
    monkeypatch.setattr("study.__main__.code_digest", lambda targets: "changed")
    assert status("--only", "lr=0.1,fig03") == 2
    assert len(trained) == 1
    assert "of other code (d, now changed)" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------------- the command


def test_killed_it_goes_on_and_when_done_it_trains_nothing(command, tmp_path):
    words = ["-m", "study", "--quick", "--seeds", "1", "--only", f"fig03,fig04,{ONE_EPOCH}", *SMALL]
    environment = {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *words], env=os.environ | environment, stdout=subprocess.DEVNULL)
    until(lambda: any('"done"' in path.read_text() for path in tmp_path.glob("outputs/*/*/summary.json")), 300, process)
    process.kill()
    process.wait()
    result = command(*words, **environment)
    assert result.returncode == 0, result.stderr
    assert "3 runs, " in result.stdout
    again = command(*words, **environment)
    assert again.returncode == 0, again.stderr
    assert "3 runs, 0 to train" in again.stdout
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
        (["launcher=nowhere"], "launcher"),
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
