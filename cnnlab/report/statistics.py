"""Means with confidence intervals, the noise of a test set, and tests on predictions. Does not import torch.

Intervals are Student's t over independent runs (seeds): they bound the mean over all seeds, not the spread of single
runs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

CONFIDENCE = 0.95
TINY = 1e-12  # a standard deviation below this is rounding error


@dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval.

    Attributes:
        mean: of the values.
        half_width: of the 95% interval; infinite for a single value.
        num: number of values.
        std: their standard deviation (n - 1), or the standard error of a difference; NaN for a single value.
        bounds: the smallest and largest possible mean, to which the interval is clipped.
        p_value: of a difference, corrected for its family; NaN if a setting has only one run, and for other means.
    """

    mean: float
    half_width: float
    num: int
    std: float
    bounds: tuple[float, float] = (-math.inf, math.inf)
    p_value: float = math.nan

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.half_width

    @property
    def low(self) -> float:
        return max(self.mean - self.half_width, self.bounds[0])

    @property
    def high(self) -> float:
        return min(self.mean + self.half_width, self.bounds[1])


def estimate(values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """The mean of independent values with its Student's t interval."""
    num = len(values)
    mean = float(np.mean(values))
    if num < 2:
        return Estimate(mean, math.inf, num, math.nan, bounds)
    std = float(np.std(values, ddof=1))
    critical = float(special.stdtrit(num - 1, (1 + CONFIDENCE) / 2))
    return Estimate(mean, critical * std / math.sqrt(num), num, std, bounds)


def seeds_and_images(right: np.ndarray) -> tuple[float, float, Estimate]:
    """The result of a bootstrap over seeds and images in closed form, without its bias for few seeds.

    right: (seeds, images) bool, whether each image was classified correctly -> the standard errors of the mean due to
        the choice of seeds (NaN for one seed) and of images; the mean, with an interval that covers both.
    """
    num, num_images = right.shape
    over_seeds = float(right.mean(1).var(ddof=1)) / num if num > 1 else math.nan
    over_images = float(right.mean(0).var(ddof=1)) / num_images
    variance, spread = over_images, over_images**2 / (num_images - 1)
    if num > 1:
        variance, spread = variance + over_seeds, spread + over_seeds**2 / (num - 1)
    df = variance**2 / spread if spread else math.inf  # Satterthwaite's
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, df)) * math.sqrt(variance)
    both = Estimate(float(right.mean()), half_width, num, math.sqrt(variance), (0.0, 1.0))
    return math.sqrt(over_seeds), math.sqrt(over_images), both


def expected_best(values: Sequence[float], nums: Sequence[int]) -> list[float]:
    """The expected largest of k values drawn without replacement, for every k in nums (J. Dodge et al., 2019)."""
    ordered, num = np.sort(values), len(values)
    places = np.arange(num + 1)
    # hypergeom.pmf(k, num, place, k): the probability that all k are among the first `place` values
    return [float(ordered @ np.diff(stats.hypergeom.pmf(k, num, places, k))) for k in nums]


def mcnemar(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> tuple[int, int, float]:
    """The numbers of images that only one of two classifiers has right, and the p-value of McNemar's exact test (1947).

    first, second, labels: (N,) predicted and true classes.
    """
    first_right, second_right = first == labels, second == labels
    only_first, only_second = int((first_right & ~second_right).sum()), int((second_right & ~first_right).sum())
    discordant = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
