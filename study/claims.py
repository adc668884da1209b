"""The lab report's claims in its order: what each says, how it is measured here, what comes out. Takes no torch.

A number is a mean over seeds with its 95% interval by Student's t; differences are taken seed by seed. A claim holds if
the whole interval is on its side, does not hold if it is all on the other side, and cannot be told otherwise, as with
one seed, or if a seed has no such number. What is seen or not seen in a run holds if every seed shows it, and does not
if none does.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cnnlab.report.statistics import CONFIDENCE, Estimate, estimate
from study import measures
from study.measures import CHANCE, CRAWL, FLAT, GAP, TARGET, Measure, accuracy
from study.results import Results, Run
from study.variants import BASELINE, BY_CHANNEL, CURVES, LONGER, MOMENTUM, ONE_EPOCH, WITH_MOMENTUM, ZCA

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
SAME = 1.0  # points within which two settings perform alike
NEAR = 3  # epochs within which "near epoch 15" is right
DOUBLE = 1.5  # times; "nearly double" is more
MUCH = 10.0  # points; "by much" is more
MUCH_LATER = 3  # epochs; "much later" is more


@dataclass(frozen=True)
class Finding:
    """What came out.

    Attributes:
        number: with its interval, as text.
        num: of seeds, or of what else the interval is over.
        verdict: HOLDS, FAILS or UNKNOWN.
    """

    number: str
    num: int
    verdict: str


@dataclass(frozen=True)
class Way:
    """How a claim is measured: in words, and the formula."""

    measured: str
    find: Callable[[Results], Finding]


@dataclass(frozen=True)
class Claim:
    """A statement of the report.

    Attributes:
        figure: whose runs it is about.
        place: where the report says it.
        says: what, in our words.
        asked_here: whether the report does not say it, and it is a question of ours.
    """

    figure: str
    place: str
    says: str
    way: Way
    asked_here: bool = False


# ------------------------------------------------------------------------------------------------------ ways to measure


def seeds_of(results: Results, *variants: str) -> list[list[Run]]:
    """For every seed that all the variants have, its runs."""
    found = [results.get(variant, {}) for variant in variants]
    return [[runs[seed] for runs in found] for seed in sorted(set.intersection(*map(set, found)))]


def above(made: Estimate, threshold: float = 0, sign: int = 1) -> str:
    """The verdict on a mean that is said to be above a threshold (sign 1) or below it (-1)."""
    low, high = sorted((sign * (made.low - threshold), sign * (made.high - threshold)))
    return HOLDS if low > 0 else FAILS if high < 0 else UNKNOWN


def alike(made: Estimate) -> str:
    """The verdict on a difference that is said to be none: whether it is within SAME."""
    if made.low > -SAME and made.high < SAME:
        return HOLDS
    return FAILS if made.low > SAME or made.high < -SAME else UNKNOWN


def in_words(made: Estimate, unit: str = "", form: str = "+.1f") -> str:
    """-1.2 ± 0.3 points; of one value, -1.2 points."""
    interval = f" ± {made.half_width:{form.lstrip('+')}}" if math.isfinite(made.half_width) else ""
    return f"{made.mean:{form}}{interval} {unit}".rstrip()


def mean(
    measured: str,
    variants: tuple[str, ...],
    of: Callable[..., float | None],
    verdict: Callable[[Estimate], str],
    unit: str = "",
    form: str = "+.1f",
) -> Way:
    """A number of every seed's runs of the variants. Where a seed has none, nothing can be told."""

    def find(results: Results) -> Finding:
        seeds = seeds_of(results, *variants)
        values = [value for runs in seeds if (value := of(*runs)) is not None]
        if not values:
            return Finding("nothing to measure" if seeds else "not run yet", 0, UNKNOWN)
        made = estimate(values)
        if len(values) < len(seeds):
            return Finding(f"{in_words(made, unit, form)}; nothing in other seeds", made.num, UNKNOWN)
        return Finding(in_words(made, unit, form), made.num, verdict(made))

    return Way(measured, find)


def difference(measure: Measure, first: str, second: str, verdict: Callable[[Estimate], str], note: str = "") -> Way:
    def of(one: Run, other: Run) -> float | None:
        values = measure.of(one), measure.of(other)
        return None if values[0] is None or values[1] is None else values[0] - values[1]

    name = f"{measure.name}: {first} minus {second}{note}"
    return mean(name, (first, second), of, verdict, measure.unit, measure.form)


def more(measure: Measure, first: str, second: str = BASELINE) -> Way:
    return difference(measure, first, second, above)


def less(measure: Measure, first: str, second: str = BASELINE) -> Way:
    return difference(measure, first, second, lambda made: above(made, sign=-1))


def overfits_less(first: str, second: str = BASELINE) -> Way:
    name = f"gap at the last epoch: {first} minus {second}, if this is above {GAP:g}"
    return mean(name, (first, second), measures.smaller_gap, lambda made: above(made, sign=-1), "points")


def steadier(first: str, second: str = BASELINE, sign: int = -1) -> Way:
    name = f"{measures.ROUGHNESS.name}: {first} minus {second}, if neither crawls"
    return mean(name, (first, second), measures.rougher, lambda made: above(made, sign=sign), "points", "+.2f")


def less_steady(first: str, second: str = BASELINE) -> Way:
    return steadier(first, second, sign=1)


def faster(first: str, second: str = BASELINE) -> Way:
    name = f"epochs to the target: {first} minus {second}"
    return mean(name, (first, second), measures.lead, lambda made: above(made, sign=-1), "epochs")


def exceeds(measure: Measure, variant: str, threshold: float = 0) -> Way:
    name = f"{measure.name}; above {threshold:g}"
    return mean(name, (variant,), measure.of, lambda made: above(made, threshold), measure.unit, measure.form)


def delays_overfitting(first: str, second: str = BASELINE) -> Way:
    name = f"epoch of the lowest test loss: {first} minus {second}, if this rises again; above {MUCH_LATER}"
    return mean(name, (first, second), measures.delay, lambda made: above(made, MUCH_LATER), "epochs")


def still_overfits(first: str, second: str = BASELINE) -> Way:
    name = f"gap at the last epoch, if that of {second} is above {GAP:g}; above {GAP:g}"
    return mean(name, (first, second), measures.gap_where_others_overfit, lambda made: above(made, GAP), "points")


def seen(measured: str, variants: tuple[str, ...], shows: Callable[..., bool], says: Callable[..., str]) -> Way:
    """Whether every seed shows something; `says` tells what there is."""

    def find(results: Results) -> Finding:
        seeds = seeds_of(results, *variants)
        if not seeds:
            return Finding("not run yet", 0, UNKNOWN)
        shown = [shows(*runs) for runs in seeds]
        verdict = HOLDS if all(shown) else UNKNOWN if any(shown) else FAILS
        return Finding(" / ".join(dict.fromkeys(says(*runs) for runs in seeds)), len(seeds), verdict)

    return Way(measured, find)


def falls_with_size(name: str, of: Callable[[Sequence[Sequence[Run]]], Iterator[float]], form: str) -> Way:
    """Whether a number falls as the batch grows; `of` has one for the runs of every size."""
    sizes = list(CURVES["fig02"])

    def find(results: Results) -> Finding:
        runs = [list(results.get(key, {}).values()) for key in CURVES["fig02"].values()]
        if not all(runs):
            return Finding("not run yet", 0, UNKNOWN)
        if min(len(run.rows) for of_size in runs for run in of_size) <= measures.WINDOW:
            return Finding("nothing to measure", 0, UNKNOWN)
        values = list(of(runs))
        order = stats.kendalltau(list(map(int, sizes)), values)
        told = order.pvalue < 1 - CONFIDENCE
        numbers = ", ".join(f"{size}: {value:{form}}" for size, value in zip(sizes, values, strict=True))
        verdict = UNKNOWN if not told else HOLDS if order.statistic < 0 else FAILS
        return Finding(f"{numbers} (p = {order.pvalue:.2f})", len(values), verdict)

    return Way(f"{name}, means of every size; their order by Kendall's tau (n: sizes)", find)


def best_of(first: str, others: Sequence[str], named: str) -> Way:
    """Whether a setting is better than the one of the others that has the highest mean."""

    def find(results: Results) -> Finding:
        finals = {
            other: [measures.final(one) for _, one in seeds]
            for other in others
            if (seeds := seeds_of(results, first, other))
        }
        if not finals:
            return Finding("not run yet", 0, UNKNOWN)
        best = max(finals, key=lambda other: float(np.mean(finals[other])))
        found = more(measures.ACCURACY, first, best).find(results)
        return Finding(f"{found.number} (to {best})", found.num, found.verdict)

    return Way(f"{measures.ACCURACY.name}: {first} minus the best of {named}", find)


# ----------------------------------------------------------------------------------------------- what is seen in a run


def ending(run: Run) -> str:
    return f"diverged in epoch {len(run.rows) + 1}" if run.failed else f"{measures.final(run):.1f} points"


def crawls(variant: str, best: str) -> Way:
    return seen(
        f"{measures.ACCURACY.name} below {CRAWL:g} x that of {best}",
        (variant, best),
        lambda run, other: measures.final(run) < CRAWL * measures.final(other),
        lambda run, other: f"{ending(run)} against {ending(other)}",
    )


def is_flat_near(run: Run, epoch: int) -> bool:
    found = measures.flattens(accuracy(run))
    return found is not None and abs(found - epoch) <= NEAR


def flattening(run: Run) -> str:
    if run.failed:
        return ending(run)
    found = measures.flattens(accuracy(run))
    return f"epoch {found}" if found else f"still rising at epoch {len(run.rows)}"


def overfitting(run: Run) -> str:
    if run.failed:
        return ending(run)
    epoch, rise = measures.loss_rise(run)
    found = measures.onset(run)
    begins = f"from epoch {found}" if found else f"not in {len(run.rows)} epochs"
    return f"{begins} (test loss lowest at epoch {epoch}, then {rise:+.2f})"


def mean_roughness(sizes: Sequence[Sequence[Run]]) -> Iterator[float]:
    return (float(np.mean([measures.roughness(accuracy(run))[1] for run in runs])) for runs in sizes)


def mean_epochs(sizes: Sequence[Sequence[Run]]) -> Iterator[float]:
    """To TARGET x the smallest of all sizes' best accuracies, by smooth curves."""
    curves = [[measures.smooth(accuracy(run)) for run in runs] for runs in sizes]
    target = TARGET * min(max(curve) for of_size in curves for curve in of_size)
    return (float(np.mean([measures.epochs_to(curve, target) for curve in of_size])) for of_size in curves)


# ---------------------------------------------------------------------------------------------------------- the claims


def begins_to_overfit_near(epoch: int, variant: str) -> Way:
    return seen(
        f"{variant}: the first epoch with training more than {GAP:g} points above test accuracy is {epoch} ± {NEAR}",
        (variant,),
        lambda run: abs((measures.onset(run) or math.inf) - epoch) <= NEAR,
        overfitting,
    )


def flattens_near(epoch: int, variant: str) -> Way:
    return seen(
        f"{variant}: the first epoch after which it gains less than {FLAT:g} point is {epoch} ± {NEAR}",
        (variant,),
        lambda run: is_flat_near(run, epoch),
        flattening,
    )


def with_momentum(figure: str, place: str, what: str, ways: Mapping[str, Callable[[str, str], Way]]) -> Iterator[Claim]:
    """The same against the baseline with momentum, which overfits."""
    for says, way in ways.items():
        claim = f"{what} with momentum 0.9: {says}"
        yield Claim(figure, place, claim, way(WITH_MOMENTUM[figure], MOMENTUM), asked_here=True)


def within(first: str, second: str) -> Way:
    return difference(measures.ACCURACY, first, second, alike, f", within ±{SAME:g}")


DIVERGES = seen(f"{measures.ACCURACY.name} below {CHANCE:g}, or failed", ("lr=0.1",), measures.diverges, ending)
SECONDS = mean(
    f"seconds of the fastest epoch, without fitting: fig05 over fig06, on the same device; above {DOUBLE:g}",
    ("fig05", "fig06"),
    measures.times_slower,
    lambda made: above(made, DOUBLE),
    "times",
    ".2f",
)
OTHERS = [figure for figure in CURVES if "fig02" < figure < "fig13"]


LONG_ENOUGH = seen(
    f"{LONGER}: gap at the last epoch above {GAP:g}",
    (LONGER,),
    lambda run: (measures.gap(run) or 0) > GAP,
    lambda run: f"{measures.gap(run) or 0:.1f} points after {len(run.rows)} epochs",
)


def better(first: str, second: str = BASELINE) -> Way:
    return more(measures.ACCURACY, first, second)


def by_much(first: str, second: str = BASELINE) -> Way:
    return difference(measures.ACCURACY, first, second, lambda made: above(made, MUCH), f"; above {MUCH:g}")


CLAIMS = (
    Claim("fig01", "question 16", "too large a learning rate (here 0.1) diverges", DIVERGES),
    Claim("fig01", "question 16", "too small a learning rate (here 0.0001) crawls", crawls("lr=0.0001", "lr=0.01")),
    Claim(
        "fig02",
        "question 16",
        "large batches are steadier, small ones noisier",
        falls_with_size(measures.ROUGHNESS.name, mean_roughness, ".2f"),
    ),
    Claim(
        "fig02",
        "question 16",
        "small batches may need more epochs",
        falls_with_size("epochs to the target", mean_epochs, ".1f"),
    ),
    Claim(
        "fig02",
        "question 17",
        "in epoch 1 the test loss is below the training loss",
        exceeds(measures.EXCESS, ONE_EPOCH),
    ),
    Claim(
        "fig02",
        "question 17",
        "... as training loss is averaged over the whole epoch",
        exceeds(measures.AVERAGING, ONE_EPOCH, 0.5),
    ),
    Claim("fig02", "question 17", "... and so of the accuracy", exceeds(measures.AVERAGING_ACCURACY, ONE_EPOCH, 0.5)),
    Claim("fig03", "question 17", "with more epochs, overfitting is evident", LONG_ENOUGH),
    Claim("fig03", "question 19", "... and begins a little before epoch 20", begins_to_overfit_near(17, BASELINE)),
    Claim("fig03", "question 17", "test accuracy has flattened near epoch 15", flattens_near(15, BASELINE)),
    Claim(
        "fig03", "question 17", "... and training accuracy goes on rising", exceeds(measures.GOES_ON, BASELINE, FLAT)
    ),
    Claim(
        "fig03",
        "question 17",
        "overfitting is evident after 20 epochs",
        exceeds(measures.OVERFITTING, BASELINE, GAP),
        asked_here=True,
    ),
    Claim(
        "fig03",
        "question 19",
        "the baseline for 60 epochs: overfits from a little before epoch 20",
        begins_to_overfit_near(17, LONGER),
        asked_here=True,
    ),
    Claim(
        "fig03",
        "question 17",
        "the baseline for 60 epochs: test accuracy has flattened near epoch 15",
        flattens_near(15, LONGER),
        asked_here=True,
    ),
    Claim(
        "fig03",
        "question 17",
        "the baseline with momentum 0.9: overfitting is evident",
        exceeds(measures.OVERFITTING, MOMENTUM, GAP),
        asked_here=True,
    ),
    Claim(
        "fig03",
        "question 19",
        "the baseline with momentum 0.9: overfits from a little before epoch 20",
        begins_to_overfit_near(17, MOMENTUM),
        asked_here=True,
    ),
    Claim(
        "fig03",
        "question 17",
        "the baseline with momentum 0.9: test accuracy has flattened near epoch 15",
        flattens_near(15, MOMENTUM),
        asked_here=True,
    ),
    Claim("fig04", "question 19", "normalisation makes training faster", faster("fig04")),
    Claim("fig04", "question 19", "... and steadier", steadier("fig04")),
    Claim("fig05", "question 21", "PCA whitening can make convergence better", faster("fig05")),
    Claim("fig05", "question 21", "... and takes nearly twice the time", SECONDS),
    Claim("fig05", "question 21", "ZCA whitening makes convergence faster", faster(ZCA), asked_here=True),
    Claim(
        "fig05",
        "question 21",
        "PCA whitening of every pixel's channels makes convergence faster",
        faster(BY_CHANNEL),
        asked_here=True,
    ),
    Claim("fig06", "question 21", "PCA whitening and min-max scaling perform alike", within("fig05", "fig06")),
    Claim("fig06", "question 21", "PCA whitening is the steadier of the two", steadier("fig05", "fig06")),
    Claim("fig06", "question 21", "ZCA whitening performs like min-max scaling", within(ZCA, "fig06"), asked_here=True),
    Claim(
        "fig06",
        "question 21",
        "ZCA whitening is steadier than min-max scaling",
        steadier(ZCA, "fig06"),
        asked_here=True,
    ),
    Claim(
        "fig06",
        "question 21",
        "PCA whitening of every pixel's channels performs like min-max scaling",
        within(BY_CHANNEL, "fig06"),
        asked_here=True,
    ),
    Claim(
        "fig06",
        "question 21",
        "PCA whitening of every pixel's channels is steadier than min-max scaling",
        steadier(BY_CHANNEL, "fig06"),
        asked_here=True,
    ),
    Claim("fig07", "question 22", "crops and flips give better results", better("fig07")),
    Claim("fig07", "question 22", "... with less overfitting", overfits_less("fig07")),
    Claim("fig07", "question 22", "... and a less steady test curve", less_steady("fig07")),
    *with_momentum(
        "fig07",
        "question 22",
        "crops and flips",
        {
            "better results": better,
            "less overfitting": overfits_less,
            "a less steady test curve": less_steady,
        },
    ),
    Claim("fig08", "question 25", "CutMix gives better results", better("fig08"), asked_here=True),
    Claim("fig08", "question 25", "CutMix overfits less", overfits_less("fig08"), asked_here=True),
    *with_momentum("fig08", "question 25", "CutMix", {"better results": better, "less overfitting": overfits_less}),
    Claim("fig09", "question 26", "a falling learning rate converges faster", faster("fig09")),
    Claim("fig09", "question 26", "... and more steadily", steadier("fig09")),
    Claim("fig09", "questions 26, 27", "... to a better accuracy", better("fig09")),
    *with_momentum(
        "fig09", "questions 26, 27", "a falling rate", {"faster": faster, "more steadily": steadier, "better": better}
    ),
    Claim("fig10", "question 28", "Adam does not converge at 0.01, unlike at 0.0001", crawls("adam-lr=0.01", "fig10")),
    Claim("fig10", "question 28", "Adam does not converge at 0.001", crawls("adam-lr=0.001", "fig10"), asked_here=True),
    Claim("fig11", "question 29", "dropout reduces overfitting", overfits_less("fig11")),
    Claim("fig11", "question 29", "... delays it much", delays_overfitting("fig11")),
    Claim("fig11", "question 29", "... and does not end it", still_overfits("fig11")),
    *with_momentum(
        "fig11",
        "question 29",
        "dropout",
        {"less overfitting": overfits_less, "much later": delays_overfitting, "but some": still_overfits},
    ),
    Claim("fig12", "question 34", "batch normalisation converges faster", faster("fig12")),
    Claim("fig12", "question 34", "... to a better accuracy", better("fig12")),
    Claim("fig12", "question 34", "... and a lower held-out loss", less(measures.LAST_LOSS, "fig12")),
    Claim("fig12", "question 34", "its test curve is unsteady early", more(measures.EARLY_ROUGHNESS, "fig12")),
    Claim("fig12", "question 34", "... unlike its training curve", exceeds(measures.UNSTEADIER, "fig12")),
    Claim("fig12", "question 34", "... and it settles", exceeds(measures.SETTLES, "fig12")),
    Claim(
        "fig13",
        "section 3.6",
        "all improvements together are best",
        best_of("fig13", OTHERS, "figures 3 to 12, as stated"),
    ),
    Claim("fig13", "section 3.6", "... by much against the baseline", by_much("fig13")),
    Claim(
        "fig13",
        "section 3.6",
        "all improvements together are best, also of those with momentum 0.9",
        best_of("fig13", [MOMENTUM, *WITH_MOMENTUM.values()], "those with momentum"),
        asked_here=True,
    ),
)
