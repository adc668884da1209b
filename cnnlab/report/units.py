"""How values of a metric are written: accuracies in percent and their differences in points, all else as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cnnlab.report.statistics import Estimate, estimate
from cnnlab.runs.wording import in_words
from cnnlab.runs.wording import is_accuracy as is_accuracy
from cnnlab.runs.wording import number as number
from cnnlab.runs.wording import scale as scale
from cnnlab.runs.wording import written as written


def heading(metric: str) -> str:
    """ "validation accuracy (%)"."""
    return in_words(metric) + " (%)" * is_accuracy(metric)


def points(metric: str, value: float) -> str:
    """A difference as text: "1.20 points"."""
    return number(metric, value) + (" points" if is_accuracy(metric) else "")


def interval(metric: str, value: Estimate) -> str:
    """ "80.91 to 81.55"; empty for one value."""
    if not math.isfinite(value.half_width):
        return ""
    return f"{number(metric, value.low)} to {number(metric, value.high)}"


def with_interval(metric: str, value: Estimate, n: str = "") -> str:
    """A mean as text: "81.23% (80.91 to 81.55, n = 3)"."""
    inside = [interval(metric, value), f"n = {n or value.num}"]
    return f"{written(metric, value.mean)} ({', '.join(filter(None, inside))})"


def bounds_of_difference(metric: str) -> tuple[float, float]:
    """What a difference of two values can be."""
    return (-1.0, 1.0) if is_accuracy(metric) else (-math.inf, math.inf)


def mean_of(metric: str, values: Sequence[float]) -> Estimate:
    """The mean over seeds; of an accuracy, the interval stays within 0 and 1."""
    return estimate(values, (0.0, 1.0)) if is_accuracy(metric) else estimate(values)
