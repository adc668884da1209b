"""How a claim is measured: a formula over the runs of its settings, and a verdict. Does not import torch.

A number is a mean over seeds; differences are taken seed by seed, and where a seed has no such number, nothing can be
told. What is seen or not seen in a run holds if every seed shows it, does not hold if none does, and has no p-value.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cnnlab.report.statistics import estimate
from study import measures
from study.measures import CHANCE, CRAWL, FLAT, GAP, Measure, accuracy
from study.results import Results, Run
from study.variants import BASELINE, CURVES, LARGE
from study.verdicts import (
    FAILS,
    HOLDS,
    NOT_COMPARABLE,
    SAME,
    UNKNOWN,
    Finding,
    Test,
    above,
    alike,
    below,
    in_words,
    one_seed,
)

NEAR = 3  # epochs within which "near epoch 15" is right
MUCH = 10.0  # points; "by much" is more
MUCH_LATER = 3  # epochs; "much later" is more


@dataclass(frozen=True)
class Way:
    """How a claim is measured: in words, and the formula."""

    measured: str
    find: Callable[[Results], Finding]


NOT_RUN = Finding("not run yet", 0, UNKNOWN)


def seeds_of(results: Results, *variants: str) -> list[list[Run]]:
    """For every seed that all the variants have, its runs."""
    found = [results.get(variant, {}) for variant in variants]
    return [[runs[seed] for runs in found] for seed in sorted(set.intersection(*map(set, found)))]


# ------------------------------------------------------------------------------------------------------------- the ways


def mean(
    measured: str,
    variants: tuple[str, ...],
    of: Callable[..., float | None],
    test: Test,
    unit: str = "",
    form: str = "+.1f",
) -> Way:
    """A number of every seed's runs of the variants. Where a seed has none, nothing can be told."""

    def find(results: Results) -> Finding:
        seeds = seeds_of(results, *variants)
        values = [value for runs in seeds if (value := of(*runs)) is not None]
        if not values:
            return Finding("nothing to measure", 0, UNKNOWN) if seeds else NOT_RUN
        made = estimate(values)
        number = in_words(made, unit, form) + one_seed(made.num)
        if len(values) < len(seeds):
            return Finding(f"{number}; nothing in other seeds", made.num, UNKNOWN)
        return Finding(number, made.num, *test(made)) if made.num > 1 else Finding(number, 1, UNKNOWN)

    return Way(measured, find)


def seen(measured: str, variants: tuple[str, ...], shows: Callable[..., bool], says: Callable[..., str]) -> Way:
    """Whether every seed shows something; `says` tells what there is."""

    def find(results: Results) -> Finding:
        if not (seeds := seeds_of(results, *variants)):
            return NOT_RUN
        shown = [shows(*runs) for runs in seeds]
        number = " / ".join(dict.fromkeys(says(*runs) for runs in seeds)) + one_seed(len(seeds))
        return Finding(number, len(seeds), agreed(shown))

    return Way(measured, find)


def agreed(shown: Sequence[bool]) -> str:
    """The verdict on what each seed shows or does not show."""
    return UNKNOWN if len(shown) < 2 or len(set(shown)) > 1 else HOLDS if shown[0] else FAILS


def difference(measure: Measure, first: str, second: str, test: Test, note: str = "") -> Way:
    def of(one: Run, other: Run) -> float | None:
        values = measure.of(one), measure.of(other)
        return None if values[0] is None or values[1] is None else values[0] - values[1]

    name = f"{measure.name}: {first} minus {second}{note}"
    return mean(name, (first, second), of, test, measure.unit, measure.form)


def more(measure: Measure, first: str, second: str = BASELINE) -> Way:
    return difference(measure, first, second, above)


def less(measure: Measure, first: str, second: str = BASELINE) -> Way:
    return difference(measure, first, second, below)


def better(first: str, second: str = BASELINE) -> Way:
    return more(measures.ACCURACY, first, second)


def by_much(first: str, second: str = BASELINE) -> Way:
    return difference(measures.ACCURACY, first, second, lambda made: above(made, MUCH), f"; above {MUCH:g}")


def within(first: str, second: str) -> Way:
    return difference(measures.ACCURACY, first, second, alike, f", within ±{SAME:g}")


def overfits_less(first: str, second: str = BASELINE) -> Way:
    name = f"gap at the last epoch: {first} minus {second}, if this is above {GAP:g}"
    return mean(name, (first, second), measures.smaller_gap, below, "points")


def steadier(first: str, second: str = BASELINE, test: Test = below) -> Way:
    name = f"{measures.ROUGHNESS.name}: {first} minus {second}, if neither crawls"
    return mean(name, (first, second), measures.rougher, test, "points", "+.2f")


def less_steady(first: str, second: str = BASELINE) -> Way:
    return steadier(first, second, above)


def faster(first: str, second: str = BASELINE) -> Way:
    return mean(f"epochs to the target: {first} minus {second}", (first, second), measures.lead, below, "epochs")


def exceeds(measure: Measure, variant: str, threshold: float = 0) -> Way:
    name = f"{variant}: {measure.name}; above {threshold:g}"
    return mean(name, (variant,), measure.of, lambda made: above(made, threshold), measure.unit, measure.form)


def delays_overfitting(first: str, second: str = BASELINE) -> Way:
    name = f"epoch of the lowest test loss: {first} minus {second}, if this rises again; above {MUCH_LATER}"
    return mean(name, (first, second), measures.delay, lambda made: above(made, MUCH_LATER), "epochs")


def still_overfits(first: str, second: str = BASELINE) -> Way:
    name = f"gap at the last epoch, if that of {second} is above {GAP:g}; above {GAP:g}"
    return mean(name, (first, second), measures.gap_where_others_overfit, lambda made: above(made, GAP), "points")


def falls_with_size(name: str, of: Callable[[Run, int], float | None], unit: str) -> Way:
    """Whether a number falls as the batch grows: the slope over log2 of the size, seed by seed."""
    sizes = list(map(int, CURVES["fig02"]))

    def slope(*runs: Run) -> float | None:
        values = [value for run, size in zip(runs, sizes, strict=True) if (value := of(run, size)) is not None]
        return round(float(np.polyfit(np.log2(sizes), values, 1)[0]), 9) if len(values) == len(sizes) else None

    measured = f"{name}: slope over log2(batch size), {sizes[0]} to {sizes[-1]}"
    return mean(measured, tuple(CURVES["fig02"].values()), slope, below, f"{unit} per doubling", "+.3g")


def best_of(first: str, others: Sequence[str], named: str) -> Way:
    """Whether a setting is better than the one of the others that has the highest mean."""

    def find(results: Results) -> Finding:
        finals = {
            other: [measures.final(one) for _, one in seeds]
            for other in others
            if (seeds := seeds_of(results, first, other))
        }
        if not finals:
            return NOT_RUN
        best = max(finals, key=lambda other: float(np.mean(finals[other])))
        found = better(first, best).find(results)
        return replace(found, number=f"{found.number} (to {best})")

    return Way(f"{measures.ACCURACY.name}: {first} minus the best of {named}", find)


def same_speed(first: str, second: str) -> Way:
    """A ratio of times without a verdict: what it leaves out is not recorded."""

    def find(results: Results) -> Finding:
        if not (seeds := seeds_of(results, first, second)):
            return NOT_RUN
        ratios = [value for runs in seeds if (value := measures.times_slower(*runs)) is not None]
        reason = "fitting and applying come before the first epoch and no run records their time"
        if not ratios:
            return Finding(f"different devices; {reason}", len(seeds), NOT_COMPARABLE)
        number = f"{in_words(estimate(ratios), 'times', '.2f')}{one_seed(len(ratios))}; {reason}"
        return Finding(number, len(ratios), NOT_COMPARABLE)

    return Way(f"seconds of the fastest epoch, on the same device: {first} over {second}", find)


def diverges_somewhere() -> Way:
    """Whether there is a rate at which every seed diverges."""

    def find(results: Results) -> Finding:
        seeds = {rate: [measures.diverges(run) for [run] in seeds_of(results, f"lr={rate}")] for rate in LARGE}
        if not any(seeds.values()):
            return NOT_RUN
        num = min(len(shown) for shown in seeds.values() if shown)
        counts = ", ".join(f"{rate}: {sum(shown)} of {len(shown)}" for rate, shown in seeds.items() if shown)
        broken = next((rate for rate, shown in seeds.items() if len(shown) > 1 and all(shown)), None)
        if broken:
            return Finding(f"every seed diverges at {broken} ({counts})", len(seeds[broken]), HOLDS)
        fails = all(len(shown) > 1 and not any(shown) for shown in seeds.values())
        return Finding(f"seeds that diverge: {counts}{one_seed(num)}", num, FAILS if fails else UNKNOWN)

    return Way(f"{measures.ACCURACY.name} below {CHANCE:g}, or failed, at a rate of {', '.join(LARGE)}", find)


# ----------------------------------------------------------------------------------------------- what is seen in a run


def ending(run: Run) -> str:
    return f"diverged in epoch {len(run.rows) + 1}" if run.failed else f"{measures.final(run):.1f} points"


def crawls(variant: str, best: str) -> Way:
    return seen(
        f"{measures.ACCURACY.name}: {variant} below {CRAWL:g} x that of {best}",
        (variant, best),
        lambda run, other: measures.final(run) < CRAWL * measures.final(other),
        lambda run, other: f"{ending(run)} against {ending(other)}",
    )


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
        lambda run: abs((measures.flattens(accuracy(run)) or math.inf) - epoch) <= NEAR,
        flattening,
    )
