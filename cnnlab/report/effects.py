"""The effect of each value of an axis, and the share of the variance that each axis explains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import special

from cnnlab.config.options import GROUPS, default_option
from cnnlab.report.contrasts import Family
from cnnlab.report.runs import count
from cnnlab.report.statistics import TINY, Estimate
from cnnlab.report.sweep import Sweep

INTERACTS_BELOW = 0.05  # p-value of the interaction
MAX_COMBINATIONS = 4  # that are named


@dataclass
class Effect:
    """The effect of one value of an axis, averaged over combinations of the other axes.

    Attributes:
        value: as text.
        mean: over the combinations.
        reference: the mean of the reference over the same combinations.
        combinations: of the other axes, as text: those that were run with both this value and the reference.
        missing: the other combinations that were started.
        count: of the runs that are averaged, of all that were started: "12", or "10 of 12, 2 diverged".
        diverged: whether a run of this value or the reference has diverged.
        change: improvement over the reference; None for the reference itself, and without a common combination.
    """

    value: str
    mean: float
    reference: float
    combinations: list[str]
    missing: list[str]
    count: str
    diverged: bool
    change: Estimate | None

    @property
    def over(self) -> str:
        """The combinations that it covers; of many, those that it does not."""
        if len(self.combinations) <= MAX_COMBINATIONS:
            return "; ".join(self.combinations) or "none in common"
        few = len(self.missing) <= MAX_COMBINATIONS
        without = f", without {'; '.join(self.missing)}" if few else f" of {len(self.combinations + self.missing)}"
        return f"{len(self.combinations)} combinations{without * bool(self.missing)}"


def reference(sweep: Sweep, axis: str) -> str:
    """The value that others are compared with: the default if it was run, otherwise the first."""
    values = sweep.tried(axis)
    if axis in GROUPS:
        default = default_option(axis)
    else:
        runs = [run for group in sweep.groups for run in group.runs if axis not in run.summary["changes"]]
        default = runs[0].value(axis) if runs else ""
    return default if default in values else values[0]


def effects(sweep: Sweep, axis: str, family: Family | None = None) -> list[Effect]:
    """The effect of every value, over the combinations it shares with the reference.

    If any of these have several seeds on both sides, only those count. family: by default, the sweep's.
    """
    others = [name for name in sweep.axes if name != axis]
    started = dict.fromkeys(tuple(map(group.value, others)) for group in sweep.groups + sweep.empty)
    cells: dict[str, dict[tuple[str, ...], int]] = {value: {} for value in sweep.tried(axis)}
    for place, group in enumerate(sweep.groups):
        cells[group.value(axis)][tuple(map(group.value, others))] = place
    against_value = reference(sweep, axis)
    first = cells[against_value]
    found = []
    for value, cell in cells.items():
        shared = [at for at in cell if at in first]
        several = [at for at in shared if min(len(sweep.groups[side[at]].runs) for side in (cell, first)) > 1]
        contexts = several or shared
        names = {at: ", ".join(f"{name}={part}" for name, part in zip(others, at, strict=True)) for at in started}
        both = [group for group in sweep.groups + sweep.empty if group.value(axis) in (value, against_value)]
        mean, against = (
            float(np.mean([sweep.family.means[side[at]] for at in contexts])) if contexts else math.nan
            for side in (cell, first)
        )
        change = None
        if contexts and cell is not first:
            share = 1 / len(contexts)
            weights = {cell[at]: share for at in contexts} | {first[at]: -share for at in contexts}
            change = sweep.better(weights, family)
        found.append(
            Effect(
                value,
                mean,
                against,
                [names[at] for at in contexts],
                [name for at, name in names.items() if at not in contexts],
                count([group for group in both if group.value(axis) == value]),
                any(group.diverged for group in both),
                change,
            )
        )
    return found


def mean_effects(sweep: Sweep, found: Shares | None) -> tuple[Family, dict[str, list[Effect]]]:
    """The effects of the axes that have one, and the family that compares them; none if the axes interact.

    On a grid with one run of each combination, everything but these effects is noise.
    """
    family = sweep.family
    if found and found.noise:
        claims = sum(len(sweep.tried(axis)) - 1 for axis in sweep.axes)
        family = Family([group.by_seed for group in sweep.groups], claims, sweep.bounds, found.noise)
    axes = [] if found and found.interact else sweep.axes
    everything = {axis: effects(sweep, axis, family) for axis in axes}
    return family, {
        axis: of_axis for axis, of_axis in everything.items() if sum(bool(one.combinations) for one in of_axis) > 1
    }


@dataclass
class Shares:
    """Shares of the variance on a grid (analysis of variance of the means of its cells).

    Attributes:
        parts: {name: share} of every axis, of the interaction, and of seeds; they add up to 1. Empty if cells are
            missing.
        p_value: of the F-test for no interaction; NaN with one run of each combination, or too few cells.
        noise: with one run of each combination, the variance of a run and its degrees of freedom, assuming there is no
            interaction.
    """

    parts: dict[str, float]
    p_value: float
    noise: tuple[float, float] | None

    @property
    def interact(self) -> bool:
        """Whether the effect of an axis depends on the others, so that a mean effect would mislead."""
        return self.p_value < INTERACTS_BELOW


def shares(sweep: Sweep) -> Shares | None:
    """For two or more axes; without `parts` unless every cell of their grid has a finished run.

    Cells with different numbers of runs have equal weight, with the harmonic mean of the numbers (F. Yates, 1934).
    """
    values = {axis: tried for axis in sweep.axes if len(tried := sweep.tried(axis)) > 1}
    shape = tuple(map(len, values.values()))
    if len(shape) < 2 or not sweep.groups:
        return None
    residual, df_residual = sweep.family.residual
    if len(sweep.groups) != math.prod(shape):
        between, df = _additive(sweep)
        if df_residual or not df:
            return Shares({}, _f_test(between, df, residual, df_residual), None)
        return Shares({}, math.nan, (between / df, float(df)))
    grid = np.full(shape, np.nan)
    for group, mean in zip(sweep.groups, sweep.family.means, strict=True):
        grid[tuple(known.index(group.value(axis)) for axis, known in values.items())] = mean
    if np.isnan(grid).any():
        return None  # two settings in one cell, and none in another
    centered = grid - grid.mean()
    axes = range(grid.ndim)
    mains = [centered.mean(axis=tuple(other for other in axes if other != axis), keepdims=True) for axis in axes]
    rest = centered - reduce(np.add, mains)
    num = len(sweep.groups) / float((1 / sweep.family.nums).sum())
    squares = {axis: num * grid.size * float((main**2).mean()) for axis, main in zip(values, mains, strict=True)}
    squares["interaction"] = num * float((rest**2).sum())
    df = grid.size - 1 - sum(size - 1 for size in shape)
    p_value, noise = _f_test(squares["interaction"], df, residual, df_residual), None
    if df_residual:
        squares["seeds"] = sum(float(np.var(list(group.by_seed.values()))) * len(group.runs) for group in sweep.groups)
    else:
        squares["interaction and seeds"] = squares.pop("interaction")
        noise = (squares["interaction and seeds"] / df, float(df))
    total = sum(squares.values())
    return Shares({name: value / total if total else 0.0 for name, value in squares.items()}, p_value, noise)


def _additive(sweep: Sweep) -> tuple[float, int]:
    """The sum of squares of the means around a sum of one term per axis, on any cells, and its degrees of freedom."""
    pairs = [(axis, value) for axis in sweep.axes for value in sweep.tried(axis)]
    if len(pairs) - len(sweep.axes) + 1 >= len(sweep.groups):
        return 0.0, 0
    columns = [[group.value(axis) == value for group in sweep.groups] for axis, value in pairs]
    weights = np.sqrt(sweep.family.nums)
    terms, means = np.array(columns, dtype=float).T * weights[:, None], sweep.family.means * weights
    solution, _, rank, _ = np.linalg.lstsq(terms, means)
    return float(((means - terms @ solution) ** 2).sum()), len(means) - int(rank)


def _f_test(between: float, df: float, residual: float, df_residual: float) -> float:
    """The p-value of no interaction; NaN without degrees of freedom or a spread over seeds."""
    if not df or not residual > TINY**2 * df_residual:
        return math.nan
    return float(special.fdtrc(df, df_residual, between / df / (residual / df_residual)))
