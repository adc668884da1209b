"""hydra/sweeper=optuna. Hydra finds plugins in folders of this name; what this one does is in cnnlab/search.py.

The released plugin, hydra-optuna-sweeper 1.3.0, needs an Optuna below 3, and neither prunes nor resumes.
"""

from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from cnnlab.config import UserError, refuse
from cnnlab.records import RunDirectory


class OptunaSweeper(Sweeper):
    """One run after the other, each proposed by Optuna out of what came before.

    Args:
        params: the search space; what is typed comes before it.
        num_trials: runs, with those that are given up.
        seed, prune_after: see cnnlab.search.Search.
    """

    def __init__(self, params: DictConfig | None, num_trials: int, seed: int, prune_after: int | None):
        self.num_trials = num_trials

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config: DictConfig = config
        self.context = hydra_context
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from cnnlab.search import check_trial, directories, of_config

        search = of_config(self.config)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")  # as Hydra's own sweeper does
        loader = self.context.config_loader
        for number in range(self.num_trials):
            trial, overrides = search.propose()
            job = loader.load_sweep_config(self.config, overrides)
            run = RunDirectory(Path(job.hydra.sweep.dir, job.hydra.sweep.subdir))
            if run.path not in directories:
                directories.append(run.path)
            try:
                check_trial(job)
                if search.was_hopeless(trial, run):
                    search.give_up(trial)
                    print(f"{run.path}: given up before, in trial {number}.")
                    continue
                with search.watching(trial):
                    (ended,) = self.launcher.launch([overrides], initial_job_idx=number)
                _ = ended.return_value  # raises what the job has raised
            except UserError as error:
                refuse(error)
            search.conclude(trial, run)
