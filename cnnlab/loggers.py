"""Loggers for which a run stays one run when it is interrupted and resumed.

A resumed run logs all its rows again, from the first epoch. These loggers skip the rows that the service already has.
"""

import os
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from cnnlab.config.options import UserError


class WandB(WandbLogger):
    """Weights & Biases.

    Offline, there is no service to ask which rows it has: everything is logged again, and the folders of earlier
    processes are renamed to "wandb/before-...", which `wandb sync --sync-all` ignores.

    Args:
        save_dir: the run directory.
        name, id: of the run; the id stays the same when the run is resumed.
        project: where the run appears.
        offline: write to the run directory only.
        more: for wandb.init, such as entity, group or tags.
    """

    def __init__(
        self, save_dir: str, name: str, id: str, project: str = "cnnlab", offline: bool = False, **more: Any
    ) -> None:
        import wandb  # here, so that an ImportError names the package

        self.errors = wandb.Error
        super().__init__(name, save_dir, id=id, project=project, mode="offline" if offline else None, **more)
        self.logged_epochs = 0

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
            self.logged_epochs = int(run.summary.get("epoch") or 0)
            return
        current = Path(run.dir).parent
        for folder in current.parent.glob(f"offline-run-*-{run.id}"):
            if folder != current:
                folder.rename(folder.with_name(folder.name.replace("offline-run", "before")))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "epoch_seconds" in metrics:  # a row of metrics.csv
            if (step or 0) <= self.logged_epochs:
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
        save_dir: folder of the files, unless a tracking URI is given.
        name, id, path: of the run; `path` is its directory, and `id` stays the same when the run is resumed.
        experiment_name: where the run appears.
        tracking_uri: "http://...", "sqlite:///...", "file:..."; None: MLFLOW_TRACKING_URI, or save_dir.
        more: for Lightning's logger, such as tags.
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
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # required by recent versions
        import mlflow

        self.errors = mlflow.MlflowException
        self.folder, self.run_key = Path(save_dir), id
        tags = {"cnnlab.run": id, "cnnlab.path": path, **more.pop("tags", {})}
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        super().__init__(experiment_name, name, uri, tags, save_dir, **more)
        self.logged_epochs: set[int] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if not self._initialized:
            try:
                self.find_run()
            except self.errors as error:
                raise UserError(
                    f"mlflow: {' '.join(str(error).split())[:300]} Use another logger.mlflow.tracking_uri."
                ) from error
        return super().experiment

    def find_run(self) -> None:
        """Create the experiment, once among all processes, and find the run if an earlier process created it."""
        client = self._mlflow_client
        with FileLock(self.folder / ".lock") if self._tracking_uri.startswith("file:") else nullcontext():
            experiment = client.get_experiment_by_name(self._experiment_name)
            number = experiment.experiment_id if experiment else client.create_experiment(self._experiment_name)
        if found := client.search_runs([number], f"tags.`cnnlab.run` = '{self.run_key}'", max_results=1):
            self._run_id = found[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")

    def go_on(self, until: float, rewritten: Collection[str]) -> None:
        history = self.experiment.get_metric_history(self.run_id, "epoch_seconds")
        self.logged_epochs = {point.step for point in history}

    def log_hyperparams(self, params: Any) -> None:
        known = self.experiment.get_run(self.run_id).data.params  # MLflow refuses to change them
        super().log_hyperparams({name: value for name, value in params.items() if name not in known})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "epoch_seconds" not in metrics or step not in self.logged_epochs:  # not a row that was logged before
            super().log_metrics(metrics, step)
