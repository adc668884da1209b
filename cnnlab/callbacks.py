"""What happens beside the training step: the row of an epoch, its checkpoint, its line; the progress bar."""

import math
import time
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cnnlab import checkpoint
from cnnlab.classifier import Classifier
from cnnlab.records import Row, RunDirectory, log

COLUMNS = (
    "epoch",
    "train/loss",
    "train/acc",
    "val/loss",
    "val/acc",
    "test/loss",
    "test/acc",
    "lr",
    "epoch_seconds",
    "images_per_second",
)


class EpochRecords(Checkpoint):
    """Closes every epoch: its row in metrics.csv and in the loggers, its checkpoint, one line.

    The rows are part of the checkpoint, so a resumed run goes on with the rows that belong to it.

    Args:
        run: where the files go.
        monitor: the metric whose first maximum decides the best epoch, "val/acc" or "test/acc".
    """

    def __init__(self, run: RunDirectory, monitor: str):
        self.run, self.monitor = run, monitor
        self.rows: list[Row] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "random_state": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]
        torch.set_rng_state(state_dict["random_state"].cpu())  # dropout's

    @property
    def best(self) -> Row:
        return max(self.rows, key=lambda row: row[self.monitor])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()
        self.trained = math.nan
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cast(Classifier, pl_module).sums.values.sum().item()  # waits for the device
        self.trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured: dict[str, Any] = dict(cast(Classifier, pl_module).measured)
        measured["epoch"] = trainer.current_epoch + 1
        measured["lr"] = float(self.lr)
        measured["epoch_seconds"] = round(time.perf_counter() - self.started, 3)
        num_images = trainer.num_training_batches * batch_size(trainer)
        measured["images_per_second"] = round(num_images / (self.trained - self.started), 1)
        row = {name: measured[name] for name in COLUMNS if name in measured}
        self.rows.append(row)

        last = self.run.checkpoints / "last.ckpt"
        trainer.save_checkpoint(last)
        if trainer.is_global_zero:
            if self.best is row:
                checkpoint.copy(last, self.run.checkpoints / "best.ckpt")
            self.run.write_metrics(self.rows, COLUMNS)
            log.info(line(row, trainer.max_epochs or 0))
        for logger in trainer.loggers:
            logger.log_metrics({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))


def batch_size(trainer: Trainer) -> int:
    """Images per step, of all processes together. Lightning sets `datamodule` in fit, without declaring it."""
    return trainer.datamodule.batch_size  # type: ignore[attr-defined]


def line(row: Row, max_epochs: int) -> str:
    """One epoch in one line."""
    measured = [
        f"{part} loss {row[f'{part}/loss']:.4f} acc {row[f'{part}/acc']:.4f}"
        for part in ("train", "val", "test")
        if f"{part}/loss" in row
    ]
    return "  ".join(
        (
            f"epoch {row['epoch']:>{len(str(max_epochs))}}/{max_epochs}",
            *measured,
            f"lr {row['lr']:.3g}  {row['epoch_seconds']:.1f} s  {row['images_per_second']:,.0f} images/s",
        )
    )


class ProgressBar(Callback):
    """Steps done, images per second, loss and time left, on a terminal, four times a second."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]} images/s  loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            transient=True,
            refresh_per_second=4,
        )
        steps = trainer.num_training_batches * (trainer.max_epochs or 0)
        self.task = self.bar.add_task(
            "", total=steps, completed=trainer.global_step, epoch=1, epochs=trainer.max_epochs, speed="-", loss="-"
        )
        self.bar.start()
        self.shown_at, self.shown_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        elapsed = time.monotonic() - self.shown_at
        if elapsed >= 0.25:
            loss, _, count = cast(Classifier, pl_module).sums.values.tolist()
            images = (trainer.global_step - self.shown_step) * batch_size(trainer)
            self.bar.update(
                self.task,
                completed=trainer.global_step,
                epoch=trainer.current_epoch + 1,
                speed=f"{images / elapsed:,.0f}",
                loss=f"{loss / count:.4f}",
            )
            self.shown_at, self.shown_step = time.monotonic(), trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()
