"""What can be distinguished: against SciPy, and by simulation of sweeps with a known truth."""

import math
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cnnlab.report.answer import answer
from cnnlab.report.contrasts import Family, reach_of_first, seeds_to_detect
from cnnlab.report.effects import mean_effects, shares
from cnnlab.report.runs import Run
from cnnlab.report.statistics import expected_best, seeds_and_images
from cnnlab.report.sweep import Sweep

VALUES = [0.71, 0.74, 0.69, 0.75]


def by_seed(*values: list[float]) -> list[dict[int, float]]:
    return [dict(enumerate(of_setting)) for of_setting in values]


# ------------------------------------------------------------------------------------------------------- against SciPy


def test_two_settings_are_compared_by_welchs_test():
    others = [0.60, 0.66, 0.59, 0.70, 0.61]
    family = Family(by_seed(VALUES, others))
    made, test = family.contrast({0: 1, 1: -1}), stats.ttest_ind(VALUES, others, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert not family.paired
    assert made.p_value == pytest.approx(test.pvalue)
    assert (made.low, made.high) == pytest.approx((interval.low, interval.high))


def test_seeds_are_paired_where_that_is_measured_to_help():
    """The seeds differ much, the settings little; the same values with other seeds are not paired."""
    first = [value + 0.01 + 0.001 * (seed % 2) for seed, value in enumerate(VALUES)]
    family = Family(by_seed(first, VALUES))
    made, test = family.contrast({0: 1, 1: -1}), stats.ttest_rel(first, VALUES)
    interval = test.confidence_interval(0.95)
    assert family.paired
    assert made.distinguishable
    assert made.p_value == pytest.approx(test.pvalue)
    assert (made.low, made.high) == pytest.approx((interval.low, interval.high))
    others = Family([{seed + 10: value for seed, value in enumerate(first)}, dict(enumerate(VALUES))])
    assert not others.paired
    assert not others.contrast({0: 1, 1: -1}).distinguishable


def test_ten_seeds_of_which_two_are_shared_are_all_compared():
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.80, 0.01, 10), generator.normal(0.79, 0.01, 10)
    family = Family([dict(enumerate(first)), {seed + 8: value for seed, value in enumerate(second)}])
    made = family.contrast({0: 1, 1: -1})
    assert (family.paired, made.num) == (False, 10)
    assert made.p_value == pytest.approx(stats.ttest_ind(first, second, equal_var=False).pvalue)


def test_weakly_correlated_seeds_are_not_paired():
    """A correlation of 0.21, as was measured: with three seeds it is not seen, and pairing would widen intervals."""
    generator = np.random.default_rng(0)
    paired = 0
    for _ in range(200):
        seeds = generator.normal(0, math.sqrt(0.21), 3)
        paired += Family(by_seed(*(seeds + generator.normal(0, math.sqrt(0.79), (4, 3))).tolist())).paired
    assert paired < 20


def test_two_seeds_that_differ_by_the_same_say_nothing_of_others():
    assert not Family(by_seed([0.51, 0.62], [0.50, 0.61])).contrast({0: 1, 1: -1}).distinguishable
    assert math.isinf(Family(by_seed([0.7, 0.7], [0.6, 0.6])).contrast({0: 1, 1: -1}).half_width)
    assert math.isinf(Family(by_seed([0.7], [0.6])).contrast({0: 1, 1: -1}).half_width)


def test_with_equal_spreads_intervals_are_a_little_wider_than_tukeys():
    """Where Tukey's procedure is exact, it is the reference; unequal spreads, which it cannot bear, cost width."""
    samples = np.random.default_rng(1).normal(0, 1, (6, 5))
    family, tukey = Family(by_seed(*samples)), stats.tukey_hsd(*samples).confidence_interval(0.95)
    ours = [family.contrast({0: 1, place: -1}).half_width for place in range(1, 6)]
    theirs = (tukey.high - tukey.low)[0, 1:] / 2
    assert 1 < np.mean(ours) / np.mean(theirs) < 1.5


def test_variances_below_the_typical_one_are_moderated():
    """Of three settings, by the median variance, which counts for three eighths of a setting's own."""
    samples = [[0.70, 0.701, 0.702], [0.60, 0.62, 0.64, 0.66], [0.40, 0.50, 0.60]]
    own, free = np.array([np.var(sample, ddof=1) for sample in samples]), np.array([2, 3, 2])
    typical = np.median(own * free / stats.chi2(free).ppf(0.5))
    assert own[0] < own[1] < typical < own[2]
    prior = 0.75 / 2
    used = np.array([*((own[:2] + prior * typical) / (1 + prior)), own[2]]) / [3, 4, 3]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        error = used[first] + used[second]
        df = error**2 / sum(used[place] ** 2 / ((1 + prior) * free[place]) for place in (first, second))
        made = Family(by_seed(*samples)).contrast({first: 1, second: -1})
        half_width = stats.t.ppf(1 - 0.05 / 3 / 2, df) * math.sqrt(error)
        assert made.half_width == pytest.approx(half_width)
        assert made.mean == pytest.approx(np.mean(samples[first]) - np.mean(samples[second]))


def test_one_unsteady_setting_does_not_blur_the_others():
    generator = np.random.default_rng(0)
    leads = sum(
        Family(by_seed(*generator.normal(0, [[0.1]] * 7 + [[5]], (8, 3)) + np.eye(8)[:, :1] * 2))
        .contrast({0: 1, 1: -1})
        .distinguishable
        for _ in range(200)
    )
    assert leads > 180


@pytest.mark.parametrize(("lead", "least"), [(5, 0.3), (10, 0.9)])
def test_clear_leads_are_detected_among_16_settings(lead, least):
    """In standard deviations, with three seeds."""
    generator = np.random.default_rng(0)
    found = [
        Family(by_seed(*generator.normal(np.eye(16)[:, :1] * lead, 1, (16, 3)))).contrast({0: 1, 1: -1}).distinguishable
        for _ in range(400)
    ]
    assert np.mean(found) > least


@pytest.mark.parametrize(("settings", "seeds"), [(1, 3), (4, 2), (16, 3), (32, 5)])
def test_the_interval_of_the_best_covers_its_mean_in_simulations(settings, seeds):
    values = np.random.default_rng(0).normal(size=(20000, settings, seeds))
    means = values.mean(2)
    best = means.argmax(1)
    spread = values.std(2, ddof=1)[np.arange(20000), best] / math.sqrt(seeds)
    reach = reach_of_first(settings, seeds)
    assert np.mean(abs(means.max(1)) <= reach * spread) == pytest.approx(0.95, abs=0.005)
    assert (reach == pytest.approx(stats.t.ppf(0.975, seeds - 1), rel=1e-3)) == (settings == 1)


def test_p_values_are_corrected_for_every_comparison_of_the_page():
    generator = np.random.default_rng(2)
    a, b = generator.normal(0.8, 0.01, (2, 4))
    alone = Family(by_seed(a, b)).contrast({0: 1, 1: -1})
    among = Family(by_seed(a, b), num_claims=3).contrast({0: 1, 1: -1})
    assert among.p_value == pytest.approx(min(3 * alone.p_value, 1))
    test = stats.ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(1 - 0.05 / 3)
    assert among.high == pytest.approx(interval.high)


def test_seeds_that_are_needed_have_the_power_by_simulation():
    """With a spread of 0.87 points, 1 point takes 13 seeds and 2 points 5."""
    assert [seeds_to_detect(gap, 0.0087) for gap in (0.01, 0.02)] == [13, 5]
    assert seeds_to_detect(0.0001, 0.1) is None
    generator = np.random.default_rng(0)
    for num, enough in ((13, True), (12, False)):
        first, second = generator.normal(0, 0.0087, (2, 40000, num))
        found = np.mean(stats.ttest_ind(first + 0.01, second, axis=1).pvalue < 0.05)
        assert (found > 0.80) == enough


def test_noise_of_seeds_and_images_is_what_a_bootstrap_finds():
    generator = np.random.default_rng(0)
    ability, hardness = generator.normal(0, 0.3, 8)[:, None], generator.normal(1.5, 1.2, 2000)
    right = generator.random((8, 2000)) < 1 / (1 + np.exp(-ability - hardness))
    seeds, images, both = seeds_and_images(right)
    over_images = stats.bootstrap((right.mean(0),), np.mean, n_resamples=2000, rng=generator, method="basic")
    over_seeds = stats.bootstrap((right.mean(1),), np.mean, n_resamples=2000, rng=generator, method="basic")
    assert images == pytest.approx(over_images.standard_error, rel=0.1)
    assert seeds == pytest.approx(over_seeds.standard_error * math.sqrt(8 / 7), rel=0.1)
    assert both.std == pytest.approx(math.hypot(images, seeds))
    assert seeds_and_images(np.arange(10000)[None] % 2 == 0)[1] == pytest.approx(0.005, rel=1e-3)
    sure = seeds_and_images(np.array([[True] * 39 + [False]] * 3))[2]
    assert 0 <= sure.low < sure.high == 1


def test_the_expected_best_of_some_trials_is_the_mean_over_all_choices():
    values = np.random.default_rng(0).random(7)
    slow = [np.mean([max(chosen) for chosen in combinations(values, k)]) for k in range(1, 8)]
    assert expected_best(list(values), range(1, 8)) == pytest.approx(slow)


# ---------------------------------------------------------------------------------------------------------- simulation


def simulated(values: Sequence[Sequence[float]], num_augs: int = 1) -> Sweep:
    """The sweep of runs with these values, by setting and seed; consecutive settings differ in aug."""
    runs = []
    for place, of_setting in enumerate(values):
        for seed, value in enumerate(of_setting):
            summary = {
                "run": f"{place}-{seed}",
                "status": "done",
                "choices": {"optim": f"s{place // num_augs:02}", "aug": str(place % num_augs)},
                "changes": {},
                "seed": seed,
                "selected_on": "val/acc",
                "select_mode": "max",
                "metrics": {"val/acc": float(value)},
                "metric_bounds": {"acc": {"low": 0.0, "high": 1.0}},
                "data": {"classes": ["a", "b"]},
            }
            runs.append(Run(Path(summary["run"]), summary, []))
    return Sweep(runs)


SCENES = {  # true means, standard deviations, numbers of seeds, and values of the second axis
    "4 equal settings": ([0.8] * 4, [0.01], [3], 1),
    "8 equal settings": ([0.8] * 8, [0.01], [3], 1),
    "16 equal settings": ([0.8] * 16, [0.01], [3], 1),
    "2 with unequal spreads": ([0.8] * 2, [0.005, 0.015], [3], 1),
    "4, one of them unsteady": ([0.8] * 4, [0.004, 0.004, 0.004, 0.02], [3], 1),
    "8 equal settings, seeds correlated": ([0.8] * 8, [0.01], [4], 1),
    "8, one of them unsteady, five seeds": ([0.8] * 8, [0.004] * 7 + [0.02], [5], 1),
    "6 that differ": ([0.80, 0.80, 0.798, 0.79, 0.78, 0.76], [0.005, 0.01], [3], 1),
    "4 with 3, 3, 5 and 10 seeds": ([0.8] * 4, [0.01], [3, 3, 5, 10], 1),
    "2 with 5 and 2 seeds": ([0.8] * 2, [0.005, 0.01], [5, 2], 1),
    "4 of which the unsteady ones lost a seed": ([0.8] * 4, [0.002, 0.002, 0.01, 0.01], [3, 3, 2, 2], 1),
    "2 x 2 equal": ([0.8] * 4, [0.01], [3], 2),
    "2 x 2, one axis matters": ([0.8, 0.81] * 2, [0.01], [3], 2),
    "2 x 2, an interaction without mean effects": ([0.8, 0.81, 0.81, 0.8], [0.01], [3], 2),
    "2 x 3, unequal spreads and numbers": ([0.8, 0.8, 0.79] * 2, [0.005, 0.01], [3, 5, 4], 3),
}


@pytest.mark.parametrize("name", SCENES)
def test_claims_hold_in_2000_simulated_sweeps(name):
    """Rows, effects and sentence are wrong in at most 6% of the sweeps, intervals cover, leads have the right sign.

    In up to 8% where the page says so.
    """
    truth, spreads, nums, num_augs = SCENES[name]
    generator = np.random.default_rng(0)
    grid = np.reshape(truth, (-1, num_augs))
    mean_gaps = {"optim": grid.mean(1) - grid.mean(1)[0], "aug": grid.mean(0) - grid.mean(0)[0]}
    of_each = list(zip(truth, np.resize(spreads, len(truth)), np.resize(nums, len(truth)), strict=True))
    rows = sentences = leads = signs = covered = intervals = of_first = interact = 0
    for _ in range(2000):
        common = generator.normal(0, 0.03, max(nums)) * ("correlated" in name)
        sweep = simulated(
            [mean + spread * generator.normal(size=num) + common[:num] for mean, spread, num in of_each], num_augs
        )
        true = {id(group): mean for group, mean in zip(sweep.groups, truth, strict=True)}
        best, *others = (true[id(place.setting)] for place in sweep.ranking)
        claimed = [not place.may_be_best for place in sweep.ranking[1:]]
        mistaken = any(claim and best <= other for claim, other in zip(claimed, others, strict=True))
        sentences += mistaken and bool(re.search(r"It is better than|The other .* worse", answer(sweep)))
        leads += sum(claimed)
        signs += sum(claim and best < other for claim, other in zip(claimed, others, strict=True))
        gaps = [place.behind for place in sweep.ranking[1:]]
        covered += sum(gap.low <= best - other <= gap.high for gap, other in zip(gaps, others, strict=True))
        covered += sum(
            place.score.low <= mean <= place.score.high
            for place, mean in zip(sweep.ranking, (best, *others), strict=True)
        )
        intervals += len(gaps) + len(truth)
        of_first += sweep.ranking[0].score.low <= best <= sweep.ranking[0].score.high
        if num_augs > 1:
            found = shares(sweep)
            interact += found.interact
            for axis, of_axis in mean_effects(sweep, found)[1].items():
                for effect, gap in zip(of_axis[1:], mean_gaps[axis][1:], strict=True):
                    mistaken |= effect.change.distinguishable and gap * effect.change.mean <= 1e-12
                    covered += effect.change.low <= gap <= effect.change.high
                    intervals += 1
        rows += mistaken
    assert max(rows, sentences) <= (0.08 if "lost a seed" in name else 0.06) * 2000
    assert covered >= 0.93 * intervals
    assert of_first >= 0.93 * 2000
    assert signs <= 0.05 * max(leads, 1)
    assert interact <= 0.065 * 2000 or "interaction" in name
