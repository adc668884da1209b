"""The records of a run: metrics and checkpoints of every epoch, and stopping in between."""

import math
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.nn.utils import get_total_norm

from cnnlab.config.options import UserError
from cnnlab.data.pipeline import data_of
from cnnlab.data.plan import generator
from cnnlab.networks import first_filters
from cnnlab.runs import signals
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.log import log
from cnnlab.runs.readers import Row
from cnnlab.runs.signals import Interrupted, Pruned
from cnnlab.runs.wording import line, where
from cnnlab.train import checkpoint, logged
from cnnlab.train import epoch_state as epochs
from cnnlab.train.checkpoint import CheckpointFiles
from cnnlab.train.machine import AGREE_EVERY_N_STEPS, agreed, gather


class DivergedError(Exception):
    """The loss or the weights are no longer finite."""


class Records(Checkpoint):
    """Writes rows to metrics.csv and the loggers, saves checkpoints, and prints a line per epoch.

    A checkpoint is written at the end of every epoch, and between steps as configured or when a signal asks the run to
    stop. It also contains what Lightning does not save: the rows, and for every process the partial sums of the epoch,
    the time it took, and the states of random generators. A resumed run continues from exactly there.

    Args:
        run: where the files go.
        files: writes the checkpoints.
        code: digest of the source code, which is stored in checkpoints.
        monitor: the metric that determines the best epoch, "val/acc" or "test/acc"; of equal ones, the first is best.
        higher: whether higher values are better.
        every_n_steps, every_n_minutes: how often to save within an epoch; None: never.
    """

    def __init__(
        self,
        run: RunDirectory,
        files: CheckpointFiles,
        code: str,
        monitor: str,
        higher: bool = True,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
    ):
        self.run, self.files, self.code, self.monitor, self.higher = run, files, code, monitor, higher
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.rows: list[Row] = []
        self.filters: list[Tensor | None] = []  # of the first layer, as images, after every epoch
        self.restored: dict[str, Any] | None = None
        self.logged_before: dict[str, logged.Value] = {}  # in an epoch that is resumed, and not since
        self.saved = ""  # the state in the latest checkpoint, in words
        self.seconds_before = 0.0  # of training, in earlier processes
        self.last = run.checkpoints / "last.ckpt"
        self.trained, self.epoch_done = 0.0, False
        self.every_step = every_n_steps is not None  # otherwise several steps may be one batch

    # ------------------------------------------------------------------------------------- saving and restoring

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        mine = epochs.epoch_state(trainer, pl_module, self.logged_before)
        mine |= {"random": epochs.random_states(), "random_at_start": self.random_at_start}
        checkpoint["records"] = {
            "rows": self.rows,
            "filters": self.filters,
            "epoch_done": self.epoch_done,
            "at": time.time(),
            "should_stop": trainer.should_stop,
            "torch": str(torch.__version__),
            "precision": trainer.precision,
            "code": self.code,
            "seconds": self.seconds_before + time.perf_counter() - self.began,
            "lr": self.lr,
            "elapsed": time.perf_counter() - self.started,
            "processes": gather(mine),
            "unsaved": epochs.unsaved_state(trainer, pl_module),
            "metrics": {name: value.cpu().clone() for name, value in trainer.callback_metrics.items()},
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.restored = state = checkpoint["records"]
        precision = state.get("precision", trainer.precision)
        for then, now, fix in (
            (f"by torch {state['torch']}", f"by torch {torch.__version__}", "Install that version"),
            (f"in precision {precision}", f"in precision {trainer.precision}", "Use a device that computes in it"),
        ):
            if then != now:
                raise UserError(
                    f"{trainer.ckpt_path} was written {then} and would be resumed {now}: the result would differ. "
                    f"{fix}, or use rerun=true to train the run anew."
                )
        if state["code"] != self.code:
            log.warning("The source code has changed since this run was interrupted; rerun=true trains it anew.")
        self.rows, self.filters = state["rows"], state["filters"]
        self.seconds_before = state["seconds"]
        self.saved = where(checkpoint["epoch"] + 1, checkpoint["global_step"], state["epoch_done"])
        trainer.should_stop = state["should_stop"]  # early stopping decides only once

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all other files anew from the checkpoint, whatever was written before the run was killed."""
        self.began = time.perf_counter()
        self.step_plateau = epochs.take_over(trainer, pl_module)
        epochs.add_to_hook(pl_module, "on_train_start", lambda *_: self.resume(trainer, pl_module))
        epochs.add_to_hook(pl_module, "on_train_batch_end", lambda *_: self.save_if_due(trainer))
        if self.restored and trainer.is_global_zero:
            best = self.run.checkpoints / "best.ckpt"
            if self.restored["epoch_done"] and self.best is self.rows[-1]:
                checkpoint.copy(Path(str(trainer.ckpt_path)), best)
            elif self.rows and (reason := checkpoint.damage(best) if best.exists() else "is lost"):
                raise UserError(f"{best} {reason}. Use rerun=true to train the run anew.")
            self.run.write_metrics(self.rows)
            log.info(f"Resuming from the checkpoint {self.saved}.")
        for logger in trainer.loggers:
            if trainer.is_global_zero and (go_on := getattr(logger, "go_on", None)):
                go_on(self.restored["at"] if self.restored else 0.0, {name for row in self.rows for name in row})
        for row, filters in zip(self.rows, self.filters, strict=True):
            log_row(trainer, row, filters)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at = time.monotonic()
        if rank := trainer.global_rank:  # dropout differs between processes
            torch.manual_seed(generator(torch.initial_seed(), 0, f"process {rank}").initial_seed())

    def resume(self, trainer: Trainer, module: LightningModule) -> None:
        """Continue from where the checkpoint was saved, after all hooks for the start of the training."""
        if state := self.restored:
            if unsaved := state.get("unsaved"):  # older checkpoints have none
                epochs.restore_unsaved_state(unsaved, trainer, module)
            processes = state["processes"]
            if len(processes) == trainer.world_size:  # otherwise the first process continues from all of them
                mine = [processes[trainer.global_rank]]
                at_start = mine[0].get("random_at_start", mine[0]["random"])
                epochs.restore_random_states(mine[0]["random"] if state["epoch_done"] else at_start)
            else:
                mine = processes if trainer.is_global_zero else []
            earlier = {name: value.to(module.device) for name, value in state.get("metrics", {}).items()}
            trainer.callback_metrics.update(earlier)  # callbacks may look at them at any step
        self.random_at_start = epochs.random_states()
        if state and not state["epoch_done"]:
            epochs.begin_epoch_again(trainer, module)
            self.logged_before = epochs.restore_epoch_state(mine, module)
            self.lr, self.started = state["lr"], time.perf_counter() - state["elapsed"]
            if len(processes) == trainer.world_size:
                epochs.restore_random_states(mine[0]["random"])

    # ---------------------------------------------------------------------------------------------- training

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started, self.epoch_done = time.perf_counter(), False
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else [{}]
        self.lr = float(groups[0].get("lr", 0.0))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.logged_before:
            self.logged_before = logged.add(trainer, self.logged_before)

    def save_if_due(self, trainer: Trainer) -> None:
        """Between two steps, after all hooks for the end of the first. Raises: Interrupted for a signal."""
        if trainer.fit_loop.epoch_loop.batch_progress.current.ready == trainer.num_training_batches:
            return  # the end of the epoch saves and stops
        if trainer.fit_loop._should_accumulate():
            return  # gradients are not saved
        due, signal = self.due(trainer)
        if due or signal:
            self.save(trainer)
            if trainer.is_global_zero and not self.rows:  # plan=true estimates by it until there is a row
                done = trainer.fit_loop.epoch_loop.batch_progress.current.ready * data_of(trainer).batch_size
                speed = round(done / (time.perf_counter() - self.started), 1)
                self.run.write_summary(self.run.summary() | {"images_per_second": speed})
        if signal:
            self.files.wait()
            raise Interrupted(signal)

    def due(self, trainer: Trainer) -> tuple[bool, int]:
        """Whether to save now, and the signal to stop for; the same in all processes."""
        step = trainer.global_step
        due = bool(self.every_n_steps) and step % (self.every_n_steps or 1) == 0
        minutes = (time.monotonic() - self.saved_at) / 60
        late = self.every_n_minutes is not None and minutes >= self.every_n_minutes
        signal = signals.received()
        if trainer.world_size > 1:
            if step % AGREE_EVERY_N_STEPS:
                return due, 0
            late, signal = agreed(late, signal, device=trainer.strategy.root_device)
        return due or late, signal

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self.trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.restored:
            logged.add_missing(trainer, gather(self.logged_before))
            self.restored, self.logged_before = None, {}
        row: Row = {"epoch": trainer.current_epoch + 1} | logged.measured(trainer, data_of(trainer).held_out)
        if self.monitor not in row:
            known = ", ".join(name for name in row if "/" in name) or "nothing"
            raise UserError(f"select_on={self.monitor} is not logged by {type(pl_module).__name__}. It logs {known}.")
        row["lr"] = self.lr
        row["epoch_seconds"] = round(time.perf_counter() - self.started, 3)
        num_images = trainer.num_training_batches * data_of(trainer).batch_size
        trained = self.trained if self.trained > self.started else time.perf_counter()
        row["images_per_second"] = round(num_images / (trained - self.started), 1)
        self.check_finite(row)
        self.rows.append(row)
        self.filters.append(first_filters(pl_module))

        self.step_plateau()
        self.save(trainer, epoch_done=True)
        if trainer.is_global_zero:
            if self.best is row:
                self.files.then(checkpoint.copy, self.last, self.run.checkpoints / "best.ckpt")
            self.files.then(self.run.write_metrics, list(self.rows))
            log.info(line(row, trainer.max_epochs or 0))
            if len(self.rows) == 1 and (names := ", ".join(logged.unrecorded(trainer))):
                log.warning(f"Not in metrics.csv: {names}. Log values as train/NAME, val/NAME or test/NAME.")
        log_row(trainer, row, self.filters[-1])
        self.random_at_start = epochs.random_states()
        self.stop_if_requested(trainer)

    def stop_if_requested(self, trainer: Trainer) -> None:
        """Between two epochs. Raises: Interrupted for a signal, Pruned if the run's search prunes it."""
        signal = signals.received()
        unfinished = trainer.is_global_zero and len(self.rows) < (trainer.max_epochs or 0) and not trainer.should_stop
        hopeless = unfinished and signals.should_prune(self.rows)
        if trainer.world_size > 1:
            hopeless, signal = agreed(hopeless, signal, device=trainer.strategy.root_device)
        if signal or hopeless:
            self.files.wait()
            raise Interrupted(signal) if signal else Pruned

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All processes read the last checkpoint next."""
        self.files.wait()
        trainer.strategy.barrier()

    def check_finite(self, row: Row) -> None:
        """Raises: DivergedError if a loss is not finite, UserError for another metric; the checkpoints are kept."""
        wrong = {
            name: f"{name} is {value} in epoch {row['epoch']:.0f}"
            for name, value in row.items()
            if not math.isfinite(value)
        }
        for name, problem in wrong.items():
            if name.endswith("loss"):
                self.diverged(problem)
        for name, value in row.items():
            if name.endswith("/acc") and not 0 <= value <= 1:
                raise UserError(f"{name} is {value:g}, but an accuracy is from 0 to 1. Log it so, or by another name.")
        for problem in wrong.values():
            raise UserError(f"{problem}. A metric must be a finite number in every epoch; leave this one out.")

    def diverged(self, problem: str) -> NoReturn:
        last = "There is no earlier checkpoint."
        if self.saved:
            last = f"The last good checkpoint: {self.last}, {self.saved}."
        raise DivergedError(f"{problem}. {last} A smaller optim.lr, or trainer.gradient_clip_val=1, may help")

    def save(self, trainer: Trainer, epoch_done: bool = False) -> None:
        """Save a checkpoint. Raises: DivergedError instead if weights are not finite; FileNotFoundError."""
        if self.run.is_lost:  # saving would make the directory anew, without what was in it
            raise FileNotFoundError(self.run.path)
        weights = [values.detach() for values in trainer.lightning_module.parameters()]
        if not get_total_norm(weights, math.inf).isfinite():  # the largest value; waits for the device once
            self.diverged(f"Weights are not finite in epoch {trainer.current_epoch + 1}, step {trainer.global_step}")
        self.saved = where(trainer.current_epoch + 1, trainer.global_step, epoch_done)
        self.epoch_done = epoch_done
        trainer.save_checkpoint(self.last)
        self.saved_at = time.monotonic()

    @property
    def best(self) -> Row:
        return (max if self.higher else min)(self.rows, key=lambda row: row[self.monitor])


def log_row(trainer: Trainer, row: Row, filters: Tensor | None) -> None:
    """Pass a row to the loggers, and the filters of the first layer to TensorBoard."""
    for logger in trainer.loggers:
        if (draw := getattr(logger, "add_filters", None)) and filters is not None and trainer.is_global_zero:
            draw(filters, int(row["epoch"]))
        logger.log_metrics({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))
