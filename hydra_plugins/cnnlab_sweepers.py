"""hydra/sweeper=grid, the default, and optuna. Hydra finds plugins in folders of this name.

Hydra's own sweeper checks nothing before the first job starts, and composes every job when its turn comes, from files
that may have been edited since. The released plugin hydra-optuna-sweeper 1.3.0 needs an Optuna below 3, and neither
prunes nor resumes.
"""

from __future__ import annotations

import os
import sys
from itertools import islice
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from cnnlab.config.mistakes import refuse
from cnnlab.config.options import UserError
from cnnlab.config.overrides import check_overrides
from cnnlab.launch.job import Job
from cnnlab.runs.directory import RunDirectory
from cnnlab.text import say

MOST = 10_000  # values of one axis


class GridSweeper(Sweeper):
    """Every combination of the lists of values.

    Args:
        params: of an experiment's file: {"optim.lr": "0.01,0.1"}; what is typed comes before it.
    """

    def __init__(self, params: dict[str, str] | None):
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config: DictConfig = config
        self.loader = hydra_context.config_loader
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UserError("torchrun starts one run. Type python train.py -m, with launcher=... if you like.")
        if config.hydra.job.chdir or config.hydra.job.env_set or config.hydra.callbacks:
            raise UserError("hydra.job.chdir, hydra.job.env_set and hydra.callbacks do nothing in a sweep. Type none.")
        if (launcher := config.hydra.runtime.choices["hydra/launcher"]) != "basic":
            raise UserError(f"hydra/launcher={launcher} is not used. Type launcher=local, slurm or ray.")

    def sweep(self, arguments: list[str]) -> None:
        from cnnlab.launch.sweep import sweep

        from_file = [f"{key}={values}" for key, values in self.params.items()]
        check_overrides(from_file)
        overrides = OverridesParser.create(self.loader).parse_overrides([*from_file, *arguments])
        for override in overrides:
            try:
                values = list(islice(override.sweep_iterator(), 1 + MOST)) if override.is_sweep_override() else [None]
            except ValueError as error:  # range(0,10,0)
                raise UserError(f"{override.input_line} is no list of values: {error}.") from error
            if not 0 < len(values) <= MOST:
                few = "without values, and the sweep has no runs. Name some"
                what = few if not values else f"of more than {MOST:,} values. Name fewer"
                raise UserError(f"{override.input_line} is a list {what}.")
        words = [tuple(job) for job in BasicSweeper.split_arguments(overrides, max_batch_size=None)[0]]
        composed = {job: self.loader.load_sweep_config(self.config, list(job)) for job in dict.fromkeys(words)}
        for job, config in composed.items():
            params = config.hydra.sweeper.get("params") or {}
            if lost := " ".join(f"{key}={values}" for key, values in params.items() if key not in self.params):
                experiment = next(word for word in job if word.startswith("experiment="))
                raise UserError(
                    f"{experiment} is a sweep of its own, over {lost}. Type python train.py -m {experiment} alone."
                )
        sweep(self.config, [composed[job] for job in words])


class OptunaSweeper(GridSweeper):
    """One run after the other, each proposed by Optuna out of what came before.

    Args:
        params: the search space; what is typed comes before it.
        num_trials: runs, with those that are given up.
        seed, prune_after: see cnnlab.launch.search.Search.
    """

    def __init__(self, params: dict[str, str] | None, num_trials: int, seed: int, prune_after: int | None):
        super().__init__(params)
        self.num_trials = num_trials

    def sweep(self, arguments: list[str]) -> None:
        from cnnlab.launch.search import check_trial, of_config
        from cnnlab.launch.sweep import begin_anew, in_turn, note, report

        if "launcher" in self.config:
            raise UserError("A search proposes a run when the one before has ended. Type it without launcher=.")
        if self.config.plan:
            raise UserError(
                "A search decides its runs as it goes: there is no plan to show. Type it without plan=true."
            )
        search = of_config(self.config)
        for corner in search.corners():
            check_trial(self.loader.load_sweep_config(self.config, corner))
        note(self.config)
        paths: list[Path] = []
        for number in range(self.num_trials):
            trial, overrides = search.propose()
            config = self.loader.load_sweep_config(self.config, overrides)
            rerun, config.rerun = config.rerun, False  # a trial that is proposed twice is done once
            job = Job.of(config)
            run = RunDirectory(job.path)
            if run.path not in paths:
                paths.append(run.path)
            try:
                check_trial(config)
                if rerun:
                    begin_anew(config)
                if search.was_hopeless(trial, run):
                    search.give_up(trial)
                    print(f"{run.path}: given up before, in trial {number}.")
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
