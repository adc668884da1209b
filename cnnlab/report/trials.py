"""Searches: the best that is to be expected of a number of trials (J. Dodge et al., 2019)."""

from __future__ import annotations

import math

import numpy as np

from cnnlab.report.statistics import expected_best
from cnnlab.report.sweep import Sweep

FEWEST = 5  # trials
POINTS = 40  # of the curve


def is_search(sweep: Sweep) -> bool:
    """Whether settings are samples of a space: one run of each, and not every combination of the values."""
    combinations = math.prod(len(sweep.values(axis)) for axis in sweep.axes)
    single = all(len(group.runs) == 1 for group in sweep.groups)
    return single and len(sweep.axes) > 1 and FEWEST <= len(sweep.groups) < combinations


def best_of(sweep: Sweep) -> tuple[list[int], list[float]]:
    """Numbers of trials, and the expected best of each; a trial without a result counts as the worst of the others."""
    sign = 1 if sweep.higher else -1
    values = [sign * group.runs[0].score for group in sweep.groups]
    values += [min(values)] * len(sweep.empty)
    nums = sorted({round(num) for num in np.geomspace(1, len(values), min(POINTS, len(values)))})
    return nums, [sign * mean for mean in expected_best(values, nums)]
