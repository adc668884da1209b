"""Verdicts on a mean over seeds, and their p-values. Does not import torch.

A claim holds if the whole 95% interval (Student's t) is on its side, does not hold if it is all on the other side, and
otherwise cannot be told, as with one seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from cnnlab.report.statistics import CONFIDENCE, Estimate

HOLDS, FAILS, UNKNOWN, NOT_COMPARABLE = "holds", "does not hold", "cannot be told", "not comparable"
SAME = 1.0  # points within which two settings perform alike

Test = Callable[[Estimate], tuple[str, float]]  # verdict and p-value


@dataclass(frozen=True)
class Finding:
    """What came out.

    Attributes:
        number: with its interval, as text.
        num: number of seeds.
        verdict: HOLDS, FAILS, UNKNOWN or NOT_COMPARABLE.
        p: p-value, of a verdict from an interval.
        corrected: the same, corrected by Benjamini and Hochberg, and by Holm, for the number of claims.
    """

    number: str
    num: int
    verdict: str
    p: float | None = None
    corrected: tuple[float, float] | None = None


def tail(made: Estimate, distance: float) -> float:
    """The probability that Student's t of a mean is at least so far from zero, on one side; 1 without a second seed."""
    if made.num < 2:
        return 1.0
    error = made.std / math.sqrt(made.num)
    return float(stats.t.sf(distance / error, made.num - 1)) if error else float(distance <= 0)


def above(made: Estimate, threshold: float = 0, sign: int = 1) -> tuple[str, float]:
    """Whether a mean is above a threshold (sign 1) or below it (-1); p by the two-sided t-test."""
    low, high = sorted((sign * (made.low - threshold), sign * (made.high - threshold)))
    p = min(1.0, 2 * tail(made, abs(made.mean - threshold)))
    return HOLDS if low > 0 else FAILS if high < 0 else UNKNOWN, p


def below(made: Estimate) -> tuple[str, float]:
    return above(made, sign=-1)


def alike(made: Estimate) -> tuple[str, float]:
    """Whether a difference is within SAME; p by two one-sided tests (D. J. Schuirmann, 1987).

    For a mean that lies outside, p is that of the t-test against SAME.
    """
    if (inside := SAME - abs(made.mean)) > 0:
        return HOLDS if made.low > -SAME and made.high < SAME else UNKNOWN, tail(made, inside)
    return FAILS if made.low > SAME or made.high < -SAME else UNKNOWN, min(1.0, 2 * tail(made, -inside))


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted so that with 95% none of those below 0.05 is wrong (S. Holm, 1979)."""
    order = np.argsort(values)
    adjusted = np.maximum.accumulate(np.sort(values) * np.arange(len(values), 0, -1)).clip(max=1)
    return [float(adjusted[place]) for place in np.argsort(order)]


def corrected(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of one family of claims, with corrected p-values where they have one."""
    places = [place for place, found in enumerate(findings) if found.p is not None]
    values = [found.p for found in findings if found.p is not None]
    both = zip(stats.false_discovery_control(values), holm(values), strict=True) if values else ()
    found = dict(zip(places, both, strict=True))
    return [
        replace(finding, corrected=(float(found[place][0]), found[place][1]) if place in found else None)
        for place, finding in enumerate(findings)
    ]


def in_words(made: Estimate, unit: str = "", form: str = "+.1f") -> str:
    """-1.2 ± 0.3 points; of one value, -1.2 points."""
    interval = f" ± {made.half_width:{form.lstrip('+')}}" if math.isfinite(made.half_width) else ""
    return f"{made.mean:{form}}{interval} {unit}".rstrip()


def one_seed(num: int) -> str:
    return "; one seed" * (num == 1)


def after(finding: Finding, correction: int) -> str:
    """The verdict without a correction (0), with that of Benjamini and Hochberg (1) or with Holm's (2)."""
    p = finding.corrected[correction - 1] if correction and finding.corrected else 0.0
    return UNKNOWN if p >= 1 - CONFIDENCE else finding.verdict
