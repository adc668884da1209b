"""Which settings can be told apart: one family of t-tests for all that a report claims. Does not import torch.

Every claim of a page is a contrast, a weighted sum of the settings' means: one setting minus another, or one value of
an axis minus its default. Each is tested by Welch's t (B. L. Welch, 1947) at the level 0.05 / claims (Bonferroni), so
that with a probability of 95% none of them is wrong. The best setting is chosen by the same numbers, so the family
counts all pairs of settings, not only those with the best.

Three seeds say little about a spread. So among three and more settings no variance is taken to be smaller than their
median, to which half of the pooled degrees of freedom are given. In simulations with three or five seeds and 2 to 16
settings, whose spreads are equal or differ up to fivefold, at most 6% of the sweeps have a wrong claim (8% with two
seeds); and of 16 settings with equal spreads and three seeds, a lead of three standard deviations is found in 22%
instead of 2% of the cases (Welch's test alone). Pooling all variances finds 79%, and is wrong in 22% of the sweeps
where one spread is five times the others.

Known limits, by simulation: with two settings whose spreads are as 1 to 5, 5.9% of the sweeps have a wrong claim; with
two seeds of each setting, up to 7.7%; with 2, 3, 5 and 10 seeds and the largest spread where there are two seeds, about
10%. The interval of the winner's own mean is not part of the family, and covers the truth in 89 to 93% of the sweeps,
since the winner is chosen for being best.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from cnnlab.report.statistics import CONFIDENCE, Estimate

TINY = 1e-12  # a standard deviation that is rounding
PAIRS_BELOW = 0.01  # p-value of the seeds' F-test


@dataclass(frozen=True)
class Difference:
    """A contrast with its simultaneous interval.

    Attributes:
        estimate: mean and interval, which covers the truth together with all others of the family in 95% of sweeps.
        p_value: adjusted for the family; not a number if there is one run of a setting.
    """

    estimate: Estimate
    p_value: float

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves zero out."""
        return abs(self.estimate.mean) > self.estimate.half_width


class Family:
    """Settings, and all comparisons that are made between them.

    Args:
        samples: for every setting {seed: value}.
        num_claims: the number of contrasts that are claimed or not; by default, all pairs of settings.
        bounds: what a difference can be.
        noise: the variance of a run and its degrees of freedom, where they come from elsewhere: settings have one run.

    Attributes:
        paired: whether values are compared seed by seed: all settings have the same seeds, and these explain more
            than chance does (F-test of a two-way layout, p < 0.01). With few seeds, pairing costs more degrees of
            freedom than a weak correlation gives back.
        variances: over seeds, as they are used; not a number for a setting with one run.
        floor: their median, below which none is taken; not a number if all settings have one run.
        df: the degrees of freedom that are given to it.
        residual: sum of squares of what neither settings nor, if paired, seeds explain; its degrees of freedom.
    """

    def __init__(
        self,
        samples: Sequence[Mapping[int, float]],
        num_claims: int | None = None,
        bounds: tuple[float, float] = (-math.inf, math.inf),
        noise: tuple[float, float] | None = None,
    ):
        self.means = np.array([np.mean(list(sample.values())) for sample in samples])
        self.nums = np.array([len(sample) for sample in samples])
        self.bounds = bounds
        several = int((self.nums > 1).sum())
        self.num_claims = max(num_claims or several * (several - 1) // 2, 1)
        residuals = [np.array(list(sample.values())) - mean for sample, mean in zip(samples, self.means, strict=True)]
        dfs = self.nums - 1.0
        self.paired = len({frozenset(sample) for sample in samples}) == 1 and min(several, *self.nums) > 1
        if self.paired:
            table = np.array([[sample[seed] for seed in sorted(samples[0])] for sample in samples])  # (settings, seeds)
            left = table - table.mean(1, keepdims=True)
            of_seeds = left.mean(0)
            left = left - of_seeds
            free = (len(samples) - 1) * dfs[0]
            residual = float((left**2).sum() / free)
            ratio = len(samples) * float((of_seeds**2).sum()) / dfs[0] / residual if residual > TINY**2 else 0.0
            self.paired = bool(special.fdtrc(dfs[0], free, ratio) < PAIRS_BELOW)
            if self.paired:
                residuals, dfs = list(left), dfs * (len(samples) - 1) / len(samples)
        squares = np.array([(values**2).sum() for values in residuals])
        self.residual = (float(squares.sum()), float(dfs.sum()))
        self._set_variances(squares, dfs)
        if noise:
            self.variances, self.df = np.full(len(samples), noise[0]), noise[1]
            self.is_own = np.zeros(len(samples), dtype=bool)

    def _set_variances(self, squares: np.ndarray, dfs: np.ndarray) -> None:
        """squares: of the residuals of each setting, summed; dfs: their degrees of freedom, 0 for one run."""
        several = dfs > 0
        self.dfs = np.where(several, dfs, np.nan)
        variances = squares / self.dfs
        self.floor = float(np.median(variances[several])) if several.any() else math.nan
        self.df = float(dfs.sum())
        if several.sum() <= 2:  # Welch's test; if paired, the variances are one number, and this is the paired t-test
            self.is_own = np.full(len(variances), not self.paired)
        else:
            self.is_own, self.df = variances > self.floor, self.df / 2
        self.variances = np.where(self.is_own | ~several, variances, self.floor)

    def contrast(self, weights: Mapping[int, float]) -> Difference:
        """The sum of weights times means; without an interval where a setting has one run, or none of them varies.

        weights: by the setting's place; they add up to zero.
        """
        places, factors = list(weights), np.array(list(weights.values()))
        mean, num = float(factors @ self.means[places]), int(self.nums[places].min())
        parts = factors**2 * self.variances[places] / self.nums[places]
        error = math.sqrt(parts.sum())
        if not error > TINY:
            return Difference(Estimate(mean, math.inf, num, math.nan, self.bounds), math.nan)
        own = self.is_own[places]
        shared, apart = parts[~own].sum(), parts[own]
        df = parts.sum() ** 2 / (shared**2 / self.df + (apart**2 / self.dfs[places][own]).sum())  # Satterthwaite's
        half_width = -float(special.stdtrit(df, (1 - CONFIDENCE) / self.num_claims / 2)) * error
        p_value = min(1.0, 2 * self.num_claims * float(special.stdtr(df, -abs(mean) / error)))
        return Difference(Estimate(mean, half_width, num, error, self.bounds), p_value)


def seeds_to_tell(gap: float, spread: float, num_claims: int = 1, power: float = 0.8, most: int = 1000) -> int | None:
    """Seeds of each of two settings that tell a gap apart with this probability; None if more than `most`.

    spread: standard deviation over seeds. By the noncentral t-distribution.
    """

    def suffices(num: int) -> bool:
        df = 2 * (num - 1)
        critical = -special.stdtrit(df, (1 - CONFIDENCE) / num_claims / 2)
        return bool(stats.nct.sf(critical, df, gap / spread * math.sqrt(num / 2)) >= power)

    nums = range(2, most + 1)
    place = bisect_left(nums, True, key=suffices)
    return nums[place] if place < len(nums) else None
