"""Which settings can be distinguished: one family of t-tests for all claims of a report. Does not import torch.

Every claim is a contrast, a weighted sum of the settings' means: one setting minus another, or one value of an axis
minus its default. Each is tested by Welch's t (B. L. Welch, 1947) at the level 0.05 / claims (Bonferroni), so that with
95% probability none of them is wrong. The best setting is chosen by the same numbers, so the family counts all pairs of
settings, not only those with the best.

Three seeds estimate a variance poorly. With three or more settings, a variance below the typical one is therefore
averaged with it, and all of them count for more degrees of freedom (a moderated t-test, after G. Smyth, 2004; larger
variances are left as they are). In simulations of 2 to 16 settings with three or five seeds, whose spreads are equal or
differ up to fivefold, at most 6% of the sweeps have a wrong claim (7% with two seeds, 8% if the setting with the
largest spread has the fewest seeds). With 16 settings of equal spread and three seeds, a lead of 5 standard deviations
is detected in 39% of the cases, one of 10 in 94%.

The interval of the best setting's own mean is not part of the family; see `reach_of_first`. `answer.method` states the
known limits.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, special, stats

from cnnlab.report.statistics import CONFIDENCE, TINY, Estimate

PRIOR = 0.75  # weight of the typical variance against a setting's own, with four and more settings
PAIRED_BELOW = 0.01  # p-value of the F-test for an effect of the seed


class Family:
    """Settings and all comparisons between them.

    Args:
        samples: for every setting {seed: value}.
        num_claims: the number of contrasts that are tested; by default, all pairs of settings.
        bounds: the smallest and largest possible value.
        noise: the variance of a run and its degrees of freedom, if every setting has one run and they are estimated
            otherwise.

    Attributes:
        bounds: the smallest and largest possible difference.
        paired: whether values are compared seed by seed: all settings have the same seeds, and the seed has an effect
            (F-test of a two-way layout, p < 0.01). With few seeds and a weak correlation, pairing costs more in
            degrees of freedom than it gains.
        variances: over seeds, moderated; NaN for a setting with one run.
        typical: their median before that, without its bias; NaN if all settings have one run.
        dfs: their degrees of freedom.
        moderation: by which share the typical variance adds to the degrees of freedom of each.
        common_df: the degrees of freedom of a variance that all settings share; otherwise None.
        residual: the sum of squares not explained by settings or, if paired, seeds; and its degrees of freedom.
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
        self.bounds = bounds[0] - bounds[1], bounds[1] - bounds[0]
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
            self.paired = bool(special.fdtrc(dfs[0], free, ratio) < PAIRED_BELOW)
            if self.paired:
                residuals, dfs = list(left), dfs * (len(samples) - 1) / len(samples)
        squares = np.array([(values**2).sum() for values in residuals])
        self.residual = (float(squares.sum()), float(dfs.sum()))
        varies = dfs > 0
        own = squares / np.where(varies, dfs, np.nan)
        medians = special.chdtri(dfs[varies], 0.5) / dfs[varies]  # of a variance over the true one
        self.typical = float(np.median(own[varies] / medians)) if several else math.nan
        # none with two settings: Welch's test or, paired, the paired t-test
        self.moderation = PRIOR * min(1.0, max(0.0, several / 2 - 1))
        prior = dfs * self.moderation
        moderated = (dfs * own + prior * self.typical) / np.where(varies, dfs + prior, np.nan)
        self.variances, self.dfs = np.maximum(own, moderated), np.minimum(dfs + prior, dfs.sum())
        self.common_df = noise[1] if noise else None
        if noise:
            self.variances = np.full(len(samples), noise[0])

    def contrast(self, weights: Mapping[int, float]) -> Estimate:
        """The weighted sum of means, with a simultaneous interval: in 95% of sweeps, all of a family cover the truth.

        Without an interval if a setting has one run or no setting varies.

        weights: by the index of the setting; they add up to zero.
        """
        places, factors = list(weights), np.array(list(weights.values()))
        mean, num = float(factors @ self.means[places]), int(self.nums[places].min())
        parts = factors**2 * self.variances[places] / self.nums[places]
        error = math.sqrt(parts.sum())
        if not error > TINY:
            return Estimate(mean, math.inf, num, math.nan, self.bounds)
        df = self.common_df or parts.sum() ** 2 / (parts**2 / self.dfs[places]).sum()  # Satterthwaite's
        if num == 2 < self.nums[places].max():  # too many if the larger variance is that of the two seeds
            df = min(df, float(len(places)))
        half_width = -float(special.stdtrit(df, (1 - CONFIDENCE) / self.num_claims / 2)) * error
        p_value = min(1.0, 2 * self.num_claims * float(special.stdtr(df, -abs(mean) / error)))
        return Estimate(mean, half_width, num, error, self.bounds, p_value)


def seeds_to_detect(gap: float, spread: float, num_claims: int = 1, of_each: float = 1.0) -> int | None:
    """Seeds per setting to detect a gap between two settings with a power of 80%; None if more than 1,000.

    spread: standard deviation over seeds. of_each: the degrees of freedom of a setting's variance, for every seed but
    the first. Computed with the noncentral t-distribution.
    """
    for num in range(2, 1001):
        df = 2 * (num - 1) * of_each
        critical = -special.stdtrit(df, (1 - CONFIDENCE) / num_claims / 2)
        if stats.nct.sf(critical, df, gap / spread * math.sqrt(num / 2)) >= 0.8:
            return num
    return None


def reach_of_first(num_settings: int, num_seeds: int) -> float:
    """How many standard errors a 95% interval of the best of equal settings extends, as it is chosen for being that.

    The largest of k means lies within t standard errors with probability F(tr)^k - F(-tr)^k, where r is the ratio of
    the estimated to the true spread, and F the normal distribution. For one setting that is Student's t.
    """
    df = num_seeds - 1
    ratios = np.sqrt(special.chdtri(df, (np.arange(2000) + 0.5) / 2000) / df)

    def missed(reach: float) -> float:
        inside = special.ndtr(reach * ratios) ** num_settings - special.ndtr(-reach * ratios) ** num_settings
        return CONFIDENCE - float(inside.mean())

    return float(optimize.brentq(missed, 0, 1e5, xtol=1e-4))
