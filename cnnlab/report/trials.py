"""Searches: the best result to expect from a number of trials, and the importance of each hyperparameter."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np

from cnnlab.report.statistics import expected_best
from cnnlab.report.sweep import Sweep, spans_decades

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIN_TRIALS = 5
NUM_POINTS = 40  # on the curve


def is_search(sweep: Sweep) -> bool:
    """Whether settings are samples of a space: one run of each, and not every combination of the values."""
    combinations = math.prod(len(sweep.values(axis)) for axis in sweep.axes)
    single = all(len(group.runs) == 1 for group in sweep.groups)
    return single and len(sweep.axes) > 1 and MIN_TRIALS <= len(sweep.groups) < combinations


def best_of(sweep: Sweep) -> tuple[list[int], list[float]]:
    """Numbers of trials and the expected best result of each (J. Dodge et al., 2019).

    A trial without a result counts as the worst of the others.
    """
    sign = 1 if sweep.higher else -1
    values = [sign * group.runs[0].score for group in sweep.groups]
    values += [min(values)] * len(sweep.empty)
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
    for axis in sweep.axes:
        values = sweep.values(axis)
        if sweep.is_numeric(axis):
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
            params = {axis: float(text) if sweep.is_numeric(axis) else text for axis, text in texts.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=group.runs[0].score))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {axis: float(share) for axis, share in found.items()}
