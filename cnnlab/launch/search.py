"""hydra/sweeper=optuna: a search, in which Optuna proposes the next run by what the earlier ones have reached.

The study is stored nowhere. A run is its configuration and Optuna's sampler is seeded, so the same command proposes the
same trials in the same order and learns the same from the rows of those that are there already. Takes no torch, and
Optuna only when a search starts.
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
from omegaconf import DictConfig, OmegaConf

from cnnlab.config.check import check
from cnnlab.config.options import UserError
from cnnlab.config.values import selection
from cnnlab.runs import signals
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.readers import Row

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

NO_OPTUNA = "hydra/sweeper=optuna needs the package optuna, which is not installed. Type pip install optuna."


def of_config(config: DictConfig) -> Search:
    """The search of a composed configuration.

    What is typed comes before the search space in the sweeper's file: of that, a key which is typed, and a knob which
    the typed option of its group does not have, is left out.
    """
    sweeper = config.hydra.sweeper
    for name, lowest in (("num_trials", 1), ("seed", 0), ("prune_after", 1)):
        value = sweeper[name]
        if not ((isinstance(value, int) and value >= lowest) or (value is None and name == "prune_after")):
            raise UserError(f"hydra.sweeper.{name}={value} is not allowed. Type a number from {lowest}.")
    if sweeper.params is not None and not isinstance(sweeper.params, DictConfig):
        raise UserError(f"hydra.sweeper.params={sweeper.params} is no search space. Type hydra.sweeper.params=null.")
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    typed = parser.parse_overrides(list(config.hydra.overrides.task))
    keys = {override.key_or_group for override in typed}
    ready = {str(key): value for key, value in (sweeper.params or {}).items() if key not in keys}
    kept = [f"{key}={value}" for key, value in ready.items() if key.partition(".")[0] not in keys or _has(config, key)]
    return Search([*parser.parse_overrides(kept), *typed], sweeper.seed, sweeper.prune_after, *selection(config))


def _has(config: DictConfig, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    node = OmegaConf.select(config, parent)
    return isinstance(node, DictConfig) and name in node


def check_trial(config: DictConfig) -> None:
    """Raises: UserError for a configuration that cannot work, in a search or at all."""
    check(config)
    if not config.val_fraction:
        raise UserError("A search chooses by held-out images, and with val_fraction=0 there are none.")
    if config.trainer.devices != 1 or config.trainer.num_nodes != 1:
        raise UserError("A search trains in this process, on one device. Type trainer.devices=1.")


class Search:
    """What is varied, and a study over it.

    Args:
        overrides: as typed. optim.lr=tag(log,interval(0.001,0.1)) is drawn on a logarithmic scale, model.hidden=
            int(interval(50,500)) from whole numbers, choice(a,b), range(1,9) and a,b from what they list; anything else
            holds for all trials.
        seed: of the sampler, Optuna's tree-structured Parzen estimator (J. Bergstra et al., 2011).
        select_on, higher: the metric that is searched by, and whether its larger value is the better one.
        prune_after: from this epoch on a run is given up when its best value of that so far is worse than the
            median of the trials that were finished before, at this epoch, if there are five (Optuna's MedianPruner);
            None: never.

    Raises: UserError if nothing is varied, or something in an impossible way, or if Optuna is not there.
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
        try:
            import optuna
        except ImportError as error:
            raise UserError(NO_OPTUNA) from error
        self.varied = {o.get_key_element(): o for o in overrides if o.is_sweep_override()}
        self.fixed = [
            f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in overrides if not o.is_sweep_override()
        ]
        if not self.varied:
            raise UserError("A search needs something to vary. Type for example 'optim.lr=interval(0.001,0.1)'.")
        if "seed" in self.varied:
            raise UserError("A search does not vary the seed: it would choose the luckiest. Type hydra.sweeper.seed=1.")
        self.space = {key: _distribution(override) for key, override in self.varied.items()}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruners = optuna.pruners
        self.study = optuna.create_study(
            direction="maximize" if higher else "minimize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=pruners.MedianPruner(n_warmup_steps=prune_after) if prune_after else pruners.NopPruner(),
        )

    def corners(self) -> list[list[str]]:
        """Trials to be checked: the first value of everything, then one other at a time."""
        values = {key: _examples(override) for key, override in self.varied.items()}
        first = {key: of_key[0] for key, of_key in values.items()}
        changed = [first | {key: value} for key, of_key in values.items() for value in of_key[1:]]
        return [self.typed(corner) for corner in (first, *changed)]

    def typed(self, values: Mapping[str, Any]) -> list[str]:
        return [*self.fixed, *(f"{key}={_text(value, self.varied[key])}" for key, value in values.items())]

    def propose(self) -> tuple[Trial, list[str]]:
        """The next trial, and the overrides of its run."""
        trial = self.study.ask(self.space)
        return trial, self.typed(trial.params)

    def was_hopeless(self, trial: Trial, run: RunDirectory) -> bool:
        """Whether what there is already of a run would have been given up, after whichever epoch.

        So a trial counts as it did at first, though its run may have been trained to the end since.
        """
        return self._judged(trial, run.rows(), finished=run.summary().get("status") == "done")

    @contextmanager
    def watching(self, trial: Trial) -> Iterator[None]:
        """Within the block, the run of the trial asks after every epoch whether it is hopeless."""
        signals.watch(partial(self._judged, trial))
        try:
            yield
        finally:
            signals.watch(None)

    def conclude(self, trial: Trial, run: RunDirectory) -> None:
        """Tell the study how the run of a trial has ended; one that diverged counts as among the worst."""
        from optuna.trial import TrialState

        summary = run.summary()
        if summary.get("status") == "done":
            self._judged(trial, run.rows(), finished=True)
            self.study.tell(trial, summary["metrics"][self.select_on])
        elif summary.get("error", {}).get("type") == "DivergedError":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif summary.get("error", {}).get("type") == "Pruned":
            self.give_up(trial)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def give_up(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        self.study.tell(trial, state=TrialState.PRUNED)

    def _judged(self, trial: Trial, rows: Sequence[Row], finished: bool = False) -> bool:
        """Report the rows that are new, one by one, until one is hopeless; the last epoch of a run never is."""
        known = self.study.trials[trial.number].intermediate_values
        for row in rows:
            if int(row["epoch"]) not in known:
                trial.report(row[self.select_on], int(row["epoch"]))
                if not (finished and row is rows[-1]) and trial.should_prune():
                    return True
        return False


def _examples(override: Override) -> list[Any]:
    """The ends of an interval and something between them; everything else as it is listed."""
    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return list(override.sweep_string_iterator())
    start, end = cast(Any, sweep.start), cast(Any, sweep.end)
    if isinstance(start, int):
        return [start, end]
    middle = (start + end) / 2
    uneven = math.floor(middle) + 0.5 if end - start >= 2 else middle  # refused where whole numbers are wanted
    return [start, end, uneven]


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
    """As it is typed; a thousandth of an interval, or three digits on a logarithmic scale, make a name one can read."""
    sweep = override.value()
    if not isinstance(value, float) or not isinstance(sweep, IntervalSweep) or value in (sweep.start, sweep.end):
        return f"{value:g}" if isinstance(value, float) else str(value)
    start, end = cast(float, sweep.start), cast(float, sweep.end)
    if "log" in sweep.tags:
        rounded = float(f"{value:.3g}")
    else:
        rounded = round(value, 2 - math.floor(math.log10(end - start)))
    return f"{min(max(rounded, start), end):.6g}"
