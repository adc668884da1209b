"""A set of runs: the question they answer, their settings, ranked, and the comparisons between these."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from cnnlab.report.contrasts import Family, reach_of_first
from cnnlab.report.runs import FOLLOW, Run, Setting, grouped, short_names, varied, without_repeats
from cnnlab.report.statistics import Estimate
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import BrokenFileError
from cnnlab.runs.wording import in_words

MAX_LISTED = 8  # values; more are shown as a range
MAX_VALUE = 30  # characters of a value in a sentence


@dataclass
class Place:
    """One line of the ranking.

    Attributes:
        setting: its runs, which differ only in their seed.
        score: the metric that settings are ranked by, at the best epoch, over seeds. The interval of the first is
            wider, as it is chosen for being the best.
        test: the same metric on test images; None if that is what they are ranked by, or was not measured.
        behind: by how much the first place is better; None for the first itself.
    """

    setting: Setting
    score: Estimate
    test: Estimate | None
    behind: Estimate | None

    @property
    def verdict(self) -> str:
        """How it compares with the first place. Only a setting with diverged runs can be ahead of that."""
        if self.behind is None:
            return "first"
        if self.behind.distinguishable:
            return "worse" if self.behind.mean > 0 else "ahead where it did not diverge"
        return "may be the best" if math.isfinite(self.behind.half_width) else "not known"

    @property
    def may_be_best(self) -> bool:
        """Whether it cannot be distinguished from the first place."""
        return self.verdict in ("may be the best", "not known")


class Sweep:
    """Runs, ranked and compared by the metric that selected their best epochs: nothing is chosen on test images.

    A setting with diverged runs is ranked after all settings without any, since its mean is over the survivors.

    Args:
        runs: in any state; only finished ones are averaged, and only over seeds. Of several with the same setting and
            seed, one counts.
        left_out: directories that cannot be read, each with the reason.

    Attributes:
        unreadable: the number of directories that cannot be read.
        groups: settings with a finished run; `empty`: those without one.
        measure, higher: the metric that settings are ranked by, "val/acc", and whether larger is better.
        axes: the names of what is varied; `short`: as they are written in a sentence.
    """

    def __init__(self, runs: Sequence[Run], left_out: Sequence[tuple[Path, str]] = ()):
        self.runs, repeats = without_repeats(runs)
        self.left_out, self.unreadable = [*left_out, *repeats], len(left_out)
        everything = grouped(self.runs)
        self.empty = [group for group in everything if not group.runs]
        found = [group for group in everything if group.runs]
        chosen = Counter((run.measure, run.higher) for group in found for run in group.runs)
        self.measure, self.higher = chosen.most_common(1)[0][0] if chosen else ("val/acc", True)
        self.groups = [group for group in found if group.runs[0].measure == self.measure]
        self.left_out += [
            (run.path, f"it was selected by {run.measure}, the others by {self.measure}")
            for run in self.runs
            if run.done and run.measure != self.measure
        ]
        alike: dict[tuple[tuple[str, str], ...], list[dict[str, str]]] = defaultdict(list)
        for group in self.groups:
            alike[tuple(sorted(group.settings.items()))].append(group.conditions)
        self.varied_conditions = [  # conditions that differ between groups of the same settings are shown like an axis
            name
            for name in (self.groups[0].conditions if self.groups else ())
            if any(len({conditions[name] for conditions in same}) > 1 for same in alike.values())
        ]
        examples = [(group.runs or group.unfinished)[0] for group in self.groups + self.empty]
        self.axes = varied(examples) + self.varied_conditions
        self.short = short_names(self.axes)

    @cached_property
    def ranking(self) -> list[Place]:
        """Best mean first; of equal ones, that whose run has the first name, whatever the order of the runs."""
        scores = [group.score for group in self.groups]
        names = [min(run.path.name for run in group.runs) for group in self.groups]
        order = sorted(
            range(len(scores)),
            key=lambda at: (self.groups[at].diverged, (-1) ** self.higher * scores[at].mean, names[at]),
        )
        if order and math.isfinite((first := scores[order[0]]).half_width):
            reach = reach_of_first(self.num_rivals, first.num)
            scores[order[0]] = replace(first, half_width=reach * first.std / math.sqrt(first.num))
        return [
            Place(
                self.groups[at],
                scores[at],
                self.groups[at].test,
                self.better({order[0]: 1.0, at: -1.0}) if place else None,
            )
            for place, at in enumerate(order)
        ]

    @property
    def num_rivals(self) -> int:
        """Among how many settings the first is chosen: those without a diverged run, if there are any."""
        return sum(not group.diverged for group in self.groups) or len(self.groups)

    @cached_property
    def family(self) -> Family:
        """All comparisons of the report: every pair of settings, and every value of an axis with its default."""
        samples = [group.by_seed for group in self.groups]
        several = sum(len(sample) > 1 for sample in samples)
        effects = sum(len(self.tried(axis)) - 1 for axis in self.axes) if len(self.axes) > 1 else 0
        return Family(samples, several * (several - 1) // 2 + effects, self.bounds)

    def better(self, weights: Mapping[int, float], family: Family | None = None) -> Estimate:
        """A contrast of settings by their index in `groups`; positive means better."""
        sign = 1.0 if self.higher else -1.0
        return (family or self.family).contrast({place: sign * weight for place, weight in weights.items()})

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and largest possible value of the metric that settings are ranked by."""
        return self.groups[0].runs[0].bounds if self.groups else (-math.inf, math.inf)

    @property
    def name(self) -> str:
        """The metric that settings are ranked by, in words: "validation accuracy"."""
        return in_words(self.measure)

    @property
    def tested(self) -> str:
        """The same metric on test images."""
        return f"test/{self.measure.partition('/')[2]}"

    @property
    def by_test(self) -> bool:
        """Whether nothing was held out, so that test images choose."""
        return self.measure.startswith("test/")

    @cached_property
    def warnings(self) -> list[str]:
        """The conditions in which compared runs differ, with their values."""
        conditions = self.groups[0].conditions if self.groups else ()
        values = {name: sorted({group.conditions[name] for group in self.groups}) for name in conditions}
        return [
            f"{name}: {', '.join(found)}"
            for name, found in values.items()
            if len(found) > 1 and (name not in FOLLOW or name in self.varied_conditions)
        ]

    def label(self, group: Setting) -> str:
        """What distinguishes a group from the others: "optim=adam, aug=cutmix"."""
        words = [f"{self.short[name]}={self.brief(name, group.value(name))}" for name in self.axes]
        return ", ".join(words) or "all runs"

    def brief(self, axis: str, value: str) -> str:
        """A value for a sentence: of a long path its last part, if that distinguishes it."""
        return self._brief[axis].get(value, value)

    @cached_property
    def _brief(self) -> dict[str, dict[str, str]]:
        found = {}
        for axis in self.axes:
            last = {one: one.rsplit("/", 1)[-1] for one in self.values(axis) if len(one) > MAX_VALUE}
            found[axis] = last if len({*last.values(), *self.values(axis)} - {*last}) == len(self.values(axis)) else {}
        return found

    def values(self, axis: str) -> list[str]:
        """The values of an axis, numbers by size."""
        return self._values[axis]

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        def by_size(value: str) -> tuple[bool, float, str]:
            return not _is_number(value), float(value) if _is_number(value) else 0, value

        groups = self.groups + self.empty
        return {axis: sorted({group.value(axis) for group in groups}, key=by_size) for axis in self.axes}

    def tried(self, axis: str) -> list[str]:
        """The values of an axis with which a run has finished."""
        found = {group.value(axis) for group in self.groups}
        return [value for value in self.values(axis) if value in found]

    def is_numeric(self, axis: str) -> bool:
        return axis not in self.varied_conditions and all(map(_is_number, self.values(axis)))

    def alike(self, axis: str) -> list[Setting]:
        """The best setting and those that differ from it only in this axis, by the axis's value."""
        best = self.ranking[0].setting
        others = [name for name in self.axes if name != axis]
        found = [group for group in self.groups if all(group.value(n) == best.value(n) for n in others)]
        values = self.values(axis)
        return sorted(found, key=lambda group: values.index(group.value(axis)))

    def question(self) -> str:
        """The question that the sweep asks, in one sentence."""
        if not self.axes:
            return "How well does this setting do, over seeds?"
        values = {axis: [self.brief(axis, value) for value in self.values(axis)] for axis in self.axes}
        parts = [f"{self.short[axis]} ({_listed(values[axis])})" for axis in self.axes]
        return f"Which {' and which '.join(parts)} gives the {self.superlative} {self.name}?"

    @property
    def superlative(self) -> str:
        return "highest" if self.higher else "lowest"

    def confusion(self) -> np.ndarray:
        """The best setting's confusion matrix, summed over seeds: (K, K), rows are true classes.

        (0, 0) without predictions.
        """
        counts = []
        for run in self.ranking[0].setting.runs:
            with suppress(FileNotFoundError, BrokenFileError):
                counts.append(RunDirectory(run.path).confusion(len(run.summary["data"]["classes"])))
        return np.sum(counts, axis=0) if counts else np.zeros((0, 0), dtype=np.int64)


def _listed(values: Sequence[str]) -> str:
    """ "sgd, adam"; if there are many, "20 values from 0.001 to 0.3"."""
    if len(values) <= MAX_LISTED:
        return ", ".join(values)
    return f"{len(values)} values from {values[0]} to {values[-1]}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def spans_decades(values: Sequence[float]) -> bool:
    """Whether numbers are better drawn on a logarithmic scale."""
    return min(values) > 0 and max(values) >= 10 * min(values)
