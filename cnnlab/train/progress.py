"""The progress bar."""

import time
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cnnlab.data.pipeline import data_of


def shown_loss(module: LightningModule, outputs: Any) -> str:
    """The mean over the epoch so far if the module keeps it, otherwise the loss of the batch."""
    sums = getattr(module, "sums", None)
    loss = sums.mean_loss() if sums is not None else outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return f"{float(loss):.4f}" if loss is not None else "-"


class ProgressBar(Callback):
    """Steps done, images per second, loss and time left, on a terminal, four times a second."""

    every_step = False

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
            disable=not trainer.is_global_zero,
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
            images = (trainer.global_step - self.shown_step) * data_of(trainer).batch_size
            self.bar.update(
                self.task,
                completed=trainer.global_step,
                epoch=trainer.current_epoch + 1,
                speed=f"{images / elapsed:,.0f}",
                loss=shown_loss(pl_module, outputs),
            )
            self.shown_at, self.shown_step = time.monotonic(), trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.stop()
