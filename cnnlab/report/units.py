"""How values of a metric are written: accuracies in percent, their differences in points, all others as they are."""

import math

from cnnlab.report.statistics import Estimate
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
    """ "80.91 to 81.55"; empty for a single value, which has no interval."""
    return f"{number(metric, value.low)} to {number(metric, value.high)}" if math.isfinite(value.half_width) else ""


def in_brackets(metric: str, value: Estimate) -> str:
    """The interval as it follows a mean: " (80.91 to 81.55)"."""
    return f" ({found})" if (found := interval(metric, value)) else ""


def with_interval(metric: str, value: Estimate, n: str = "") -> str:
    """A mean as text: "81.23% (95% CI 80.91 to 81.55, n = 3)"."""
    inside = [f"95% CI {found}" if (found := interval(metric, value)) else "", f"n = {n or value.num}"]
    return f"{written(metric, value.mean)} ({', '.join(filter(None, inside))})"
