"""The lab report's claims in its order: what each says, how it is measured here, what comes out. Takes no torch.

A number is a mean over seeds with its 95% interval by Student's t; differences are taken seed by seed. A claim holds if
the whole interval is on its side, does not hold if it is all on the other side, and cannot be told otherwise, as with
one seed. What is seen or not seen in a run holds if every seed shows it, and does not if none does.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cnnlab.report.statistics import CONFIDENCE, Estimate, estimate
from study import measures
from study.measures import CHANCE, CRAWL, FLAT, GAP, TARGET, Measure, accuracy
from study.results import Results, Run
from study.variants import BASELINE, BY_CHANNEL, CURVES, MOMENTUM, ONE_EPOCH, ZCA

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"
SAME = 1.0  # points within which two settings perform alike
NEAR = 3  # epochs within which "near epoch 15" is right
DOUBLE = 1.5  # times; "nearly double" is more


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
    """

    figure: str
    place: str
    says: str
    way: Way


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
    """A number of every seed's runs of the variants; seeds that have none are left out."""

    def find(results: Results) -> Finding:
        values = [value for runs in seeds_of(results, *variants) if (value := of(*runs)) is not None]
        if not values:
            return Finding("nothing to measure" if seeds_of(results, *variants) else "not run yet", 0, UNKNOWN)
        made = estimate(values)
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


def faster(first: str, second: str = BASELINE) -> Way:
    name = f"epochs to the target: {first} minus {second}"
    return mean(name, (first, second), measures.lead, lambda made: above(made, sign=-1), "epochs")


def exceeds(measure: Measure, variant: str, threshold: float = 0) -> Way:
    name = f"{measure.name}; above {threshold:g}"
    return mean(name, (variant,), measure.of, lambda made: above(made, threshold), measure.unit, measure.form)


def seen(measured: str, variants: tuple[str, ...], shows: Callable[..., bool | None], says: Callable[..., str]) -> Way:
    """Whether every seed shows something; `shows` is None where nothing can be said, `says` tells what there is."""

    def find(results: Results) -> Finding:
        seeds = seeds_of(results, *variants)
        if not seeds:
            return Finding("not run yet", 0, UNKNOWN)
        shown = [shows(*runs) for runs in seeds]
        verdict = HOLDS if all(shown) else FAILS if not any(shown) and None not in shown else UNKNOWN
        return Finding(" / ".join(dict.fromkeys(says(*runs) for runs in seeds)), len(seeds), verdict)

    return Way(measured, find)


def per_doubling(name: str, of: Callable[[Sequence[Sequence[Run]]], Iterator[float]], unit: str) -> Way:
    """What falls with every doubling of the batch size; `of` has a number for the runs of every size."""

    def find(results: Results) -> Finding:
        runs = [list(results.get(key, {}).values()) for key in CURVES["fig02"].values()]
        if not all(runs):
            return Finding("not run yet", 0, UNKNOWN)
        if min(len(run.rows) for of_size in runs for run in of_size) < measures.HALVES:
            return Finding("nothing to measure", 0, UNKNOWN)
        values = list(of(runs))
        line = stats.linregress(np.log2([float(size) for size in CURVES["fig02"]]), values)
        half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 2) * line.stderr)
        made = Estimate(float(line.slope), half_width, len(values), math.nan)
        return Finding(in_words(made, unit, "+.2f"), made.num, above(made, sign=-1))

    return Way(f"{name} per doubling of the batch: a line through the sizes' means (n: sizes)", find)


def best_of(first: str, others: Sequence[str]) -> Way:
    """Whether a setting is better than the one of the others that has the highest mean."""

    def find(results: Results) -> Finding:
        finals = {
            other: [measures.final(run) for run in results[other].values()] for other in others if other in results
        }
        if not finals:
            return Finding("not run yet", 0, UNKNOWN)
        best = max(finals, key=lambda other: float(np.mean(finals[other])))
        found = more(measures.ACCURACY, first, best).find(results)
        return Finding(f"{found.number} (to {best})", found.num, found.verdict)

    return Way(f"{measures.ACCURACY.name}: {first} minus the best other figure's", find)


# ----------------------------------------------------------------------------------------------- what is seen in a run


def ending(run: Run) -> str:
    return f"diverged in epoch {len(run.rows) + 1}" if run.failed else f"{measures.final(run):.1f} points"


def crawls(variant: str, best: str) -> Way:
    return seen(
        f"{measures.ACCURACY.name} below {CRAWL:g} x that of {best}",
        (variant, best),
        lambda run, other: measures.final(run) < CRAWL * measures.final(other),
        lambda run, other: f"{measures.final(run):.1f} against {ending(other)}",
    )


def is_flat_near(run: Run, epoch: int) -> bool:
    found = measures.flattens(accuracy(run))
    return found is not None and abs(found - epoch) <= NEAR


def flattening(run: Run) -> str:
    found = measures.flattens(accuracy(run))
    return f"epoch {found}" if found else f"still rising at epoch {len(run.rows)}"


def overfitting(run: Run) -> str:
    epoch, rise = measures.loss_rise(run)
    found = measures.onset(run)
    begins = f"from epoch {found}" if found else f"not in {len(run.rows)} epochs"
    return f"{begins} (test loss lowest at epoch {epoch}, then {rise:+.2f})"


def mean_roughness(sizes: Sequence[Sequence[Run]]) -> Iterator[float]:
    return (float(np.mean([measures.early_and_late(accuracy(run))[1] for run in runs])) for runs in sizes)


def mean_epochs(sizes: Sequence[Sequence[Run]]) -> Iterator[float]:
    """To TARGET x the smallest of all sizes' best accuracies."""
    target = TARGET * min(max(accuracy(run), default=0) for runs in sizes for run in runs)
    return (float(np.mean([measures.epochs_to(accuracy(run), target) or 0 for run in runs])) for runs in sizes)


# ---------------------------------------------------------------------------------------------------------- the claims


def overfits_before_20(variant: str) -> Way:
    return seen(
        f"{variant}: the first epoch with training more than {GAP:g} points above test accuracy is 17 ± {NEAR}",
        (variant,),
        lambda run: abs((measures.onset(run) or math.inf) - 17) <= NEAR,
        overfitting,
    )


def flattens_near_15(variant: str) -> Way:
    return seen(
        f"{variant}: the first epoch after which it gains less than {FLAT:g} point is 15 ± {NEAR}",
        (variant,),
        lambda run: is_flat_near(run, 15),
        flattening,
    )


DIVERGES = seen(f"{measures.ACCURACY.name} below {CHANCE:g}, or failed", ("lr=0.1",), measures.diverges, ending)
SECONDS = mean(
    f"seconds per epoch (median), without fitting: fig05 over fig06, on the same device; above {DOUBLE:g}",
    ("fig05", "fig06"),
    measures.times_slower,
    lambda made: above(made, DOUBLE),
    "times",
    ".2f",
)
OTHERS = [figure for figure in CURVES if "fig02" < figure < "fig13"]

CLAIMS = (
    Claim("fig01", "question 16", "too large a learning rate diverges (0.1)", DIVERGES),
    Claim("fig01", "question 16", "too small a learning rate crawls (0.0001)", crawls("lr=0.0001", "lr=0.01")),
    Claim(
        "fig02",
        "question 16",
        "large batches are steadier, small ones noisier",
        per_doubling("roughness of the test accuracy", mean_roughness, "points"),
    ),
    Claim(
        "fig02",
        "question 16",
        "small batches may need more epochs",
        per_doubling("epochs to the target", mean_epochs, "epochs"),
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
    Claim("fig03", "questions 17, 19", "the baseline overfits a little before epoch 20", overfits_before_20(BASELINE)),
    Claim("fig03", "question 17", "its test accuracy has flattened near epoch 15", flattens_near_15(BASELINE)),
    Claim(
        "fig03", "question 17", "its training accuracy goes on rising after that", exceeds(measures.GOES_ON, BASELINE)
    ),
    Claim("fig03", "questions 17, 19", "... with momentum 0.9: overfits before epoch 20", overfits_before_20(MOMENTUM)),
    Claim("fig03", "question 17", "... with momentum 0.9: flat near epoch 15", flattens_near_15(MOMENTUM)),
    Claim("fig04", "question 19", "normalisation makes training faster", faster("fig04")),
    Claim("fig04", "question 19", "... and steadier", less(measures.ROUGHNESS, "fig04")),
    Claim("fig05", "question 21", "PCA whitening can make convergence better", faster("fig05")),
    Claim("fig05", "question 21", "... and takes nearly twice the time", SECONDS),
    Claim(
        "fig06",
        "question 21",
        "PCA whitening and min-max scaling perform alike",
        difference(measures.ACCURACY, "fig05", "fig06", alike, f", within ±{SAME:g}"),
    ),
    Claim(
        "fig06",
        "question 21",
        "... ZCA whitening and min-max scaling",
        difference(measures.ACCURACY, ZCA, "fig06", alike, f", within ±{SAME:g}"),
    ),
    Claim(
        "fig06",
        "question 21",
        "... PCA whitening of every pixel's channels and min-max scaling",
        difference(measures.ACCURACY, BY_CHANNEL, "fig06", alike, f", within ±{SAME:g}"),
    ),
    Claim(
        "fig06", "question 21", "PCA whitening is the steadier of the two", less(measures.ROUGHNESS, "fig05", "fig06")
    ),
    Claim("fig07", "question 22", "crops and flips give better results", more(measures.ACCURACY, "fig07")),
    Claim("fig07", "question 22", "... with less overfitting", less(measures.OVERFITTING, "fig07")),
    Claim("fig07", "question 22", "... and a less steady test curve", more(measures.ROUGHNESS, "fig07")),
    Claim(
        "fig08",
        "question 25",
        "CutMix, too, should give better results (none are stated)",
        more(measures.ACCURACY, "fig08"),
    ),
    Claim("fig08", "question 25", "... with less overfitting", less(measures.OVERFITTING, "fig08")),
    Claim("fig09", "question 26", "a falling learning rate converges faster", faster("fig09")),
    Claim("fig09", "question 26", "... and more steadily", less(measures.ROUGHNESS, "fig09")),
    Claim("fig09", "questions 26, 27", "... to a better accuracy", more(measures.ACCURACY, "fig09")),
    Claim("fig10", "question 28", "Adam does not converge at 0.01, unlike at 0.0001", crawls("adam-lr=0.01", "fig10")),
    Claim("fig10", "question 28", "... nor at 0.001", crawls("adam-lr=0.001", "fig10")),
    Claim("fig11", "question 29", "dropout reduces overfitting", less(measures.OVERFITTING, "fig11")),
    Claim("fig11", "question 29", "... delays it", more(measures.LOWEST_AT, "fig11")),
    Claim("fig11", "question 29", "... and does not end it", exceeds(measures.OVERFITTING, "fig11", GAP)),
    Claim("fig12", "question 34", "batch normalisation converges faster", faster("fig12")),
    Claim("fig12", "question 34", "... to a better accuracy", more(measures.ACCURACY, "fig12")),
    Claim("fig12", "question 34", "... and a lower held-out loss", less(measures.LOWEST_LOSS, "fig12")),
    Claim("fig12", "question 34", "its test curve is unsteady early", more(measures.EARLY_ROUGHNESS, "fig12")),
    Claim("fig13", "section 3.6", "all improvements together are best", best_of("fig13", OTHERS)),
    Claim("fig13", "section 3.6", "... by much against the baseline", more(measures.ACCURACY, "fig13")),
)
