"""launcher=local, slurm, ray. Hydra finds plugins in folders of this name; what it does is in cnnlab/launch.py."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class CnnlabLauncher(Launcher):
    """Runs jobs elsewhere than in the process in which the sweep was typed."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from cnnlab.launch import launch

        words = [list(overrides) for overrides in job_overrides]
        jobs = [self.context.config_loader.load_sweep_config(self.config, overrides) for overrides in words]
        launch(self.config, jobs)
        return [
            JobReturn(overrides=overrides, cfg=job, status=JobStatus.COMPLETED)
            for overrides, job in zip(words, jobs, strict=True)
        ]
