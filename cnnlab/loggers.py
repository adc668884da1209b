"""Loggers that keep a run of ours as one run of theirs, also when it is killed and goes on.

A resumed run gives a logger all its rows again. What theirs has is not logged twice.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from cnnlab.config.options import UserError


class WandB(WandbLogger):
    """Weights & Biases.

    Offline, nobody can be asked what is there already: everything is written anew, and folders that earlier processes
    have left get names that `wandb sync --sync-all` leaves alone, "wandb/before-...".

    Args:
        save_dir: the run directory.
        name, id: of the run; the id stays the same when the run goes on.
        project: where it appears.
        offline: whether it is written to the run directory only.
        more: for wandb.init, as entity, group or tags.
    """

    def __init__(
        self, save_dir: str, name: str, id: str, project: str = "cnnlab", offline: bool = False, **more: Any
    ) -> None:
        import wandb  # so its absence is told with its name

        self.errors = wandb.Error
        super().__init__(name, save_dir, id=id, project=project, mode="offline" if offline else None, **more)
        self.epochs_there = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        try:
            return super().experiment
        except self.errors as error:
            raise UserError(
                f"wandb: {' '.join(str(error).split())[:300]} Use wandb login, or logger.wandb.offline=true."
            ) from error

    def go_on(self, until: float, rewritten: Collection[str]) -> None:
        run = self.experiment
        if not run.offline:
            self.epochs_there = int(run.summary.get("epoch") or 0)
            return
        current = Path(run.dir).parent
        for folder in current.parent.glob(f"offline-run-*-{run.id}"):
            if folder != current:
                folder.rename(folder.with_name(folder.name.replace("offline-run", "before")))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "epoch_seconds" in metrics:  # a row of metrics.csv
            if (step or 0) <= self.epochs_there:
                return
            metrics = {"epoch": step or 0, **metrics}
        super().log_metrics(metrics, step)

    def finalize(self, status: str) -> None:
        super().finalize(status)
        if status == "failed" and self._experiment is not None:
            self._experiment.finish(exit_code=1)


class MLflow(MLFlowLogger):
    """MLflow: a server, a database, or files.

    Args:
        save_dir: folder of the files, if nothing else is said.
        name, id, path: of the run; its directory, and an id that stays the same when the run goes on.
        experiment_name: where it appears.
        tracking_uri: "http://...", "sqlite:///...", "file:..."; None: what MLFLOW_TRACKING_URI says, or save_dir.
        more: for Lightning's logger, as tags.
    """

    def __init__(
        self,
        save_dir: str,
        name: str,
        id: str,
        path: str,
        experiment_name: str = "cnnlab",
        tracking_uri: str | None = None,
        **more: Any,
    ) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # new versions ask for it
        import mlflow

        self.errors = mlflow.MlflowException
        self.folder, self.run_tag = Path(save_dir), {"cnnlab.run": id}
        tags = {**self.run_tag, "cnnlab.path": path, **more.pop("tags", {})}
        where = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        super().__init__(experiment_name, name, where, tags, save_dir, **more)
        self.epochs_there: set[int] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if not self._initialized:
            try:
                self.find()
            except self.errors as error:
                raise UserError(
                    f"mlflow: {' '.join(str(error).split())[:300]} Use another logger.mlflow.tracking_uri."
                ) from error
        return super().experiment

    def find(self) -> None:
        """The experiment, which one process makes for all, and the run, if an earlier process has begun it."""
        client = self._mlflow_client
        if self._tracking_uri.startswith("file:"):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                found = client.get_experiment_by_name(self._experiment_name)
                number = found.experiment_id if found else client.create_experiment(self._experiment_name)
        else:
            found = client.get_experiment_by_name(self._experiment_name)
            number = found.experiment_id if found else client.create_experiment(self._experiment_name)
        [(tag, value)] = self.run_tag.items()
        if begun := client.search_runs([number], f"tags.`{tag}` = '{value}'", max_results=1):
            self._run_id = begun[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")

    def go_on(self, until: float, rewritten: Collection[str]) -> None:
        history = self.experiment.get_metric_history(self.run_id, "epoch_seconds")
        self.epochs_there = {point.step for point in history}

    def log_hyperparams(self, params: Any) -> None:
        known = self.experiment.get_run(self.run_id).data.params  # which cannot be changed
        super().log_hyperparams({name: value for name, value in params.items() if name not in known})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "epoch_seconds" not in metrics or step not in self.epochs_there:  # not a row of metrics.csv that is there
            super().log_metrics(metrics, step)
