"""hydra/sweeper=optuna: a search, in which Optuna proposes the next run from the results of the earlier ones.

The study is not stored. A run is its configuration and Optuna's sampler is seeded, so the same command proposes the
same trials in the same order and learns the same from the existing rows. Does not import torch, and imports Optuna only
when a search starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

from cnnlab.config.check import check
from cnnlab.config.options import UserError, leaves
from cnnlab.config.values import job_config, selection
from cnnlab.launch.job_states import require
from cnnlab.runs import signals
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import Row

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial


def of_config(config: DictConfig) -> Search:
    """The search of a composed configuration.

    The command line overrides the search space in the sweeper's file, from which keys that it sets, and keys that the
    option it chooses does not have, are left out.
    """
    sweeper = config.hydra.sweeper
    for name, lowest in (("num_trials", 1), ("seed", 0), ("prune_after", 1)):
        value = sweeper[name]
        if not ((isinstance(value, int) and value >= lowest) or (value is None and name == "prune_after")):
            raise UserError(f"hydra.sweeper.{name}={value} is not allowed. Use a number from {lowest}.")
    if sweeper.params is not None and not isinstance(sweeper.params, DictConfig):
        raise UserError(f"hydra.sweeper.params={sweeper.params} is not a search space. Use hydra.sweeper.params=null.")
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    given = parser.parse_overrides(list(config.hydra.overrides.task))
    keys = {override.key_or_group for override in given}
    space = {str(key): value for key, value in (sweeper.params or {}).items() if key not in keys}
    there = dict(leaves(job_config(config)))
    kept = [f"{key}={value}" for key, value in space.items() if key.partition(".")[0] not in keys or key in there]
    return Search([*parser.parse_overrides(kept), *given], sweeper.seed, sweeper.prune_after, *selection(config))


def check_trial(config: DictConfig) -> None:
    """Raises: UserError for a configuration that cannot work, in a search or at all."""
    check(config)
    if not config.val_fraction:
        raise UserError("A search selects on held-out images: val_fraction=0 is not possible.")
    if config.trainer.devices != 1 or config.trainer.num_nodes != 1:
        raise UserError("A search trains in this process, on one device. Use trainer.devices=1.")


class Search:
    """A search space, and an Optuna study over it.

    Args:
        overrides: of the command line. optim.lr=tag(log,interval(0.001,0.1)) is drawn on a logarithmic scale,
            model.hidden=int(interval(50,500)) from whole numbers; choice(a,b), range(1,9) and a,b from lists; other
            overrides apply to all trials.
        seed: of the sampler, Optuna's tree-structured Parzen estimator (J. Bergstra et al., 2011).
        select_on, higher: the metric to optimize, and whether higher is better.
        prune_after: from this epoch on, a run is pruned when its best value so far is worse than the median of the
            trials that were finished before, at this epoch, if there are five (Optuna's MedianPruner); None: never.

    Raises: UserError for an empty or impossible search space, or if Optuna is not installed.
    """

    def __init__(
        self,
        overrides: Sequence[Override],
        seed: int,
        prune_after: int | None,
        select_on: str = "val/acc",
        higher: bool = True,
    ):
        self.select_on = select_on
        require("optuna")
        import optuna

        self.varied = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
        self.fixed = [
            f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in overrides if not o.is_sweep_override()
        ]
        if not self.varied:
            raise UserError("A search needs something to vary. Use for example 'optim.lr=interval(0.001,0.1)'.")
        if any(override.key_or_group == "seed" for override in self.varied.values()):
            raise UserError("A search does not vary the seed: it would choose the luckiest. Use hydra.sweeper.seed=1.")
        self.space = {key: _distribution(override) for key, override in self.varied.items()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruners = optuna.pruners
        self.study = optuna.create_study(
            direction="maximize" if higher else "minimize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=pruners.MedianPruner(n_warmup_steps=prune_after) if prune_after else pruners.NopPruner(),
        )

    def corners(self) -> list[list[str]]:
        """The overrides of trials to be checked: the first value of everything, then another of one key at a time."""
        examples = {key: _examples(override) for key, override in self.varied.items()}
        first = {key: values[0] for key, values in examples.items()}
        changed = [first | {key: value} for key, values in examples.items() for value in values[1:]]
        return [self.overrides(corner) for corner in (first, *changed)]

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        return [*self.fixed, *(f"{key}={_text(value, self.varied[key])}" for key, value in values.items())]

    def propose(self) -> tuple[Trial, list[str]]:
        """The next trial, and the overrides of its run."""
        trial = self.study.ask(self.space)
        return trial, self.overrides(trial.params)

    def would_have_been_pruned(self, trial: Trial, run: RunDirectory) -> bool:
        """Whether the existing rows of a run would have been pruned, after any epoch.

        So a trial counts as it did at first, even if its run was trained to the end since.
        """
        return self._judged(trial, run.rows(), finished=run.summary().get("status") == "done")

    @contextmanager
    def watching(self, trial: Trial) -> Iterator[None]:
        """Within the block, the run of the trial asks after every epoch whether to stop."""
        signals.watch(partial(self._judged, trial))
        try:
            yield
        finally:
            signals.watch(None)

    def conclude(self, trial: Trial, run: RunDirectory) -> None:
        """Tell the study how the run of a trial has ended; a diverged run counts as pruned."""
        from optuna.trial import TrialState

        summary = run.summary()
        if summary.get("status") == "done":
            self._judged(trial, run.rows(), finished=True)
            self.study.tell(trial, summary["metrics"][self.select_on])
        elif summary.get("error", {}).get("type") in ("DivergedError", "Pruned"):
            self.prune(trial)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def prune(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        self.study.tell(trial, state=TrialState.PRUNED)

    def _judged(self, trial: Trial, rows: Sequence[Row], finished: bool = False) -> bool:
        """Report new rows one by one; return whether to prune at one of them, which is never a run's last epoch."""
        known = self.study.trials[trial.number].intermediate_values
        for row in rows:
            if int(row["epoch"]) not in known:
                trial.report(row[self.select_on], int(row["epoch"]))
                if not (finished and row is rows[-1]) and trial.should_prune():
                    return True
        return False


def _examples(override: Override) -> list[Any]:
    """The ends of an interval and a value between them; all values of a list."""
    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return list(override.sweep_string_iterator())
    start, end = cast(Any, sweep.start), cast(Any, sweep.end)
    if isinstance(start, int):
        return [start, end]
    middle = (start + end) / 2
    fraction = math.floor(middle) + 0.5 if end - start >= 2 else middle  # refused if only integers are allowed
    return [start, end, fraction]


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    try:
        if not isinstance(sweep, IntervalSweep):
            return CategoricalDistribution(list(override.sweep_string_iterator()))
        start, end = cast(Any, sweep.start), cast(Any, sweep.end)
        kind = IntDistribution if isinstance(start, int) else FloatDistribution
        return kind(start, end, log="log" in sweep.tags)
    except ValueError as error:
        raise UserError(f"{override.input_line} cannot be searched: {error}") from error


def _text(value: Any, override: Override) -> str:
    """A value for the command line, rounded to a thousandth of its interval, or to three digits on a log scale."""
    sweep = override.value()
    if not isinstance(value, float) or not isinstance(sweep, IntervalSweep) or value in (sweep.start, sweep.end):
        return f"{value:g}" if isinstance(value, float) else str(value)
    start, end = cast(float, sweep.start), cast(float, sweep.end)
    if "log" in sweep.tags:
        rounded = float(f"{value:.3g}")
    else:
        rounded = round(value, 2 - math.floor(math.log10(end - start)))
    return f"{min(max(rounded, start), end):.6g}"
