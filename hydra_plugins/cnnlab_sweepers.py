"""hydra/sweeper=grid, the default, and optuna. Hydra finds plugins in folders of this name.

Hydra's own sweeper checks nothing before the first job starts, and composes every job just before it starts, from files
that may have been edited since. The plugin hydra-optuna-sweeper 1.3.0 needs Optuna below 3, and neither prunes nor
resumes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from cnnlab.config.errors import refuse
from cnnlab.config.options import UserError
from cnnlab.config.overrides import check_overrides
from cnnlab.launch.job import Job
from cnnlab.runs.directory import RunDirectory
from cnnlab.text import say

MAX_VALUES = 10_000  # of one override
OF_THE_SWEEP = ("rerun", "plan", "on_busy")  # options that cannot differ between its runs


class GridSweeper(Sweeper):
    """Every combination of the lists of values.

    Args:
        params: lists from an experiment's file, which the command line overrides: {"optim.lr": "0.01,0.1"}.
    """

    def __init__(self, params: dict[str, str] | None):
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config: DictConfig = config
        self.loader = hydra_context.config_loader
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError("torchrun starts one run. Use python train.py -m, with launcher=... if you like.")
        if config.hydra.job.chdir or config.hydra.job.env_set or config.hydra.callbacks:
            raise UserError(
                "hydra.job.chdir, hydra.job.env_set and hydra.callbacks have no effect in a sweep. Remove them."
            )
        if (launcher := config.hydra.runtime.choices["hydra/launcher"]) != "basic":
            raise UserError(f"hydra/launcher={launcher} is not supported. Use launcher=local, slurm or ray.")

    def sweep(self, arguments: list[str]) -> None:
        from cnnlab.launch.sweep import sweep

        from_file = [f"{key}={values}" for key, values in self.params.items()]
        check_overrides(from_file)
        overrides = OverridesParser.create(self.loader).parse_overrides([*from_file, *arguments])
        refuse_varied(overrides, OF_THE_SWEEP)
        for override in overrides:
            if override.is_interval_sweep():
                raise UserError(
                    f"{override.input_line} is a range to search in, which needs hydra/sweeper=optuna. Use a list of "
                    f"values, {override.get_key_element()}=A,B, to train every combination."
                )
            try:
                values = (
                    list(islice(override.sweep_iterator(), 1 + MAX_VALUES)) if override.is_sweep_override() else [None]
                )
            except ValueError as error:  # range(0,10,0)
                raise UserError(f"{override.input_line} is not a list of values: {error}.") from error
            if not 0 < len(values) <= MAX_VALUES:
                what = (
                    f"has more than {MAX_VALUES:,} values. Use fewer." if values else "has no values. Use at least one."
                )
                raise UserError(f"{override.input_line} {what}")
        words = [tuple(job) for job in BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]]
        composed = {job: self.loader.load_sweep_config(self.config, list(job)) for job in dict.fromkeys(words)}
        for job, config in composed.items():
            params = config.hydra.sweeper.get("params") or {}
            if lost := " ".join(f"{key}={values}" for key, values in params.items() if key not in self.params):
                experiment = next(word for word in job if word.startswith("experiment="))
                raise UserError(
                    f"{experiment} is a sweep of its own, over {lost}. Use python train.py -m {experiment} alone."
                )
        sweep(self.config, [composed[job] for job in words])


def refuse_varied(overrides: Sequence[Override], keys: Sequence[str]) -> None:
    """Raises: UserError if the runs of a sweep would differ in one of these."""
    for override in overrides:
        if override.is_sweep_override() and override.key_or_group in keys:
            raise UserError(f"{override.input_line} belongs to the whole sweep. Use one value.")


class OptunaSweeper(GridSweeper):
    """One run after the other, each proposed by Optuna from the earlier ones.

    Args:
        params: the search space, which the command line overrides.
        num_trials: number of runs, including pruned ones.
        seed, prune_after: see cnnlab.launch.search.Search.
    """

    def __init__(self, params: dict[str, str] | None, num_trials: int, seed: int, prune_after: int | None):
        super().__init__(params)
        self.num_trials = num_trials

    def sweep(self, arguments: list[str]) -> None:
        from cnnlab.launch.search import check_trial, of_config
        from cnnlab.launch.sweep import archive_old, in_turn, report, write_multirun

        given = OverridesParser.create(self.loader).parse_overrides(arguments)
        refuse_varied(given, (*OF_THE_SWEEP, "select_on", "select_mode"))
        if "launcher" in self.config:
            raise UserError("A search proposes each run after the one before has ended. Remove launcher=.")
        if self.config.plan:
            raise UserError("A search chooses its runs as it goes: there is no plan to show. Remove plan=true.")
        search = of_config(self.config)
        for corner in search.corners():
            check_trial(self.loader.load_sweep_config(self.config, corner))
        write_multirun(self.config)
        paths: list[Path] = []
        for number in range(self.num_trials):
            trial, overrides = search.propose()
            config = self.loader.load_sweep_config(self.config, overrides)
            rerun, config.rerun = config.rerun, False  # a configuration that is proposed twice is trained once
            job = Job.of(config)
            run = RunDirectory(job.path)
            if run.path not in paths:
                paths.append(run.path)
            try:
                check_trial(config)
                if rerun:
                    archive_old(config)
                if search.would_have_been_pruned(trial, run):
                    search.prune(trial)
                    print(f"{run.path}: pruned before, in trial {number + 1}.")
                    continue
                drawn = " ".join(word for word in overrides if word not in search.fixed)
                say(f"\ntrial {number + 1} of {self.num_trials}, {drawn}")
                with search.watching(trial):
                    in_turn(None, [job])
            except UserError as error:
                refuse(error)
            search.conclude(trial, run)
        for path in paths:
            RunDirectory(path).end_rerun()
        if not report(paths, trials=True):
            sys.exit(1)
