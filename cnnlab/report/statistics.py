"""Means with confidence intervals, paired differences, and tests on predictions. By SciPy; takes no torch.

Intervals are Student's t over independent runs (seeds): they say how well the mean over all seeds is known, not how far
single runs lie from each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval.

    Attributes:
        mean: of the values.
        half_width: half of the 95% interval; infinite for a single value.
        num: number of values.
        std: their standard deviation (n - 1); not a number for a single value.
    """

    mean: float
    half_width: float
    num: int
    std: float

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values with its interval by Student's t."""
    num = len(values)
    mean = float(np.mean(values))
    if num < 2:
        return Estimate(mean, math.inf, num, math.nan)
    std = float(np.std(values, ddof=1))
    return Estimate(mean, float(stats.t.ppf((1 + CONFIDENCE) / 2, num - 1)) * std / math.sqrt(num), num, std)


@dataclass(frozen=True)
class Difference:
    """The mean of first - second, with its interval.

    Attributes:
        estimate: mean difference and interval.
        effect_size: the mean difference over its standard deviation (paired: Cohen's d_z; otherwise Cohen's d with the
            pooled standard deviation); not a number if it cannot be computed.
        p_value: of the two-sided t-test that there is no difference; not a number if it cannot be computed.
        paired: whether the values were compared seed by seed.
    """

    estimate: Estimate
    effect_size: float
    p_value: float
    paired: bool

    @property
    def distinguishable(self) -> bool:
        """Whether the 95% interval leaves zero out; seeds that differ by the very same amount say nothing of others."""
        return abs(self.estimate.mean) > self.estimate.half_width > 0


def difference(first: dict[int, float], second: dict[int, float]) -> Difference:
    """Compare values by seed: paired over the seeds that both have if there are two or more, otherwise by Welch's test.

    first, second: {seed: value}.
    """
    common = sorted(first.keys() & second.keys())
    if len(common) >= 2:
        changes = [first[seed] - second[seed] for seed in common]
        made = estimate(changes)
        if made.std < 1e-12:  # the same for every seed, up to rounding
            made = replace(made, half_width=0.0)
            return Difference(made, round(made.mean, 12) * math.inf, math.nan, paired=True)
        p_value = float(stats.ttest_1samp(changes, 0).pvalue)
        return Difference(made, made.mean / made.std, p_value, paired=True)
    a, b = list(first.values()), list(second.values())
    mean = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return Difference(Estimate(mean, math.inf, min(len(a), len(b)), math.nan), math.nan, math.nan, paired=False)
    test = stats.ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(CONFIDENCE)
    pooled = math.sqrt((np.var(a, ddof=1) * (len(a) - 1) + np.var(b, ddof=1) * (len(b) - 1)) / (len(a) + len(b) - 2))
    made = Estimate(mean, float(interval.high - interval.low) / 2, min(len(a), len(b)), pooled)
    return Difference(made, mean / pooled if pooled else math.nan, float(test.pvalue), paired=False)


@dataclass(frozen=True)
class McNemar:
    """Two classifiers on the same images.

    Attributes:
        only_first, only_second: images that only one of them has right.
        p_value: exact, two-sided, that both are equally often the only one to be right.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> McNemar:
    """McNemar's exact test (Q. McNemar, 1947). first, second, labels: (N,) predicted and true classes."""
    first_right, second_right = first == labels, second == labels
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    discordant = only_first + only_second
    p_value = float(stats.binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(only_first, only_second, p_value)
