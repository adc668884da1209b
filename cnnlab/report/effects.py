"""What each value of an axis does, and how much of the variance each axis accounts for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import special

from cnnlab.config.options import GROUPS, default_option
from cnnlab.report.contrasts import Difference, Family
from cnnlab.report.runs import Setting
from cnnlab.report.sweep import Sweep

MATTERS_BELOW = 0.05  # p-value of the interaction


@dataclass
class Effect:
    """What one value of an axis does, averaged over combinations of the other axes.

    Attributes:
        value: as text.
        mean: over the combinations.
        combinations: of the other axes, as text: those that both this value and the reference were run with.
        change: improvement over the reference; None for the reference itself, and without a common combination.
    """

    value: str
    mean: float
    combinations: list[str]
    change: Difference | None


def reference(sweep: Sweep, axis: str) -> str:
    """The value that others are compared with: the default if it was run, otherwise the first."""
    values = sweep.values(axis)
    if axis in GROUPS:
        default = default_option(axis)
    else:
        runs = [run for group in sweep.groups for run in group.runs if axis not in run.summary["changes"]]
        default = runs[0].value(axis) if runs else ""
    return default if default in values else values[0]


def effects(sweep: Sweep, axis: str, family: Family | None = None) -> list[Effect]:
    """For every value, over the combinations that it shares with the reference; those with several seeds, if any has.

    family: by default, the sweep's.
    """
    others = [name for name in sweep.axes if name != axis]
    cells: dict[str, dict[tuple[str, ...], int]] = {value: {} for value in sweep.values(axis)}
    for place, group in enumerate(sweep.groups):
        cells[group.value(axis)][tuple(group.value(name) for name in others)] = place
    first = cells[reference(sweep, axis)]
    found = []
    for value, cell in cells.items():
        shared = [at for at in cell if at in first]
        several = [at for at in shared if min(len(sweep.groups[of[at]].runs) for of in (cell, first)) > 1]
        contexts = several or shared
        names = [", ".join(f"{name}={part}" for name, part in zip(others, at, strict=True)) for at in contexts]
        mean = float(np.mean([sweep.family.means[cell[at]] for at in contexts])) if contexts else math.nan
        change = None
        if contexts and cell is not first:
            share = 1 / len(contexts)
            weights = {cell[at]: share for at in contexts} | {first[at]: -share for at in contexts}
            change = sweep.better(weights, family)
        found.append(Effect(value, mean, names, change))
    return found


@dataclass
class Shares:
    """Parts of the variance of a full grid (analysis of variance, from the means of its cells).

    Attributes:
        parts: {name: share}, of every axis, of the interaction, and of seeds; they add up to 1.
        p_value: of the F-test that there is no interaction; not a number with one run of each combination.
        noise: variance of a run and its degrees of freedom if there is no interaction, from one run of each.
    """

    parts: dict[str, float]
    p_value: float
    noise: tuple[float, float] | None

    @property
    def interact(self) -> bool:
        """Whether the effect of an axis depends on the others, so that its mean is no answer."""
        return self.p_value < MATTERS_BELOW


def shares(sweep: Sweep) -> Shares | None:
    """Of a grid of two or more axes that has a finished run in every cell; None of all else.

    Cells of different numbers of runs count alike, with the harmonic mean of their numbers (F. Yates, 1934).
    """
    values = [sweep.values(axis) for axis in sweep.axes]
    shape = tuple(map(len, values))
    if len(shape) < 2 or len(sweep.groups) != math.prod(shape):
        return None
    grid = np.full(shape, np.nan)
    for group, mean in zip(sweep.groups, sweep.family.means, strict=True):
        grid[_cell(sweep, values, group)] = mean
    if np.isnan(grid).any():
        return None  # two settings in one cell, and none in another
    centered = grid - grid.mean()
    mains = [
        centered.mean(axis=tuple(other for other in range(grid.ndim) if other != axis), keepdims=True)
        for axis in range(grid.ndim)
    ]
    between = centered - reduce(np.add, mains)
    num = len(sweep.groups) / float((1 / sweep.family.nums).sum())
    squares = {axis: num * grid.size * float((main**2).mean()) for axis, main in zip(sweep.axes, mains, strict=True)}
    squares["interaction"] = num * float((between**2).sum())
    df = grid.size - 1 - sum(size - 1 for size in shape)
    residual, df_residual = sweep.family.residual
    within = sum(float(np.var(list(group.by_seed.values()))) * len(group.runs) for group in sweep.groups)
    p_value, noise = math.nan, None
    if df_residual:
        squares["seeds"] = within
        if residual:
            p_value = float(special.fdtrc(df, df_residual, squares["interaction"] / df / (residual / df_residual)))
    else:
        squares["interaction and seeds"] = squares.pop("interaction")
        noise = (squares["interaction and seeds"] / df, float(df))
    total = sum(squares.values())
    return Shares({name: value / total if total else 0.0 for name, value in squares.items()}, p_value, noise)


def _cell(sweep: Sweep, values: list[list[str]], group: Setting) -> tuple[int, ...]:
    return tuple(of.index(group.value(axis)) for axis, of in zip(sweep.axes, values, strict=True))
