"""The answers of reports: cases whose right answer is known."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy import stats
from test_report import make_run, sweep_of

from cnnlab.launch.search import Search
from cnnlab.report import compare, page, tables
from cnnlab.report.answer import answer, image_noise, method, notes, seeds_needed
from cnnlab.report.contrasts import seeds_to_detect
from cnnlab.report.effects import effects, shares
from cnnlab.report.listing import print_list, print_table
from cnnlab.report.runs import find, grouped, read
from cnnlab.report.sections import document
from cnnlab.report.sweep import Sweep
from cnnlab.report.trials import best_of, is_search
from cnnlab.report.units import points
from cnnlab.runs.directory import RunDirectory

DIVERGED = {"status": "failed", "error": {"type": "DivergedError", "message": "train/loss is nan"}, "metrics": {}}


def settings(folder: Path, *values: list[float], **more) -> Sweep:
    """Settings optim=a, b, ... of these held-out accuracies, by seed."""
    for place, of_setting in enumerate(values):
        for seed, value in enumerate(of_setting):
            make_run(folder, seed, value, {"optim": "abcdefgh"[place]}, **more)
    return sweep_of(folder)


def verdicts(sweep: Sweep) -> dict[str, str]:
    """{setting: verdict} of the ranking."""
    head, *rows = tables.ranking_table(sweep)
    return {row[0]: row[head.index("verdict")] for row in rows}


def test_nothing_is_chosen_on_test_images(tmp_path):
    values = {"a": ((0.800, 0.790, 0.795), (0.780, 0.795, 0.779)), "b": ((0.780, 0.785, 0.790), (0.790, 0.790, 0.795))}
    for optim, pairs in values.items():
        for seed, (held_out, test) in enumerate(zip(*pairs, strict=True)):
            make_run(tmp_path, seed, held_out, {"optim": optim}, test=test)
    sweep = sweep_of(tmp_path)
    assert [place.setting.value("optim") for place in sweep.ranking] == ["a", "b"]
    said = answer(sweep)
    assert said.startswith("optim=a has the highest validation accuracy: 79.50% (")
    assert "its test accuracy is 78.47% (" in said
    assert "79.17" not in said  # the test accuracy of the other setting, which is in its row
    head, first, second = tables.ranking_table(sweep)
    assert [row[head.index("test accuracy (%)")] for row in (first, second)] == ["78.47", "79.17"]
    assert any("is optimistic" in note for note in notes(sweep))
    found = {effect.value: effect.mean for effect in effects(sweep, "optim")}
    assert found == pytest.approx({"a": 0.795, "b": 0.785})
    [line, difference, _] = compare.compare(*grouped(sweep.runs))
    assert "test accuracy 78.47%" in line
    assert "+1.00 points" in difference


@pytest.mark.parametrize(("mode", "first"), [("min", "a"), ("max", "b")])
def test_the_metric_and_its_direction_are_those_of_the_runs(tmp_path, mode, first):
    for optim, loss in (("a", 0.4), ("b", 0.9)):
        for seed in (0, 1, 2):
            metrics = {"val/loss": loss + 0.01 * seed, "test/loss": 1 - loss, "val/acc": 0.5, "test/acc": 0.5}
            make_run(tmp_path, seed, 0.5, {"optim": optim}, selected_on="val/loss", select_mode=mode, metrics=metrics)
    sweep = sweep_of(tmp_path)
    assert sweep.ranking[0].setting.value("optim") == first
    superlative = "lowest" if mode == "min" else "highest"
    assert f"optim={first} has the {superlative} validation loss: 0.{4 if first == 'a' else 9}100 (" in answer(sweep)
    assert "It is better than the other setting" in answer(sweep)


@pytest.mark.parametrize("axis", ["loss", "loss.smoothing"])
def test_different_losses_are_not_compared_without_a_warning(tmp_path, axis):
    for value in ("one", "two"):
        for seed in (0, 1):
            more = {"choices": {"loss": value}} if axis == "loss" else {"changes": {axis: value}}
            metrics = {"val/loss": 0.4 + len(value) * seed, "val/acc": 0.5}
            for name in ("val/loss", "val/acc"):
                make_run(tmp_path / name, seed, 0.5, **more, metrics=metrics, selected_on=name, select_mode="max")
    warning = f"Warning: settings that differ in {axis} have losses that are different quantities."
    sweep, by_accuracy = sweep_of(tmp_path / "val/loss"), sweep_of(tmp_path / "val/acc")
    assert answer(sweep).startswith(f"{warning} Compare them by a metric: train with select_on=val/acc")
    assert compare.compare(*grouped(sweep.runs))[0].startswith(warning)
    assert "Warning" not in answer(by_accuracy) + "".join(compare.compare(*grouped(by_accuracy.runs)))


def test_runs_in_which_nothing_is_held_out_say_so_in_the_second_line(tmp_path):
    sweep = settings(tmp_path, [0.80, 0.81], [0.70, 0.71], selected_on="test/acc")
    lines = [line for line in page.markdown(document(sweep)).splitlines() if line]
    assert lines[1].startswith("**Nothing was held out: settings and epochs are chosen by test accuracy")
    text = page.html(document(sweep))
    assert text.index("Nothing was held out") < text.index('class="answer"')
    assert "its test accuracy" not in answer(sweep)
    assert "Nothing was held out" not in page.markdown(document(settings(tmp_path / "held", [0.8, 0.7])))


def test_runs_that_failed_are_part_of_the_answer(tmp_path):
    settings(tmp_path, [0.90], [0.80, 0.81, 0.79], [0.70, 0.71, 0.69])
    for seed in (1, 2):
        make_run(tmp_path, seed, 0.0, {"optim": "a"}, **DIVERGED)
    for seed in (0, 1):
        make_run(tmp_path, seed, 0.0, {"optim": "d"}, **DIVERGED)
    make_run(tmp_path, 3, 0.0, {"optim": "b"}, status="interrupted", metrics={})
    sweep = sweep_of(tmp_path)
    head, *rows = tables.ranking_table(sweep)
    assert [(row[0], row[head.index("n")]) for row in rows] == [
        ("b", "3 of 4, 1 not finished"),
        ("c", "3"),
        ("a", "1 of 3, 2 diverged"),  # after those of which none diverged
        ("d", "0 of 2, 2 diverged"),
    ]
    assert sweep.question().startswith("Which optim (a, b, c, d) gives")
    said = answer(sweep)
    assert "n = 3 of 4, 1 not finished" in said
    assert "Not known, with a single run, of optim=a (n = 1 of 3, 2 diverged); optim=a is 10.00 points ahead" in said
    assert "cannot be distinguished" not in said
    commands = tables.commands(sweep)
    assert [command.rpartition("seed=")[2] for command in commands] == ["0,1,2,3", "0,1,2", "0,1,2", "0,1"]
    assert "Without a finished run: optim=d (0 of 2, 2 diverged)." in said
    assert "range(3)" not in said
    assert any("diverged runs are ranked after" in note for note in notes(sweep))


def test_a_setting_that_diverges_is_not_first_and_not_called_worse_for_it(tmp_path):
    settings(tmp_path, [0.90, 0.91], [0.80, 0.81, 0.79], [0.50, 0.51, 0.49])
    make_run(tmp_path, 2, 0.0, {"optim": "a"}, **DIVERGED)
    sweep = sweep_of(tmp_path)
    assert verdicts(sweep) == {"b": "first", "c": "worse", "a": "ahead where it did not diverge"}
    said = answer(sweep)
    assert said.startswith("optim=b has the highest validation accuracy of the settings without a diverged run: 80.00%")
    assert (
        "Significantly ahead, but with diverged runs: optim=a (n = 2 of 3, 1 diverged); optim=a is 10.50 points ahead "
        "in the runs that did not diverge. The other setting is worse."
    ) in said
    assert "cannot be distinguished" not in said
    assert "takes" not in said  # no advice on seeds
    for seed, value in enumerate((0.90, 0.40)):
        make_run(tmp_path / "unsteady", seed, value, {"optim": "a"})
    unsteady = settings(tmp_path / "unsteady", [], [0.60, 0.61, 0.59])
    assert "without a diverged run" not in answer(unsteady)
    make_run(tmp_path / "unsteady", 2, 0.0, {"optim": "a"}, **DIVERGED)
    assert verdicts(sweep_of(tmp_path / "unsteady")) == {"b": "first", "a": "may be the best"}
    assert "It cannot be distinguished from optim=a" in answer(sweep_of(tmp_path / "unsteady"))


def test_a_seed_counts_once(tmp_path, capsys):
    """A backup, in which one run has other results, and a failed attempt elsewhere at a run that is done."""
    values = [0.80, 0.81, 0.79], [0.70, 0.71, 0.69]
    alone = settings(tmp_path / "alone", *values)
    settings(tmp_path / "a", *values)
    settings(tmp_path / "backup", values[0], [0.70, 0.71, 0.99])
    make_run(tmp_path / "later", 1, 0.0, {"optim": "b"}, **DIVERGED)
    folders = [tmp_path / name for name in ("a", "backup", "later")]
    sweep = Sweep(*read(find(folders)))
    assert tables.ranking_table(sweep) == tables.ranking_table(alone)
    assert tables.commands(sweep) == tables.commands(alone)
    assert len(tables.runs_table(sweep)) == 7
    reasons = {str(path.relative_to(tmp_path)): reason for path, reason in sweep.left_out}
    name = "shapes-none-none"
    assert reasons[f"backup/{name}-a-0"] == f"a copy of {tmp_path}/a/{name}-a-0"
    other = f"the same setting and seed as {tmp_path}/a/{name}-b-"
    assert reasons[f"backup/{name}-b-2"] == f"{other}2, with other results"
    assert reasons[f"later/{name}-b-1"] == f"{other}1"
    assert len(reasons) == 7
    test = compare.chosen("optim=b", tmp_path).test
    assert (test.num, test.mean) == (len(values[1]), pytest.approx(np.mean(values[1])))
    assert "backup/shapes-none-none-b-2: left out: the same setting and seed as" in capsys.readouterr().out


def test_an_effect_names_the_combinations_that_it_covers(tmp_path):
    """Of two by three combinations one is missing, and one has lost a seed."""
    for seed, noise in enumerate((0.0, 0.01, -0.01)):
        for optim, gain in (("sgd", 0.0), ("adam", 0.1)):
            for aug, loss in (("none", 0.0), ("cutmix", 0.05), ("mixup", 0.2)):
                if (optim, aug) != ("adam", "mixup") and (seed, optim, aug) != (2, "adam", "cutmix"):
                    make_run(tmp_path, seed, 0.6 + gain - loss + noise, {"optim": optim, "aug": aug})
    sweep = sweep_of(tmp_path)
    found = {effect.value: effect for effect in effects(sweep, "optim")}
    assert found["adam"].combinations == ["aug=cutmix", "aug=none"]
    assert found["adam"].missing == ["aug=mixup"]
    assert found["adam"].change.mean == pytest.approx(0.1025)  # of all seeds that there are
    assert math.isfinite(found["adam"].change.p_value)
    over = {effect.value: effect.combinations for effect in effects(sweep, "aug")}
    assert over["mixup"] == ["optim=sgd"]
    assert len(tables.effects_table(sweep, "aug", effects(sweep, "aug"))) == 4
    assert (shares(sweep).parts, shares(sweep).p_value > 0.05) == ({}, True)
    texts = {title: text for title, text, _ in tables.effect_sections(sweep)}
    assert "F-test for no interaction" in texts["Effect of aug"]
    assert re.search(r"aug=mixup is \d+\.\d\d points worse than none \(over optim=sgd\)", answer(sweep))


def test_an_effect_is_said_to_be_of_the_runs_that_did_not_diverge(tmp_path):
    for seed, noise in enumerate((0.0, 0.001, -0.001, 0.0)):
        for optim, gain in (("sgd", 0.0), ("adam", 0.1)):
            for aug in ("none", "cutmix"):
                lost = DIVERGED if optim == "adam" and seed > 1 else {}
                make_run(tmp_path, seed, 0.6 + gain + noise, {"optim": optim, "aug": aug}, **lost)
    sweep = sweep_of(tmp_path)
    assert "optim=adam is 10.05 points better than sgd, in the runs that did not diverge." in answer(sweep)
    table = tables.effects_table(sweep, "optim", effects(sweep, "optim"))
    assert [dict(zip(table[0], row, strict=True))["n"] for row in table[1:]] == ["4 of 8, 4 diverged", "8"]


def test_of_many_combinations_those_are_named_that_an_effect_does_not_cover(tmp_path):
    for place in range(6):
        for optim in ("sgd", "adam")[: 1 + (place < 5)]:
            make_run(tmp_path, 0, 0.5 + 0.01 * place, {"optim": optim, "aug": f"a{place}"})
    over = {effect.value: effect.over for effect in effects(sweep_of(tmp_path), "optim")}
    assert over == {"adam": "5 combinations, without aug=a5", "sgd": "6 combinations"}


def test_an_interaction_is_found_though_a_combination_is_missing(tmp_path):
    values = {"none": (0.5, 0.6), "cutmix": (0.7, 0.6), "mixup": (0.5,)}
    for place, (aug, means) in enumerate(values.items()):
        for optim, mean in zip(("a", "b"), means, strict=False):
            for seed, noise in enumerate(np.roll((0.0, 0.002, -0.002), place)):
                make_run(tmp_path, seed, mean + noise, {"optim": optim, "aug": aug})
    sweep = sweep_of(tmp_path)
    [(title, said, _)] = tables.effect_sections(sweep)
    assert (title, "mean effects would mislead" in said) == ("Effects of the axes", True)
    between = 3 * 4 * 0.05**2  # four cells, each 0.05 from the sum of its axes
    ratio = between / (5 * 2 * 0.002**2 / 10)
    assert shares(sweep).p_value == pytest.approx(stats.f.sf(ratio, 1, 10), rel=1e-6)


def test_on_an_incomplete_grid_the_means_in_a_row_differ_by_its_difference(tmp_path):
    values = {("sgd", "none"): 0.5, ("sgd", "cutmix"): 0.9, ("adam", "none"): 0.6, ("muon", "cutmix"): 0.8}
    for (optim, aug), value in values.items():
        for seed in (0, 1):
            make_run(tmp_path, seed, value + 0.01 * seed, {"optim": optim, "aug": aug})
    sweep = sweep_of(tmp_path)
    head, *rows = tables.effects_table(sweep, "optim", effects(sweep, "optim"))
    assert head[:5] == ["optim", "mean validation accuracy (%)", "mean of sgd there", "n", "better than sgd by"]
    assert [[*row[:3], row[4].split(" ")[0], row[-1]] for row in rows] == [
        ["adam", "60.50", "50.50", "+10.00", "aug=none"],
        ["muon", "80.50", "90.50", "-10.00", "aug=cutmix"],
        ["sgd", "70.50", "70.50", "", "aug=cutmix; aug=none"],
    ]
    full = two_way(tmp_path / "full", gain=0.0)
    assert "mean of sgd there" not in tables.effects_table(full, "optim", effects(full, "optim"))[0]


def test_a_single_run_in_one_combination_does_not_take_the_interval_of_an_effect(tmp_path):
    for seed, noise in enumerate((0.0, 0.01, -0.01)):
        for optim, gain in (("sgd", 0.0), ("adam", 0.1)):
            for aug in ("none", "cutmix"):
                if seed == 0 or (optim, aug) != ("adam", "cutmix"):
                    make_run(tmp_path, seed, 0.6 + gain + noise, {"optim": optim, "aug": aug})
    [effect] = [effect for effect in effects(sweep_of(tmp_path), "optim") if effect.value == "adam"]
    assert effect.combinations == ["aug=none"]
    assert math.isfinite(effect.change.p_value)


def test_no_lead_is_claimed_over_a_setting_that_is_not_told_apart(tmp_path):
    sweep = settings(tmp_path, [0.800, 0.801, 0.802], [0.790, 0.791, 0.792], [0.60, 0.80, 0.85])
    assert verdicts(sweep) == {"a": "first", "b": "worse", "c": "may be the best"}
    said = answer(sweep)
    assert "It cannot be distinguished from optim=c, which may be as good" in said
    assert "The other setting is worse." in said
    assert "better than" not in said
    alone = settings(tmp_path / "single", [0.801], [0.791], [0.60, 0.80, 0.85])
    assert set(verdicts(alone).values()) == {"first", "not known"}
    assert "better" not in answer(alone)


def test_advice_on_seeds_is_their_number(tmp_path):
    spread = 0.0087 / np.std([0.0, 1.0, 2.0], ddof=1)
    made = settings(tmp_path / "several", *([0.8 + gap + spread * seed for seed in range(3)] for gap in (0, 0.001)))
    assert "detecting a difference of 1 point takes 13 seeds of each setting; 2 points, 5." in answer(made)
    data = {"classes": ["a", "b"], "fingerprint": "f" * 64, "num_train": 9, "num_held_out": 5000}
    single = settings(tmp_path / "single", [0.80], [0.79], data=data)
    number = seeds_to_detect(0.01, math.sqrt(0.8 * 0.2 / 5000))
    assert f"detecting a difference of 1 point takes at least {number} seeds" in answer(single)
    by_test = settings(tmp_path / "by_test", [0.80], [0.79], data=data, selected_on="test/acc")
    assert "detecting" not in answer(by_test)  # the test images are the same for every seed
    assert "Run several seeds of each setting" in seeds_needed(settings(tmp_path / "unknown", [0.8], [0.7]))


def test_equal_seeds_are_no_reason_for_advice(tmp_path):
    """The standard deviation of three times 0.1 is 1.7e-17."""
    made = settings(tmp_path, [0.1] * 3, [0.1] * 3)
    assert "seeds of each setting" not in answer(made)
    assert [row[2] for row in tables.ranking_table(made)[1:]] == ["no spread", "no spread"]


def test_small_values_have_three_digits(tmp_path):
    for optim, loss in (("a", 2e-5), ("b", 9e-6)):
        for seed in range(3):
            metrics = {"val/loss": loss + 1e-7 * seed, "test/loss": loss, "val/acc": 0.5, "test/acc": 0.5}
            make_run(tmp_path, seed, 0.5, {"optim": optim}, selected_on="val/loss", select_mode="min", metrics=metrics)
    said = answer(sweep_of(tmp_path))
    assert said.startswith("optim=b has the lowest validation loss: 9.10e-06 (95% CI 8.85e-06 to 9.35e-06, n = 3)")
    assert "optim=a is 1.10e-05 behind (1.08e-05 to 1.12e-05)" in said
    shown = {0: "0.0000", 1e-17: "0.0000", 0.00123: "0.00123", -0.005: "-0.00500", 0.01: "0.0100", 2.5: "2.5000"}
    assert {value: points("val/loss", value) for value in shown} == shown
    assert points("val/acc", 0.00001) == "0.00 points"


def test_intervals_of_accuracies_stay_within_0_and_100(tmp_path):
    sweep = settings(tmp_path, [0.6, 1.0], [0.1, 0.9])
    text = page.markdown(document(sweep))
    numbers = [float(number) for pair in re.findall(r"(-?\d+\.\d\d) to (-?\d+\.\d\d)", text) for number in pair]
    assert max(numbers) == 100
    assert min(numbers) >= -100
    assert sweep.ranking[0].score.high == 1


def test_the_table_of_a_sweep_is_in_the_order_of_the_page(tmp_path, capsys):
    for optim, held_out in (("a", 0.7), ("b", 0.9), ("c", 0.8)):
        make_run(tmp_path, 0, held_out, {"optim": optim}, test=1 - held_out)
    assert print_table(list(find([tmp_path])))
    order = [place.setting.value("optim") for place in sweep_of(tmp_path).ranking]
    assert order == ["b", "c", "a"]
    shown = capsys.readouterr().out
    places = [shown.index(f" {tenths}0.00 ") for tenths in (9, 8, 7)]
    assert places == sorted(places)


def test_the_page_says_how_much_the_test_images_leave_open(tmp_path):
    for seed in range(3):
        run = make_run(tmp_path, seed, 0.5 + 0.001 * seed)
        right = np.arange(10000) % 2
        RunDirectory(run).write_predictions(np.ones(10000, dtype=np.uint8), right.astype(np.uint8), np.ones(10000))
    sweep = sweep_of(tmp_path)
    assert image_noise(sweep)[1] == pytest.approx(0.005, rel=1e-3)
    assert "other test images by 0.50 points" in " ".join(notes(sweep))


def test_a_t_test_and_mcnemars_say_what_they_ask(tmp_path):
    sweep = settings(tmp_path, [0.80, 0.81, 0.82], [0.70, 0.71, 0.72])
    _, over_seeds, over_images = compare.compare(*grouped(sweep.runs))
    assert over_seeds.startswith("Would other seeds of these settings give the same result?")
    assert over_images.startswith("Would these trained networks differ on other images?")


def two_way(folder: Path, gain: float, noise: float = 0.005, num: int = 3) -> Sweep:
    """Two values of aug by three of optim; the second aug gains only with the last optim."""
    generator = np.random.default_rng(0)
    for row, aug in enumerate(("none", "cutmix")):
        for column, optim in enumerate(("sgd", "adam", "muon")):
            for seed in range(num):
                value = 0.6 + 0.02 * column + gain * row * (column == 2) + generator.normal(0, noise)
                make_run(folder, seed, value, {"aug": aug, "optim": optim})
    return sweep_of(folder)


def test_shares_of_the_variance_are_those_of_least_squares(tmp_path):
    sweep = two_way(tmp_path, gain=0.05)
    found = shares(sweep)
    rows = [(run.settings["aug"], run.settings["optim"], run.score) for run in sweep.runs]
    y = np.array([score for *_, score in rows])
    aug = np.array([[1.0, kind == "none"] for kind, *_ in rows])
    optim = np.array([[1.0, kind == "sgd", kind == "adam"] for _, kind, _ in rows])
    cell = np.array(
        [[(a, o) == (x, z) for x in ("none", "cutmix") for z in ("sgd", "adam", "muon")] for a, o, _ in rows]
    )

    def left(*columns: np.ndarray) -> float:
        design = np.hstack(columns).astype(float)
        return float(((y - design @ np.linalg.lstsq(design, y)[0]) ** 2).sum())

    total, additive, full = left(np.ones((len(y), 1))), left(aug, optim), left(cell)
    expected = {
        "aug": total - left(aug),
        "optim": total - left(optim),
        "interaction": additive - full,
        "seeds": full,
    }
    assert found.parts == pytest.approx({name: part / total for name, part in expected.items()})
    assert sum(found.parts.values()) == pytest.approx(1)
    ratio = (additive - full) / 2 / (full / (len(y) - 6))
    assert found.p_value == pytest.approx(stats.f.sf(ratio, 2, len(y) - 6))


def test_a_main_effect_is_no_answer_where_the_axes_interact(tmp_path):
    text = page.markdown(document(two_way(tmp_path / "with", gain=0.05)))
    assert "the effect of one depends on the others" in text
    assert "## Effect of" not in text
    without = page.markdown(document(two_way(tmp_path / "without", gain=0.0)))
    assert "depends on the others" not in without
    assert "better than sgd by" in without  # the default
    assert "better than none by" in without


def test_the_answer_names_the_mean_effects_that_are_significant(tmp_path):
    assert "the effect of one depends on the others (F-test" in answer(two_way(tmp_path / "with", gain=0.05))
    clear = two_way(tmp_path / "clear", gain=0.0)
    [sentence] = re.findall(r"Averaged over the other axes, [^.]*\.\d+ points.*?\.(?= |$)", answer(clear))
    for axis in clear.axes:
        for effect in effects(clear, axis):
            assert (f"{axis}={effect.value} is" in sentence) == bool(effect.change and effect.change.distinguishable)
    for seed, noise in enumerate((0.0, 0.05, -0.05)):
        for place, optim in enumerate(("sgd", "adam")):
            for aug in ("none", "cutmix"):
                make_run(tmp_path / "noisy", seed, 0.6 + 0.01 * place + noise, {"optim": optim, "aug": aug})
    said = answer(sweep_of(tmp_path / "noisy"))
    assert "Averaged over the other axes, no value of any axis makes a significant difference." in said


def test_two_settings_whose_seeds_pair_have_a_report(tmp_path):
    common = np.array([0.50, 0.60, 0.55, 0.65])
    sweep = settings(tmp_path, list(common + [0.011, 0.009, 0.010, 0.012]), list(common + [0.0, 0.002, 0.012, 0.013]))
    assert sweep.family.paired
    assert "compared paired by seed" in page.markdown(document(sweep))
    [paired] = [line for line in method(sweep) if "a paired t-test, with" in line]
    assert "comparisons on this page (1)" in paired
    expected = stats.ttest_rel(*(list(place.setting.by_seed.values()) for place in sweep.ranking))
    assert sweep.ranking[1].behind.p_value == pytest.approx(expected.pvalue)
    assert "after pairing by seed, of" in seeds_needed(sweep)


def test_fewer_degrees_of_freedom_take_more_seeds():
    """The exact power of a paired t-test of n seeds, which has n - 1 degrees of freedom."""
    num = seeds_to_detect(0.01, 0.009, of_each=0.5)

    def power(n: int) -> float:
        return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, 0.01 / 0.009 * math.sqrt(n / 2)))

    assert power(num) >= 0.8 > power(num - 1)
    assert num == seeds_to_detect(0.01, 0.009) + 1


@pytest.mark.parametrize("name", ["muon", "sgd"])  # one more value, and the default
def test_a_value_that_always_diverges_hides_neither_effects_nor_interaction(tmp_path, name):
    kept = [optim for optim in ("sgd", "adam", "muon") if optim != name]
    for gain, folder in ((0.1, tmp_path / "with"), (0.0, tmp_path / "without")):
        for seed, noise in enumerate((0.0, 0.002, -0.002)):
            for aug in ("none", "cutmix"):
                make_run(folder, seed, 0.0, {"optim": name, "aug": aug}, **DIVERGED)
                for place, optim in enumerate(kept):
                    value = 0.5 + 0.05 * place + gain * (place == 1 and aug == "cutmix") + noise * (1 + place)
                    make_run(folder, seed, value, {"optim": optim, "aug": aug})
    sweep = sweep_of(tmp_path / "with")
    assert "the effect of one depends on the others (F-test" in answer(sweep)
    assert set(shares(sweep).parts) == {"aug", "optim", "interaction", "seeds"}
    sweep = sweep_of(tmp_path / "without")
    change = next(effect.change for effect in effects(sweep, "optim") if effect.change)
    assert abs(change.mean) == pytest.approx(0.05)
    assert re.search(r"Averaged over the other axes, optim=\w+ is 5.00 points (better|worse) than", answer(sweep))


def test_intervals_stay_within_what_a_metric_states(tmp_path):
    more = {"selected_on": "val/f1", "metric_bounds": {"f1": {"low": 0.0, "high": 1.0}, "r2": {"high": 1.0}}}
    for seed, value in enumerate((0.999, 0.9, 0.99)):
        make_run(tmp_path / "f1", seed, 0.5, {"optim": "a"}, metrics={"val/f1": value, "test/f1": value}, **more)
    [place] = sweep_of(tmp_path / "f1").ranking
    assert (place.score.high, place.test.high) == (1.0, 1.0)
    assert place.score.low < 0.9
    for seed, value in enumerate((-0.1, 0.05, 0.0)):  # beyond what is stated, as of Matthews' coefficient
        make_run(tmp_path / "mcc", seed, 0.5, {"optim": "a"}, metrics={"val/f1": value}, **more)
    [place] = sweep_of(tmp_path / "mcc").ranking
    assert place.score.low == -0.1


def test_a_run_without_a_test_value_does_not_take_those_of_others(tmp_path):
    for seed, value in enumerate((0.80, 0.81, 0.79)):
        make_run(tmp_path, seed, value, {"optim": "a"}, **({"metrics": {"val/acc": value}} if seed == 2 else {}))
    sweep = sweep_of(tmp_path)
    head, row = tables.ranking_table(sweep)
    assert row[head.index("test accuracy (%)")] == "80.50 (n = 2)"
    assert "its test accuracy is 80.50% (" in answer(sweep)


def test_if_all_settings_have_diverged_runs_the_note_says_so(tmp_path, capsys):
    for optim in ("a", "b"):
        for seed, value in enumerate((0.80, 0.81)):
            make_run(tmp_path, seed, value, {"optim": optim})
        make_run(tmp_path, 2, 0.0, {"optim": optim}, **DIVERGED)
    sweep = sweep_of(tmp_path)
    assert "Every setting has diverged runs: means are only over the surviving runs." in notes(sweep)
    assert not any("ranked after" in line for line in notes(sweep))
    assert [row[1] for row in tables.runs_table(sweep)].count("diverged") == 2
    print_list(tmp_path, None, 10)
    assert capsys.readouterr().out.count("diverged") == 2


def test_a_terminal_says_that_nothing_was_held_out(tmp_path, verb):
    for optim, value in (("a", 0.8), ("b", 0.7)):
        make_run(tmp_path, 0, value, {"optim": optim}, selected_on="test/acc")
    said = verb("report", tmp_path, "--out", tmp_path / "page").stdout
    assert said.startswith("Nothing was held out: settings and epochs are chosen by test accuracy")
    lines = compare.compare(*grouped(sweep_of(tmp_path).runs))
    assert lines[0] == "Nothing was held out: epochs are chosen by test accuracy, which is optimistic."


def test_a_grid_of_single_runs_is_compared_by_what_main_effects_leave(tmp_path):
    sweep = two_way(tmp_path, gain=0.0, noise=0.0002, num=1)
    found = shares(sweep)
    assert set(found.parts) == {"aug", "optim", "interaction and seeds"}
    assert "Each combination has one run." in page.markdown(document(sweep))
    sections = {title: table for title, _, table in tables.effect_sections(sweep)}
    [row] = [row for row in sections["Effect of optim"] if row[0] == "muon"]
    variance, df = found.noise
    assert df == 2  # (2 - 1) * (3 - 1)
    half_width = stats.t.ppf(1 - 0.05 / 3 / 2, df) * math.sqrt(variance)  # 3 claims; 2 runs of each value: 2 / 2
    change = next(effect for effect in effects(sweep, "optim") if effect.value == "muon").change.mean
    assert row[3] == f"{100 * change:+.2f} ({100 * (change - half_width):.2f} to {100 * (change + half_width):.2f})"


def test_a_grid_of_single_runs_is_compared_though_one_is_missing(tmp_path):
    grid = np.array([[0.5, 0.6, 0.71], [0.6, 0.7, 0.8], [0.7, 0.81, np.nan]])
    for (row, column), value in np.ndenumerate(grid):
        lost = DIVERGED if np.isnan(value) else {}
        make_run(tmp_path, 0, np.nan_to_num(value), {"optim": "abc"[row], "aug": "xyz"[column]}, **lost)
    sweep = sweep_of(tmp_path)
    found = shares(sweep)
    variance, df = found.noise
    cells = [(row, column) for (row, column), value in np.ndenumerate(grid) if not np.isnan(value)]
    terms = [[1, row == 1, row == 2, column == 1, column == 2] for row, column in cells]
    values = [grid[cell] for cell in cells]
    rest = values - np.array(terms) @ np.linalg.lstsq(np.array(terms, float), np.array(values))[0]
    assert (variance, df, found.parts) == (pytest.approx((rest**2).sum() / 3), 3, {})
    assert "Averaged over the other axes, " in answer(sweep)


def test_a_search_and_its_page_name_the_same_winner(tmp_path):
    search = Search(
        OverridesParser.create().parse_overrides(["optim.lr=interval(0,1)", "model.x=interval(0,1)"]), 0, None
    )
    for number in range(8):
        trial, typed = search.propose()
        changes = {key: float(value) for key, _, value in (word.partition("=") for word in typed)}
        accuracy = 1 - abs(changes["optim.lr"] - 0.3)
        more = DIVERGED if number == 3 else {}
        run = make_run(tmp_path, 0, accuracy, changes=changes, test=1 - accuracy, **more)
        search.conclude(trial, RunDirectory(run))
    sweep = sweep_of(tmp_path)
    best = search.study.best_trial
    assert float(sweep.ranking[0].setting.value("optim.lr")) == pytest.approx(best.params["optim.lr"], abs=0.01)
    assert answer(sweep).count(f"{100 * best.value:.2f}%") == 1
    assert is_search(sweep)
    nums, means = best_of(sweep)
    assert (nums[0], nums[-1]) == (1, 8)
    assert means[-1] == pytest.approx(best.value)
    assert means == sorted(means)
    text = page.html(document(sweep))
    assert "Expected best by the number of trials" in text
    assert "Importance of hyperparameters" in text
    assert "Parallel coordinates" in text


@pytest.mark.parametrize("outcomes", [["done"] * 6 + ["running"] * 3, ["done"] * 7, ["done"] * 9])
def test_a_grid_that_is_not_finished_is_no_search(tmp_path, outcomes):
    """Three rates by three widths with one seed, of which some have not begun."""
    for place, outcome in enumerate(outcomes):
        changes = {"optim.lr": (0.1, 0.2, 0.3)[place // 3], "model.hidden": (8, 16, 32)[place % 3]}
        make_run(tmp_path, 0, 0.5 + 0.01 * place, changes=changes, status=outcome)
    assert not is_search(sweep_of(tmp_path))


def test_trials_that_have_not_ended_do_not_count(tmp_path):
    outcomes = ["done"] * 7 + ["diverged", "running", "running", "failed"]
    for place, outcome in enumerate(outcomes):
        more = {"done": {}, "diverged": DIVERGED}.get(outcome, {"status": outcome, "metrics": {}})
        changes = {"optim.lr": 0.1 + 0.01 * place, "model.dropout": 0.01 * place}
        make_run(tmp_path, 0, 0.5 + 0.01 * place, changes=changes, **more)
    sweep = sweep_of(tmp_path)
    assert is_search(sweep)
    nums, means = best_of(sweep)
    assert nums[-1] == 8
    assert means[0] == pytest.approx(np.mean([0.5, *(0.5 + 0.01 * place for place in range(7))]))
    caption = next(figure.caption for figure in document(sweep).figures() if figure.name == "best-of")
    assert caption.endswith(
        "Diverged and pruned trials count as the worst of the others. Without a result and not counted: 2 not "
        "finished, 1 failed."
    )


def test_seeds_without_spread_say_nothing_about_others(tmp_path):
    said = answer(settings(tmp_path, [0.9] * 3, [0.5] * 3))
    assert "40.00 points behind; the seeds show no spread, so nothing can be said about others." in said
    assert "cannot be distinguished" not in said


def test_the_metric_of_most_runs_ranks(tmp_path):
    made = [make_run(tmp_path, 0, 0.6, {"optim": "a"}, selected_on="test/acc")]
    made += [make_run(tmp_path, seed, 0.7, {"optim": "b"}) for seed in range(3)]
    said = answer(sweep_of(tmp_path))
    assert "The validation accuracy is 70.00%" in said
    assert "Not compared: runs selected by test/acc (1)." in said
