"""Two settings against each other: paired by seed, and image by image. Takes no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from cnnlab.config.options import UserError
from cnnlab.report.runs import Run, Setting, find, grouped, read, varied
from cnnlab.report.statistics import difference, estimate, mcnemar
from cnnlab.report.sweep import amount, with_interval
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import BrokenFileError


def chosen(what: str, among: Path) -> Setting:
    """The runs that `what` names: a run directory, a folder of runs, or settings like aug=cutmix,optim=sgd.

    Raises: UserError if they are none, or differ in more than their seed.
    """
    folder = Path(what)
    if folder.is_dir():
        runs, _ = read(find([folder]))
    else:
        wanted = dict(part.partition("=")[::2] for part in re.split(r",(?![^\[]*\])", what))
        runs, _ = read(find([among]))
        runs = [run for run in runs if all(same(run.value(name), value) for name, value in wanted.items())]
    groups = grouped(runs)
    if not groups:
        raise UserError(
            f"{what} names no finished run: it is no folder with runs, and no run in {among} has these settings. Type "
            f"a run directory, or settings as in aug=cutmix,optim=sgd, and --runs FOLDER to say where to look."
        )
    if len(groups) > 1:
        differing = ", ".join(varied([group.runs[0] for group in groups]) or ["code, data, device or versions"])
        raise UserError(
            f"{what} names {len(runs)} runs that differ in more than their seed: {differing}. Such runs are not "
            f"averaged; name more settings."
        )
    return groups[0]


def same(kept: str, typed: str) -> bool:
    """Whether a setting is what was typed: 0.001 and 1e-3, crop_flip+cutmix and [cutmix,crop_flip]."""
    with suppress(ValueError):
        return float(kept) == float(typed)
    return kept == typed or sorted(kept.split("+")) == sorted(typed.strip("[]").split(","))


def names(first: Setting, second: Setting) -> list[str]:
    """What sets each apart from the other: "aug=cutmix", "aug=crop_flip"."""
    apart = [name for (name, one), (_, other) in zip(first.apart, second.apart, strict=True) if one != other]
    differing = varied([first.runs[0], second.runs[0]])
    differing += [name for name in apart if name != "configuration" or not differing]
    differing = differing or ["run"]
    return [", ".join(f"{name}={group.value(name)}" for name in differing) for group in (first, second)]


def compare(first: Setting, second: Setting) -> list[str]:
    """Three lines: the difference, how sure it is, and what the images say."""
    labels = names(first, second)
    measures = [group.runs[0].measure for group in (first, second)]
    if measures[0] != measures[1]:
        raise UserError(f"One is reported by {measures[0]} and the other by {measures[1]}: these are not compared.")
    scores = [estimate(list(group.by_seed.values())) for group in (first, second)]
    a, b = (f"{label}: {with_interval(value)}" for label, value in zip(labels, scores, strict=True))
    gap = difference(first.by_seed, second.by_seed)
    sign = "+" if gap.estimate.mean >= 0 else ""
    points = sign + amount(measures[0], gap.estimate.mean)
    if math.isinf(gap.estimate.half_width):
        sure = f"{points}; with one run of each, nothing can be said of other seeds."
    else:
        how = f"paired over {gap.estimate.num} seeds" if gap.paired else "over different seeds"
        verdict = "" if gap.distinguishable else ": cannot be told from noise"
        size = f"effect size {gap.effect_size:.1f}, p = {gap.p_value:.2g}"
        spread = amount(measures[0], gap.estimate.half_width).removesuffix(" points")
        sure = f"{points} ± {spread} (95%, {how}; {size}){verdict}."
    return [f"{a}; {b}.", f"Difference: {sure}", images(first.runs, second.runs)]


def images(first: Sequence[Run], second: Sequence[Run]) -> str:
    """McNemar's test on the predictions of each two runs with the same seed.

    Seeds are not put together: all have the same images, and their mistakes are not independent.
    """
    by_seed = {run.seed: run for run in second}
    pairs = [(run, by_seed[run.seed]) for run in first if run.seed in by_seed]
    if not pairs:
        return "Image by image: not compared, as no run of one has the seed of a run of the other."
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
    only = [sum(counts) / len(found) for counts in zip(*((f.only_first, f.only_second) for f in found), strict=True)]
    p_values = sorted({f"{one.p_value:.2g}" for one in found}, key=float)
    seeds = f", mean of {len(found)} seeds" if len(found) > 1 else ""
    return (
        f"Image by image ({len(labels):,} test images{seeds}): only the first is right on {only[0]:,.0f}, only the "
        f"second on {only[1]:,.0f} (McNemar, exact, p = {' to '.join(p_values[:: len(p_values) - 1 or 1])})."
    )
