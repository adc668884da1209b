"""The effect of each value of an axis, and the share of the variance that each axis explains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import special

from cnnlab.config.options import GROUPS, default_option
from cnnlab.report.contrasts import TINY, Family
from cnnlab.report.statistics import Estimate
from cnnlab.report.sweep import Sweep

INTERACTS_BELOW = 0.05  # p-value of the interaction


@dataclass
class Effect:
    """The effect of one value of an axis, averaged over combinations of the other axes.

    Attributes:
        value: as text.
        mean: over the combinations.
        reference: the mean of the reference over the same combinations.
        combinations: of the other axes, as text: those that were run with both this value and the reference.
        change: improvement over the reference; None for the reference itself, and without a common combination.
    """

    value: str
    mean: float
    reference: float
    combinations: list[str]
    change: Estimate | None


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
    cells: dict[str, dict[tuple[str, ...], int]] = {value: {} for value in sweep.tried(axis)}
    for place, group in enumerate(sweep.groups):
        cells[group.value(axis)][tuple(map(group.value, others))] = place
    first = cells[reference(sweep, axis)]
    found = []
    for value, cell in cells.items():
        shared = [at for at in cell if at in first]
        several = [at for at in shared if min(len(sweep.groups[side[at]].runs) for side in (cell, first)) > 1]
        contexts = several or shared
        names = [", ".join(f"{name}={part}" for name, part in zip(others, at, strict=True)) for at in contexts]
        mean, against = (
            float(np.mean([sweep.family.means[side[at]] for at in contexts])) if contexts else math.nan
            for side in (cell, first)
        )
        change = None
        if contexts and cell is not first:
            share = 1 / len(contexts)
            weights = {cell[at]: share for at in contexts} | {first[at]: -share for at in contexts}
            change = sweep.better(weights, family)
        found.append(Effect(value, mean, against, names, change))
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
    if len(sweep.groups) != math.prod(shape):
        return Shares({}, _interaction(sweep), None)
    grid = np.full(shape, np.nan)
    for group, mean in zip(sweep.groups, sweep.family.means, strict=True):
        grid[tuple(known.index(group.value(axis)) for axis, known in values.items())] = mean
    if np.isnan(grid).any():
        return None  # two settings in one cell, and none in another
    centered = grid - grid.mean()
    axes = range(grid.ndim)
    mains = [centered.mean(axis=tuple(other for other in axes if other != axis), keepdims=True) for axis in axes]
    between = centered - reduce(np.add, mains)
    num = len(sweep.groups) / float((1 / sweep.family.nums).sum())
    squares = {axis: num * grid.size * float((main**2).mean()) for axis, main in zip(values, mains, strict=True)}
    squares["interaction"] = num * float((between**2).sum())
    df = grid.size - 1 - sum(size - 1 for size in shape)
    residual, df_residual = sweep.family.residual
    p_value, noise = math.nan, None
    if df_residual:
        squares["seeds"] = sum(float(np.var(list(group.by_seed.values()))) * len(group.runs) for group in sweep.groups)
        if residual > TINY**2 * df_residual:
            p_value = float(special.fdtrc(df, df_residual, squares["interaction"] / df / (residual / df_residual)))
    else:
        squares["interaction and seeds"] = squares.pop("interaction")
        noise = (squares["interaction and seeds"] / df, float(df))
    total = sum(squares.values())
    return Shares({name: value / total if total else 0.0 for name, value in squares.items()}, p_value, noise)


def _interaction(sweep: Sweep) -> float:
    """The p-value of the F-test for no interaction on any cells: their means against a sum of one term per axis."""
    residual, df_residual = sweep.family.residual
    pairs = [(axis, value) for axis in sweep.axes for value in sweep.tried(axis)]
    if not residual > TINY**2 * df_residual or len(pairs) - len(sweep.axes) + 1 >= len(sweep.groups):
        return math.nan
    columns = [[group.value(axis) == value for group in sweep.groups] for axis, value in pairs]
    weights = np.sqrt(sweep.family.nums)
    terms, means = np.array(columns, dtype=float).T * weights[:, None], sweep.family.means * weights
    solution, _, rank, _ = np.linalg.lstsq(terms, means)
    df = len(means) - int(rank)
    between = float(((means - terms @ solution) ** 2).sum())
    return float(special.fdtrc(df, df_residual, between / df / (residual / df_residual)))
