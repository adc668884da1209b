"""The answer of a sweep in a few sentences, and what a reader must know about its numbers."""

import math
from collections import Counter
from contextlib import suppress

import numpy as np

from cnnlab.report.contrasts import seeds_to_detect
from cnnlab.report.effects import mean_effects, reference, shares
from cnnlab.report.runs import loss_warning
from cnnlab.report.statistics import TINY, Estimate, seeds_and_images
from cnnlab.report.sweep import Place, Sweep
from cnnlab.report.units import in_brackets, interval, is_accuracy, points, with_interval
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import BrokenFileError
from cnnlab.runs.wording import in_words

MAX_NAMED = 4  # settings in a sentence


def answer(sweep: Sweep) -> str:
    """The best setting, which others may be as good, and how many seeds would decide."""
    if not sweep.ranking:
        unfinished = "".join(f" {sweep.label(group)}: {group.count()}." for group in sweep.empty[:MAX_NAMED])
        return f"No run has finished: there is no answer yet.{unfinished}"
    best, *others = sweep.ranking
    score = with_interval(sweep.measure, best.score, best.setting.count())
    if others or sweep.empty:
        ahead = any(place.behind and place.behind.mean < 0 for place in others)
        among = " of the settings without a diverged run" * ahead
        first = f"{sweep.label(best.setting)} has the {sweep.superlative} {sweep.name}{among}: {score}"
    else:
        first = f"The {sweep.name} is {score}"
    if best.test:
        first += f"; its {in_words(sweep.tested)} is {with_interval(sweep.tested, best.test)}"
    sentences = [warning] if (warning := loss_warning(sweep.measure, sweep.axes)) else []
    sentences.append(f"{first}.")
    if others and best.score.num > 1:
        sentences += _compared(sweep, others)
    elif others:
        reverse = "one run of a setting does not show whether other seeds would reverse that"
        sentences.append(f"The next, {_gap(sweep, others[0])}; {reverse}.")
    if sweep.empty:
        names = _listed([f"{sweep.label(group)} ({group.count()})" for group in sweep.empty])
        sentences.append(f"Without a finished run: {names}.")
    sentences += _effects(sweep)
    if any(place.may_be_best for place in others) and (advice := seeds_needed(sweep)):
        sentences.append(advice)
    other = Counter(run.measure for run in sweep.runs if run.done and run.measure != sweep.measure)
    sentences += [f"Not compared: runs selected by {measure} ({num})." for measure, num in other.items()]
    if sweep.unreadable:
        sentences.append(f"Run directories that could not be read, and may belong here: {sweep.unreadable}.")
    if sweep.warnings:
        differing = "; ".join(sweep.warnings)
        sentences.append(
            f"The runs differ in more than their settings ({differing}); such runs are not averaged with each other."
        )
    return " ".join(sentences)


def _compared(sweep: Sweep, others: list[Place]) -> list[str]:
    """Which settings may be as good as the first, which are worse, and which are ahead where they did not diverge."""
    if all(place.verdict == "not known" and place.score.num > 1 for place in others):
        return [f"{_gap(sweep, others[0])}; the seeds show no spread, so nothing can be said about others."]
    rivals = [place for place in others if place.verdict == "may be the best"]
    worse = [place for place in others if place.verdict == "worse"]
    unknown = [place for place in others if place.verdict == "not known"]
    ahead = [place for place in others if place not in rivals + worse + unknown]
    if len(worse) == len(others):
        those = "the other setting" if len(worse) == 1 else f"all {len(worse)} others"
        return [f"It is better than {those}; {_gap(sweep, worse[0])}."]
    found = []
    if rivals:
        names = _named(sweep, rivals)
        found.append(f"It cannot be distinguished from {names}, which may be as good; {_gap(sweep, rivals[0])}.")
    if ahead:
        found.append(f"Significantly ahead, but with diverged runs: {_named(sweep, ahead)}; {_gap(sweep, ahead[0])}.")
    if unknown:
        names, why = _named(sweep, unknown), "a single run" if unknown[0].score.num < 2 else "seeds without a spread"
        found.append(f"Not known, with {why}, of {names}; {_gap(sweep, unknown[0])}.")
    if worse:
        found.append(f"The other {'setting is' if len(worse) == 1 else f'{len(worse)} settings are'} worse.")
    return found


def _effects(sweep: Sweep) -> list[str]:
    """Which values of an axis differ from their default on average over the other axes; empty for a single axis."""
    if len(sweep.axes) < 2:
        return []
    found = shares(sweep)
    if found and found.interact:
        return [f"The axes interact: the effect of one depends on the others (F-test, p = {found.p_value:.2g})."]
    tested = [
        (axis, effect, effect.change)
        for axis, of_axis in mean_effects(sweep, found)[1].items()
        for effect in of_axis
        if effect.change and math.isfinite(effect.change.half_width)
    ]
    differing = sorted((one for one in tested if one[2].distinguishable), key=lambda one: -abs(one[2].mean))
    if not differing:
        return ["Averaged over the other axes, no value of any axis makes a significant difference."] * bool(tested)
    names = []
    for axis, effect, change in differing:
        kind = "better" if change.mean > 0 else "worse"
        size = f"{points(sweep.measure, abs(change.mean))} {kind} than {sweep.brief(axis, reference(sweep, axis))}"
        size += f" (over {effect.over})" * bool(effect.missing)
        names.append(f"{sweep.short[axis]}={sweep.brief(axis, effect.value)} is {size}")
    survivors = ", in the runs that did not diverge" * any(effect.diverged for _, effect, _ in differing)
    return [f"Averaged over the other axes, {_listed(names)}{survivors}."]


def _named(sweep: Sweep, places: list[Place]) -> str:
    """Settings, each with its number of runs if that is one, or if some have not finished."""
    counts = [
        f" (n = {place.setting.count()})" if place.setting.unfinished or place.score.num < 2 else "" for place in places
    ]
    return _listed([sweep.label(place.setting) + count for place, count in zip(places, counts, strict=True)])


def _gap(sweep: Sweep, place: Place) -> str:
    assert place.behind is not None
    label, gap = sweep.label(place.setting), place.behind
    if gap.mean < 0:
        return f"{label} is {points(sweep.measure, -gap.mean)} ahead in the runs that did not diverge"
    behind = f"is {points(sweep.measure, gap.mean)} behind" if gap.mean > TINY else "has the same mean"
    return f"{label} {behind}{in_brackets(sweep.measure, gap)}"


def _listed(names: list[str]) -> str:
    more = f"; and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return "; ".join(names[:MAX_NAMED]) + more


def seeds_needed(sweep: Sweep) -> str:
    """How many seeds it takes to detect differences of interest, given the spread."""
    family, count = sweep.family, len(sweep.groups)
    rival = next(place for place in sweep.ranking[1:] if place.may_be_best)
    pair = [group is place.setting for place in (sweep.ranking[0], rival) for group in sweep.groups]
    variance, claims = float(np.mean(family.variances[np.flatnonzero(pair) % count])), family.num_claims
    of_each = (1 + family.moderation) * (1 - 1 / count if family.paired else 1)
    if math.isfinite(variance):
        spread = math.sqrt(variance)
        kind = "residual spread, after pairing by seed," if family.paired else "spread over seeds"
        others = " (shrunk toward that of the other settings)" * (count > 2)
        origin = f"Given a {kind} of {points(sweep.measure, spread)}{others}"
    elif family.typical > 0:
        spread = math.sqrt(family.typical)
        origin = f"Given the spread over seeds of the settings that have several, {points(sweep.measure, spread)}"
    else:
        run = sweep.ranking[0].setting.runs[0]
        images = run.summary["data"].get("num_held_out", 0)
        if sweep.by_test or not (is_accuracy(sweep.measure) and images):
            return "Run several seeds of each setting to see their spread, and so how many seeds are needed."
        spread, claims = math.sqrt(run.score * (1 - run.score) / images), count * (count - 1) // 2
        origin = (
            f"The choice of {images:,} held-out images, which is another one for every seed, alone causes a spread of "
            f"about {points(sweep.measure, spread)}; with that"
        )
    assert rival.behind is not None
    if spread < TINY or not (is_accuracy(sweep.measure) or abs(rival.behind.mean) > TINY):
        return ""
    least = "at least " * (not math.isfinite(variance) and not family.typical > 0)  # seeds cause a spread, too
    gaps = (0.01, 0.02) if is_accuracy(sweep.measure) else (abs(rival.behind.mean),)
    nums = [seeds_to_detect(gap, spread, claims, of_each) for gap in gaps]
    needed = [f"{least}{num}" if num else "more than 1,000" for num in nums]
    same = ", the same seeds for all" * family.paired
    found = f"{points(sweep.measure, gaps[0])} takes {needed[0]} seeds of each setting"
    if is_accuracy(sweep.measure):
        found = f"1 point takes {needed[0]} seeds of each setting; 2 points, {needed[1]}"
    return f"{origin}, detecting a difference of {found}{same}."


def protocol(sweep: Sweep) -> str:
    """A warning if test images chose the settings and epochs; otherwise empty."""
    if not sweep.by_test:
        return ""
    return f"Nothing was held out: settings and epochs are chosen by {sweep.name}, which is optimistic for the best."


def notes(sweep: Sweep) -> list[str]:
    """Which images and which epoch the numbers are from, and what else a reader must know about them."""
    unit = ", in percent; differences are in percentage points" if is_accuracy(sweep.measure) else ""
    found = [f"Numbers are the {sweep.name} at the best epoch by {sweep.measure}, means over n seeds{unit}."]
    if len(sweep.ranking) > 1 and sweep.ranking[0].test:
        found.append(
            f"The {sweep.name} of the best setting is optimistic, being the {sweep.superlative} of "
            f"{sweep.num_rivals}; its {in_words(sweep.tested)}, which was not used for any choice, is not."
        )
    if all(group.diverged for group in sweep.groups):
        found.append("Every setting has diverged runs: means are only over the surviving runs.")
    elif any(group.diverged for group in sweep.groups):
        found.append(
            "Settings with diverged runs are ranked after all settings without any, because their means are only over "
            "the surviving runs."
        )
    if noise := image_noise(sweep):
        seeds, images, both = noise
        known = math.isfinite(seeds)
        found.append(
            f"Two sources of noise in the best setting's {in_words(sweep.tested)}: other seeds would move its mean by "
            f"{points(sweep.tested, seeds) if known else 'an unknown amount'}, other test images by "
            f"{points(sweep.tested, images)} (standard errors); 95% interval for "
            f"{'both' if known else 'other images'}: {interval(sweep.tested, both)}."
        )
    return found


def method(sweep: Sweep) -> list[str]:
    """How means and settings are compared, and how reliable that is; empty if every setting has one run."""
    family = sweep.family
    if not np.any(family.nums > 1):
        return []
    alone = "The interval of a mean is a 95% interval by Student's t over the seeds of this setting."
    if len(sweep.ranking) < 2:
        return [alone]
    how = (
        "paired by seed, since all settings have the same seeds and these explain a part of the variance"
        if family.paired
        else "over all seeds, without pairing"
    )
    test = "a paired t-test" if family.paired else "Welch's t-test"
    moderated = ", with small variances shrunk toward the typical one" * (family.moderation > 0)
    chosen = (
        " That of the first setting is wider, as it is chosen for being the best: it covers the true mean in 95% of "
        f"sweeps even if all {sweep.num_rivals} settings are equal."
    )
    return [
        alone + chosen * (sweep.num_rivals > 1 and math.isfinite(sweep.ranking[0].score.half_width)),
        f"Settings are compared {how}, by {test}{moderated}, with a Bonferroni correction for the number of "
        f"comparisons on this page ({family.num_claims}): in 95% of such sweeps, every interval of a difference covers "
        'the true one and no setting is wrongly called worse. "May be the best" marks every setting that cannot be '
        "distinguished from the first. Whether axes interact is not one of these claims.",
        "Known limits, by simulation: the share of sweeps with a wrong claim is 6 to 7% instead of 5% if some settings "
        "have five times the spread of the others, up to 7% with two seeds of each setting, and up to 8% if those with "
        "the largest spread have two seeds, and others more.",
    ]


def image_noise(sweep: Sweep) -> tuple[float, float, Estimate] | None:
    """The noise of the best setting's test accuracy; None without predictions for all seeds, or if all are right."""
    runs = sweep.ranking[0].setting.runs
    if not is_accuracy(sweep.tested):
        return None
    correct = []
    with suppress(FileNotFoundError, BrokenFileError):
        for run in runs:
            predicted, labels, _ = RunDirectory(run.path).predictions()
            correct.append(predicted == labels)
    if len(correct) < len(runs) or len({len(row) for row in correct}) != 1:
        return None
    found = np.array(correct)
    return seeds_and_images(found) if found.any() and not found.all() else None
