"""What a set of runs says: the question that was asked, the answer with its uncertainty, and the tables behind it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cnnlab.report.runs import Run, Setting, grouped, varied
from cnnlab.report.statistics import Difference, Estimate, difference, estimate
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import BrokenFileError
from cnnlab.runs.told import in_words

MANY = 8  # more values than these are not listed


@dataclass
class Place:
    """One line of the ranking: runs that differ in their seed alone.

    Attributes:
        setting: the runs.
        score: the value that is reported, at the best epoch, over seeds.
        to_best: difference to the first place; None for the first itself.
    """

    setting: Setting
    score: Estimate
    to_best: Difference | None

    def seconds(self) -> float:
        """Mean training time of a run."""
        return sum(run.summary["train_seconds"] for run in self.setting.runs) / len(self.setting.runs)

    def best_epochs(self) -> str:
        """The best epoch, or the first and last of them over seeds."""
        epochs = sorted(run.summary["best_epoch"] for run in self.setting.runs)
        return str(epochs[0]) if epochs[0] == epochs[-1] else f"{epochs[0]} to {epochs[-1]}"


@dataclass
class Effect:
    """What one value of a varied setting does, over all combinations of the others that every value was tried with.

    Attributes:
        value: as text.
        score: the mean over these combinations, by seed.
        to_first: difference to the first value; None for the first itself.
    """

    value: str
    score: Estimate
    to_first: Difference | None


class Sweep:
    """Runs, ranked and compared.

    Args:
        runs: in any state; only finished ones are averaged, and only over seeds.
        left_out: what could not be read, with the reason.
    """

    def __init__(self, runs: Sequence[Run], left_out: Sequence[tuple[Path, str]] = ()):
        self.runs, self.left_out = list(runs), list(left_out)
        found = grouped(runs)
        first = found[0].runs[0] if found else None
        self.measure, self.higher = (first.measure, first.higher) if first else ("test/acc", True)
        self.groups = [group for group in found if group.runs[0].measure == self.measure]
        self.left_out += [
            (run.path, f"it is reported by {run.measure}, and others by {self.measure}")
            for group in found
            if group not in self.groups
            for run in group.runs
        ]
        self.axes = varied([group.runs[0] for group in self.groups])
        alike: dict[Any, list[Setting]] = {}
        for group in self.groups:
            alike.setdefault(tuple(sorted(group.settings.items())), []).append(group)
        self.also = [  # where the settings are the same, what else sets runs apart is shown like an axis
            name
            for name in dict(self.groups[0].apart if self.groups else ())
            if any(len({dict(group.apart)[name] for group in groups}) > 1 for groups in alike.values())
        ]
        self.axes += self.also

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if not run.done]

    @cached_property
    def ranking(self) -> list[Place]:
        """Best mean first."""
        sign = -1 if self.higher else 1
        ordered = sorted(self.groups, key=lambda group: sign * estimate(list(group.by_seed.values())).mean)
        return [
            Place(
                group,
                estimate(list(group.by_seed.values())),
                self.lead(ordered[0], group) if place else None,
            )
            for place, group in enumerate(ordered)
        ]

    def lead(self, first: Setting, second: Setting) -> Difference:
        """By how much the first is better."""
        pair = (first, second) if self.higher else (second, first)
        return difference(pair[0].by_seed, pair[1].by_seed)

    @property
    def name(self) -> str:
        """What is reported, in words: "test accuracy"."""
        return in_words(self.measure)

    def amount(self, value: float, half_width: float | None = None) -> str:
        return amount(self.measure, value, half_width)

    @cached_property
    def apart(self) -> list[str]:
        """Warnings: what else differs between runs that are compared."""
        names: dict[str, set[str]] = {}
        for group in self.groups:
            for name, value in group.apart:
                names.setdefault(name, set()).add(value)
        return [
            f"{name}: {', '.join(sorted(values))}"
            for name, values in names.items()
            if len(values) > 1 and (name != "configuration" or name in self.also)
        ]

    def label(self, group: Setting) -> str:
        """What sets a group apart from the others: "optim=adam, aug=cutmix"."""
        return ", ".join(f"{_short(name)}={group.value(name)}" for name in self.axes) or "all runs"

    @property
    def held(self) -> dict[str, str]:
        """The settings that all runs share."""
        first = self.groups[0].settings if self.groups else {}
        return {name: value for name, value in first.items() if name not in self.axes}

    def values(self, axis: str) -> list[str]:
        """The values of an axis, numbers by size."""
        found = {group.value(axis) for group in self.groups}
        return sorted(found, key=lambda value: (not _is_number(value), float(value) if _is_number(value) else 0, value))

    def is_numeric(self, axis: str) -> bool:
        return axis not in self.also and all(map(_is_number, self.values(axis)))

    def alike(self, axis: str) -> list[Setting]:
        """The settings that differ from the best one in this axis alone, and the best one, by the axis's value."""
        best = self.ranking[0].setting
        others = [name for name in self.axes if name != axis]
        found = [group for group in self.groups if all(group.value(n) == best.value(n) for n in others)]
        values = self.values(axis)
        return sorted(found, key=lambda group: values.index(group.value(axis)))

    def question(self) -> str:
        """What was varied, in one sentence."""
        if not self.axes:
            return "How well does this setting do, over seeds?"
        parts = [f"{_short(axis)} ({_listed(self.values(axis))})" for axis in self.axes]
        return f"Which {' and which '.join(parts)} gives the {self.superlative} {self.name}?"

    @property
    def superlative(self) -> str:
        return "highest" if self.higher else "lowest"

    def answer(self) -> str:
        """The best setting and how sure that is, in one or two sentences."""
        if not self.ranking:
            return "No run has finished: there is no answer yet."
        best = self.ranking[0]
        found = f"{self.label(best.setting)} has the {self.superlative}: {with_interval(best.score)}"
        if len(self.ranking) == 1:
            return f"{found[0].upper()}{found[1:]}."
        second = self.ranking[1]
        assert second.to_best is not None
        gap = second.to_best
        name = self.label(second.setting)
        if min(best.score.num, second.score.num) < 2:
            return (
                f"{found}. Next is {name}, {self.amount(gap.estimate.mean)} behind; with one run of a setting it "
                f"cannot be said whether another seed would turn this round: add 'seed=range(3)'."
            )
        if gap.paired and best.setting.by_seed.keys() != second.setting.by_seed.keys():
            shared = self.amount(gap.estimate.mean, gap.estimate.half_width)
            return (
                f"{found}, but it has other seeds than {name}, the next; over those that they share the difference is "
                f"{shared}. Give both the same seeds."
            )
        how = "seed by seed" if gap.paired else "over seeds"
        amount = f"{self.amount(gap.estimate.mean, gap.estimate.half_width)} {how}"
        if gap.distinguishable:
            return f"{found}. It leads {name}, the next, by {amount}."
        ties = [
            self.label(place.setting)
            for place in self.ranking[1:]
            if place.to_best and not place.to_best.distinguishable
        ]
        return f"{found}, but it cannot be told from noise apart from {'; '.join(ties)} (to the next: {amount})."

    def effects(self, axis: str) -> list[Effect]:
        """The marginal effect of every value of an axis; empty if no combination of the others has them all."""
        others = [name for name in self.axes if name != axis]
        cells: dict[tuple[str, ...], dict[str, Setting]] = {}
        for group in self.groups:
            context = tuple(group.value(name) for name in others)
            cells.setdefault(context, {})[group.value(axis)] = group
        values = self.values(axis)
        complete = [cell for cell in cells.values() if len(cell) == len(values)]
        if not complete:
            return []
        seeds = set.intersection(*(set(group.by_seed) for cell in complete for group in cell.values()))
        if not seeds:
            return []
        means = {
            value: {seed: sum(cell[value].by_seed[seed] for cell in complete) / len(complete) for seed in seeds}
            for value in values
        }
        first = means[values[0]]
        return [
            Effect(
                value,
                estimate(list(means[value].values())),
                difference(means[value], first) if place else None,
            )
            for place, value in enumerate(values)
        ]

    def confusion(self) -> np.ndarray:
        """Of the best setting, summed over its seeds: (K, K), rows are true classes; (0, 0) without predictions."""
        counts = []
        for run in self.ranking[0].setting.runs:
            with suppress(FileNotFoundError, BrokenFileError):
                counts.append(RunDirectory(run.path).confusion(len(run.summary["data"]["classes"])))
        return np.sum(counts, axis=0) if counts else np.zeros((0, 0), dtype=np.int64)


def amount(measure: str, value: float, half_width: float | None = None) -> str:
    """A difference as text: of accuracies in points."""
    factor, digits, unit = (100, ".2f", " points") if measure.endswith("/acc") else (1, ".4f", "")
    spread = "" if half_width is None else f" ± {factor * half_width:{digits}}"
    return f"{factor * value:{digits}}{spread}{unit}"


def with_interval(value: Estimate) -> str:
    """A mean as text: "0.8123 ± 0.0045 (n = 3)"."""
    return (
        f"{value.mean:.4f} ± {value.half_width:.4f} (n = {value.num})" if value.num > 1 else f"{value.mean:.4f} (n = 1)"
    )


def _listed(values: Sequence[str]) -> str:
    """sgd, adam; of many: 20 values from 0.001 to 0.3."""
    if len(values) <= MANY:
        return ", ".join(values)
    return f"{len(values)} values from {values[0]} to {values[-1]}"


def _short(path: str) -> str:
    """optim.lr -> lr, where the group adds nothing."""
    return path.rsplit(".", 1)[-1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
