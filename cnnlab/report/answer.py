"""The answer of a sweep in a few sentences, and what a reader must know about its numbers."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np

from cnnlab.report.contrasts import seeds_to_tell
from cnnlab.report.statistics import ImageNoise, seeds_and_images
from cnnlab.report.sweep import Place, Sweep
from cnnlab.report.units import interval, is_accuracy, points, with_interval
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import BrokenFileError
from cnnlab.runs.wording import in_words

NAMED = 4  # settings that are named in a sentence


def answer(sweep: Sweep) -> str:
    """The best setting, which others may be as good, and how many seeds would tell."""
    if not sweep.ranking:
        unfinished = "".join(f" {sweep.label(group)}: {group.count()}." for group in sweep.empty[:NAMED])
        return f"No run has finished: there is no answer yet.{unfinished}"
    best, *others = sweep.ranking
    sentences = [f"{_found(sweep, best)}{_tested(sweep, best)}."]
    if others and best.score.num > 1:
        sentences += _compared(sweep, others)
    elif others:
        reverse = "one run of a setting does not show whether other seeds would reverse that"
        sentences.append(f"The next, {_gap(sweep, others[0])}; {reverse}.")
    if sweep.empty:
        names = _listed([f"{sweep.label(group)} ({group.count()})" for group in sweep.empty])
        sentences.append(f"Without a finished run: {names}.")
    if any(place.may_be_best for place in others) and (advice := seeds_needed(sweep)):
        sentences.append(advice)
    return " ".join(sentences)


def _found(sweep: Sweep, best: Place) -> str:
    score = with_interval(sweep.measure, best.score, best.setting.count())
    if len(sweep.ranking) + len(sweep.empty) == 1:
        return f"The {sweep.name} is {score}"
    return f"{sweep.label(best.setting)} has the {sweep.superlative} {sweep.name}: {score}"


def _tested(sweep: Sweep, best: Place) -> str:
    return f"; its {in_words(sweep.tested)} is {with_interval(sweep.tested, best.test)}" if best.test else ""


def _compared(sweep: Sweep, others: list[Place]) -> list[str]:
    """Which settings may be as good as the first, and that all others are worse."""
    rivals = [place for place in others if place.may_be_best]
    worse = len(others) - len(rivals)
    if not rivals:
        those = "the other setting" if worse == 1 else f"all {worse} others"
        return [f"It is better than {those}; {_gap(sweep, others[0])}."]
    names = _listed([_with_count(sweep, place) for place in rivals])
    found = [f"It cannot be told apart from {names}, which may be as good; {_gap(sweep, rivals[0])}."]
    return found + [f"The other {'setting is' if worse == 1 else f'{worse} settings are'} worse."] * (worse > 0)


def _with_count(sweep: Sweep, place: Place) -> str:
    """A setting, with its number of runs if they are fewer than were tried, or one."""
    notable = place.setting.unfinished or place.score.num < 2
    return sweep.label(place.setting) + (f" (n = {place.setting.count()})" if notable else "")


def _gap(sweep: Sweep, place: Place) -> str:
    assert place.behind is not None
    gap = place.behind.estimate
    if gap.mean < 0:
        return (
            f"{sweep.label(place.setting)} is {points(sweep.measure, -gap.mean)} ahead in the runs that did not diverge"
        )
    inside = f" ({interval(sweep.measure, gap)})" if math.isfinite(gap.half_width) else ""
    return f"{sweep.label(place.setting)} is {points(sweep.measure, gap.mean)} behind{inside}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more


def seeds_needed(sweep: Sweep) -> str:
    """How many seeds tell differences of interest apart, from the observed spread; of single runs, at least."""
    family, count = sweep.family, len(sweep.groups)
    rival = next(place for place in sweep.ranking[1:] if place.may_be_best)
    pair = [group is place.setting for place in (sweep.ranking[0], rival) for group in sweep.groups]
    variance = float(np.mean(family.variances[np.flatnonzero(pair) % count]))
    if math.isfinite(variance):
        spread, claims, least = math.sqrt(variance), family.num_claims, ""
        origin = f"With their spread over seeds ({points(sweep.measure, spread)})"
    elif math.isfinite(family.floor):
        spread, claims, least = math.sqrt(family.floor), family.num_claims, ""
        origin = f"With the spread over seeds of the other settings ({points(sweep.measure, spread)})"
    else:
        run = sweep.ranking[0].setting.runs[0]
        images = run.summary["data"].get("num_test" if sweep.by_test else "num_held_out", 0)
        if not (is_accuracy(sweep.measure) and images):
            return "Several seeds of each setting would show their spread, and so how many are needed."
        spread, claims, least = math.sqrt(run.score * (1 - run.score) / images), count * (count - 1) // 2, "at least "
        origin = f"The choice of {images:,} images alone makes a spread of {points(sweep.measure, spread)}; so"
    if spread == 0:
        return ""
    assert rival.behind is not None
    gaps = (0.01, 0.02) if is_accuracy(sweep.measure) else (abs(rival.behind.estimate.mean),)
    nums = [seeds_to_tell(gap, spread, claims) for gap in gaps]
    needed = [f"{least}{num}" if num else "more than 1,000" for num in nums]
    if not is_accuracy(sweep.measure):
        return f"{origin}, telling {points(sweep.measure, gaps[0])} apart takes {needed[0]} seeds of each setting."
    return f"{origin}, telling 1 point apart takes {needed[0]} seeds of each setting, 2 points {needed[1]}."


def protocol(sweep: Sweep) -> str:
    """What is wrong with choosing by test images, for runs that do; empty for others."""
    if not sweep.by_test:
        return ""
    return (
        f"Nothing was held out: settings and epochs are chosen by {sweep.name}, which is optimistic for the chosen one."
    )


def notes(sweep: Sweep) -> list[str]:
    """Which images and which epoch the numbers are from, and what else a reader must know about them."""
    others = sweep.ranking[1:]
    unit = ", in percent; differences are in points (percentage points)" if is_accuracy(sweep.measure) else ""
    found = [f"Numbers are the {sweep.name} at the best epoch by {sweep.measure}, means over n seeds{unit}."]
    if others and sweep.ranking[0].test:
        found.append(
            f"The {sweep.name} of the chosen setting is optimistic, being the {sweep.superlative} of "
            f"{len(sweep.ranking)}; its {in_words(sweep.tested)}, which chose nothing, is not."
        )
    if any(group.diverged for group in sweep.groups):
        found.append(
            "Settings with diverged runs are ranked after all settings without any, since their means are over the "
            "surviving runs only."
        )
    if noise := image_noise(sweep):
        found.append(
            f"Two kinds of noise for the chosen setting's {in_words(sweep.tested)}: other seeds would move its mean by "
            f"{points(sweep.tested, noise.seeds) if math.isfinite(noise.seeds) else 'an unknown amount'}, other test "
            f"images by {points(sweep.tested, noise.images)} (standard errors); 95% interval for "
            f"{'both' if math.isfinite(noise.seeds) else 'other images'}: {interval(sweep.tested, noise.both)}."
        )
    return found


def method(sweep: Sweep) -> list[str]:
    """How means and settings are compared, and how far that can be trusted; empty where every setting has one run."""
    family = sweep.family
    if not np.any(family.nums > 1):
        return []
    alone = "The interval of a mean is a 95% interval by Student's t over seeds, for this setting alone."
    if len(sweep.ranking) < 2:
        return [alone]
    how = (
        "seed by seed, since all settings have the same seeds and these explain a part of the variance"
        if family.paired
        else "over all seeds, without pairing"
    )
    return [
        f"{alone} That of the first setting, chosen for being the best, covers the truth in 89 to 93% of sweeps.",
        f"Settings are compared {how}, by Welch's t-test with a correction for all {family.num_claims} comparisons of "
        f"this page (Bonferroni): in 95% of such sweeps, no interval of a difference misses the truth and no setting "
        f'is called worse by mistake. "May be the best" is every setting that is not told apart from the first.',
        "Known limits, by simulation: the share of sweeps with a wrong claim is 5.9% instead of 5% for two settings "
        "of which one has five times the spread of the other, up to 7.7% with two seeds of each setting, and about 10% "
        "with 2, 3, 5 and 10 seeds where the setting with two seeds has the largest spread.",
    ]


def image_noise(sweep: Sweep) -> ImageNoise | None:
    """Of the best setting's test accuracy; None without predictions for all its seeds, or if all are right."""
    right = []
    if not is_accuracy(sweep.tested):
        return None
    with suppress(FileNotFoundError, BrokenFileError):
        for run in sweep.ranking[0].setting.runs:
            predicted, labels, _ = RunDirectory(run.path).predictions()
            right.append(predicted == labels)
    if len(right) < len(sweep.ranking[0].setting.runs) or len({len(row) for row in right}) != 1:
        return None
    found = np.array(right)
    return seeds_and_images(found) if found.any() and not found.all() else None
