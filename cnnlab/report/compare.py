"""Two settings compared: paired by seed, and image by image. Does not import torch."""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from cnnlab.config.options import UserError
from cnnlab.report.contrasts import Family
from cnnlab.report.runs import FOLLOW, Run, Setting, find, grouped, loss_warning, read, varied, without_repeats
from cnnlab.report.statistics import mcnemar
from cnnlab.report.units import interval, is_accuracy, number, with_interval
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.named import named, names_a_run
from cnnlab.runs.readers import BrokenFileError
from cnnlab.runs.wording import in_words
from cnnlab.text import say


def chosen(what: str, among: Path) -> Setting:
    """The runs that `what` names: a run, a folder of runs, or settings like aug=cutmix,optim=sgd.

    Prints which of them are left out because there are others with the same setting and seed.

    Raises: UserError if there are none, or if they differ in more than their seed.
    """
    if names_a_run(what, among):
        runs, _ = read(find([named(what, among)]))
    else:
        wanted = dict(part.partition("=")[::2] for part in re.split(r",(?![^\[]*\])", what))
        runs, _ = read(find([among]))
        runs = [run for run in runs if all(same(run.value(name), value) for name, value in wanted.items())]
    runs, repeats = without_repeats(runs)
    for path, reason in repeats:
        say(f"{path}: left out: {reason}")
    groups = [group for group in grouped(runs) if group.runs]
    if not groups:
        raise UserError(
            f"{what} names no finished run: it is not a folder of runs, and no run in {among} has these settings. Use "
            f"a run directory or settings such as aug=cutmix,optim=sgd, and --runs FOLDER to search another folder."
        )
    if len(groups) > 1:
        differing = ", ".join(varied([group.runs[0] for group in groups]) or ["code, data, device or versions"])
        raise UserError(
            f"{what} names {len(runs)} runs that differ in more than their seed: {differing}. Such runs are not "
            f"averaged. Use more settings to select among them."
        )
    return groups[0]


def same(saved: str, given: str) -> bool:
    """Whether two texts are the same setting: 0.001 and 1e-3, crop_flip+cutmix and [cutmix,crop_flip]."""
    with suppress(ValueError):
        return float(saved) == float(given)
    return saved == given or sorted(saved.split("+")) == sorted(given.strip("[]").split(","))


def names(first: Setting, second: Setting) -> list[str]:
    """What distinguishes two settings, for each: "aug=cutmix", "aug=crop_flip"."""
    differing = varied([first.runs[0], second.runs[0]])
    conditions = [name for name, value in first.conditions.items() if value != second.conditions[name]]
    differing += [name for name in conditions if name not in FOLLOW or not differing]
    return [", ".join(f"{name}={group.value(name)}" for name in differing or ["run"]) for group in (first, second)]


def compare(first: Setting, second: Setting) -> list[str]:
    """Three lines: the two means, their difference over seeds, and the comparison image by image; before, a warning."""
    measure, other = (group.runs[0].measure for group in (first, second))
    if measure != other:
        raise UserError(
            f"One setting was selected by {measure} and the other by {other}: they cannot be compared. Use runs with "
            f"the same metric."
        )
    means = []
    for label, group in zip(names(first, second), (first, second), strict=True):
        score = with_interval(measure, group.score, group.count())
        tested = f"test/{measure.partition('/')[2]}"
        test = f", {in_words(tested)} {with_interval(tested, group.test)}" if group.test else ""
        means.append(f"{label}: {in_words(measure)} {score}{test}")
    family = Family([first.by_seed, second.by_seed], bounds=first.runs[0].bounds)
    gap = family.contrast({0: 1, 1: -1})
    size = number(measure, gap.mean, "+") + " points" * is_accuracy(measure)
    if math.isfinite(gap.half_width):
        how = f"paired over {gap.num} seeds" if family.paired else "Welch's t over all seeds"
        verdict = "" if gap.distinguishable else ": cannot be distinguished from noise"
        size += (
            f" (95%: {interval(measure, gap)}; {how}, p = {gap.p_value:.2g}, not corrected for other "
            f"comparisons){verdict}"
        )
    elif family.nums.min() > 1:
        size += "; the seeds show no spread, so nothing can be said about others"
    else:
        size += "; one run of a setting does not show whether other seeds would reverse that"
    warnings = [loss_warning(measure, varied([first.runs[0], second.runs[0]]))]
    if measure.startswith("test/"):
        warnings.append(f"Nothing was held out: epochs are chosen by {in_words(measure)}, which is optimistic.")
    return [
        *filter(None, warnings),
        "; ".join(means) + ".",
        f"Would other seeds of these settings give the same result? Difference in {in_words(measure)}: {size}.",
        images(first.runs, second.runs),
    ]


def images(first: Sequence[Run], second: Sequence[Run]) -> str:
    """McNemar's test on the predictions of each pair of runs with the same seed.

    Seeds are not pooled: they share the test images, so their mistakes are not independent.
    """
    if first[0].summary["data"]["task"] != "multiclass":
        return "Image by image: only for data with one class per image."
    by_seed = {run.seed: run for run in second}
    pairs = [(run, by_seed[run.seed]) for run in first if run.seed in by_seed]
    if not pairs:
        return "Image by image: not compared, as the two settings have no seed in common."
    found = []
    for one, other in pairs:
        try:
            ours, labels, _ = RunDirectory(one.path).predictions()
            theirs, their_labels, _ = RunDirectory(other.path).predictions()
        except FileNotFoundError:
            return "Image by image: not known, as a run has no predictions.npz."
        except BrokenFileError as error:
            return f"Image by image: not known. {error}"
        if not np.array_equal(labels, their_labels):
            return "Image by image: not comparable, as the test images differ."
        found.append(mcnemar(ours, theirs, labels))
    first_only, second_only, _ = np.mean(found, axis=0)
    p_values = sorted({f"{p_value:.2g}" for *_, p_value in found}, key=float)
    seeds = f", mean of {len(found)} seeds" if len(found) > 1 else ""
    return (
        f"Would these trained networks differ on other images? Image by image ({len(labels):,} test images{seeds}): "
        f"{first_only:,.0f} images are correct only with the first, {second_only:,.0f} only with the second (McNemar, "
        f"exact, p = {' to '.join(p_values[:: len(p_values) - 1 or 1])})."
    )
