"""Searches: the best result to expect from a number of trials, and the importance of each hyperparameter."""

import math
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from cnnlab.report.statistics import expected_best
from cnnlab.report.sweep import Sweep, spans_decades

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIN_TRIALS = 5
NUM_POINTS = 40  # on the curve


def is_search(sweep: Sweep) -> bool:
    """Whether settings are samples of a space: one run of each, and at most half of all combinations of the values.

    The runs of a grid start in order, so even if others have not started, these are more than half of the combinations.
    """
    combinations = math.prod(len(sweep.values(axis)) for axis in sweep.axes)
    single = all(len(group.runs) == 1 for group in sweep.groups)
    started = len(sweep.groups) + len(sweep.empty)
    return single and len(sweep.axes) > 1 and len(sweep.groups) >= MIN_TRIALS and 2 * started <= combinations


def without_result(sweep: Sweep) -> tuple[int, Counter[str]]:
    """The number of diverged and pruned trials, and of the others that have no result, by their outcome."""
    outcomes = Counter(group.unfinished[0].outcome for group in sweep.empty)
    return outcomes.pop("diverged", 0) + outcomes.pop("pruned", 0), outcomes


def best_of(sweep: Sweep) -> tuple[list[int], list[float]]:
    """Numbers of trials and the expected best result of each (J. Dodge et al., 2019).

    A diverged or pruned trial counts as the worst of the others; one that is not finished or failed does not count.
    """
    sign = 1 if sweep.higher else -1
    values = [sign * group.runs[0].score for group in sweep.groups]
    values += [min(values)] * without_result(sweep)[0]
    nums = sorted({round(num) for num in np.geomspace(1, len(values), min(NUM_POINTS, len(values)))})
    return nums, [sign * mean for mean in expected_best(values, nums)]


def importances(sweep: Sweep) -> dict[str, float] | None:
    """The share of each axis in deciding the score, largest first, by Optuna's PED-ANOVA (S. Watanabe et al., 2023).

    None if Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        return None
    space: dict[str, BaseDistribution] = {}
    numeric = set(filter(sweep.is_numeric, sweep.axes))
    for axis in sweep.axes:
        values = sweep.values(axis)
        if axis in numeric:
            numbers = [float(value) for value in values]
            log = spans_decades(numbers)
            space[axis] = optuna.distributions.FloatDistribution(min(numbers), max(numbers), log=log)
        else:
            space[axis] = optuna.distributions.CategoricalDistribution(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize" if sweep.higher else "minimize")
        optuna.logging.set_verbosity(verbosity)
        for group in sweep.groups:
            texts = {axis: group.value(axis) for axis in sweep.axes}
            params = {axis: float(text) if axis in numeric else text for axis, text in texts.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=group.runs[0].score))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {axis: float(share) for axis, share in found.items()}
