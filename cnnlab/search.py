"""hydra/sweeper=optuna: a search, in which Optuna proposes the next run by what the earlier ones have reached.

The study is stored nowhere. A run is its configuration and Optuna's sampler is seeded, so the same command proposes the
same trials in the same order; those that are done answer at once, and an interrupted search goes on where it was.
Takes no torch, and Optuna only when a search starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

from cnnlab.config import UserError
from cnnlab.records import Row, RunDirectory

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

NO_OPTUNA = "hydra/sweeper=optuna needs the package optuna, which is not installed. Type pip install optuna."

_hopeless: Callable[[Sequence[Row]], bool] | None = None


def hopeless(rows: Sequence[Row]) -> bool:
    """Whether a run with these rows should be given up, in the eyes of the search that has started it."""
    return _hopeless is not None and _hopeless(rows)


def of_config(config: DictConfig) -> Search:
    """The search of a composed configuration: what is typed comes before the search space in its file."""
    sweeper = config.hydra.sweeper
    if not isinstance(sweeper.num_trials, int) or sweeper.num_trials < 1:
        raise UserError(f"hydra.sweeper.num_trials={sweeper.num_trials} is not allowed. Type a number from 1.")
    if not config.val_fraction:
        raise UserError("A search chooses by held-out images, and with val_fraction=0 there are none.")
    space = [f"{key}={values}" for key, values in (sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides([*space, *config.hydra.overrides.task])
    return Search(overrides, sweeper.seed, sweeper.prune_after)


class Search:
    """What is varied, and a study over it.

    Args:
        overrides: as typed. optim.lr=tag(log,interval(0.001,0.1)) is drawn on a logarithmic scale, model.hidden=
            int(interval(50,500)) from whole numbers, choice(a,b), range(1,9) and a,b from what they list; anything else
            holds for all trials.
        seed: of the sampler, Optuna's tree-structured Parzen estimator (J. Bergstra et al., 2011).
        prune_after: from this epoch on a run is given up when its best accuracy on held-out images so far is below the
            median of the earlier trials' (Optuna's MedianPruner, after five trials); None: never.

    Raises: UserError if nothing is varied or Optuna is not there.
    """

    def __init__(self, overrides: Sequence[Override], seed: int, prune_after: int | None):
        try:
            import optuna
        except ImportError as error:
            raise UserError(NO_OPTUNA) from error
        latest = {override.get_key_element(): override for override in overrides}
        self.space = {key: override for key, override in latest.items() if override.is_sweep_override()}
        self.fixed = [
            f"{key}={override.get_value_element_as_str()}" for key, override in latest.items() if key not in self.space
        ]
        if not self.space:
            raise UserError("A search needs something to vary. Type for example 'optim.lr=interval(0.001,0.1)'.")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=prune_after) if prune_after else None
        self.study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=pruner or optuna.pruners.NopPruner(),
        )

    def corners(self) -> list[list[str]]:
        """The ends of the search space, as overrides: the first value of everything, then one other at a time."""
        values = {key: _ends(override) for key, override in self.space.items()}
        first = {key: of_key[0] for key, of_key in values.items()}
        changed = [first | {key: value} for key, of_key in values.items() for value in of_key[1:]]
        return [self.typed(corner) for corner in (first, *changed)]

    def typed(self, values: Mapping[str, Any]) -> list[str]:
        return [*self.fixed, *(f"{key}={_text(value)}" for key, value in values.items())]

    def propose(self) -> tuple[Trial, list[str]]:
        """The next trial, and the overrides of its run."""
        trial = self.study.ask({key: _distribution(override) for key, override in self.space.items()})
        return trial, self.typed(trial.params)

    @contextmanager
    def watching(self, trial: Trial) -> Iterator[None]:
        """Within the block, the run of the trial asks after every epoch whether it is hopeless."""
        global _hopeless

        def report_and_ask(rows: Sequence[Row]) -> bool:
            self._report(trial, rows)
            return bool(trial.should_prune())

        _hopeless = report_and_ask
        try:
            yield
        finally:
            _hopeless = None

    def conclude(self, trial: Trial, run: RunDirectory) -> None:
        """Tell the study how the run of a trial has ended; one that diverged counts as among the worst."""
        from optuna.trial import TrialState

        summary = run.summary()
        if summary["status"] == "done":
            self._report(trial, run.metrics())
            self.study.tell(trial, summary["metrics"]["val/acc"])
        elif summary.get("error", {}).get("type") in ("Pruned", "DivergedError"):
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _report(self, trial: Trial, rows: Sequence[Row]) -> None:
        known = self.study.trials[trial.number].intermediate_values
        for row in rows:
            if (epoch := int(row["epoch"])) not in known:
                trial.report(row["val/acc"], epoch)


def _ends(override: Override) -> list[Any]:
    sweep = override.value()
    return [sweep.start, sweep.end] if isinstance(sweep, IntervalSweep) else list(override.sweep_string_iterator())


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    start: Any = sweep.start
    kind = IntDistribution if isinstance(start, int) else FloatDistribution
    return kind(start, cast(Any, sweep.end), log="log" in sweep.tags)


def _text(value: Any) -> str:
    """As it is typed; three digits are enough, and make a name that one can read."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
