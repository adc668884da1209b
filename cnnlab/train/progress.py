"""Progress bars for the terminal and for notebooks."""

import os
import time
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cnnlab.console import in_notebook
from cnnlab.data.pipeline import data_of


def shown_loss(module: LightningModule, outputs: Any) -> str:
    """The mean loss of the epoch so far if the module has it, otherwise the loss of the batch."""
    sums = getattr(module, "sums", None)
    loss = sums.mean_loss() if sums is not None else outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return f"{float(loss):.4f}" if loss is not None else "-"


def steps_and_images(trainer: Trainer) -> tuple[int, int]:
    """The number of optimizer steps of the whole training, and of images in each."""
    together = trainer.accumulate_grad_batches
    steps = int(trainer.num_training_batches) // together * (trainer.max_epochs or 0)
    return steps, data_of(trainer).batch_size * together


class ProgressBar(Callback):
    """Steps, images per second, loss and time left on a terminal, updated four times per second."""

    every_step = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("step"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]} images/s  loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            transient=True,
            refresh_per_second=4,
            disable=not trainer.is_global_zero,
        )
        steps, self.images = steps_and_images(trainer)
        self.task = self.bar.add_task(
            "",
            total=steps,
            completed=trainer.global_step,
            epoch=trainer.current_epoch + 1,
            epochs=trainer.max_epochs,
            speed="-",
            loss="-",
        )
        self.bar.start()
        self.shown_at, self.shown_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        elapsed = time.monotonic() - self.shown_at
        if elapsed >= 0.25:
            images = (trainer.global_step - self.shown_step) * self.images
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


class NotebookBar(Callback):
    """The same below the cell of a notebook, as one line, updated twice per second."""

    every_step = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from IPython.display import Pretty, display

        self.text = Pretty
        self.started, self.first_step = time.monotonic(), trainer.global_step
        self.shown_at = self.started
        self.line = display(Pretty("the first steps ..."), display_id=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, done = time.monotonic(), trainer.global_step - self.first_step
        if now - self.shown_at >= 0.5 and done:
            self.shown_at, speed = now, done / (now - self.started)
            steps, images = steps_and_images(trainer)
            left = (steps - trainer.global_step) / speed
            self.line.update(
                self.text(
                    f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {trainer.global_step / steps:.0%}  "
                    f"{speed * images:,.0f} images/s  loss {shown_loss(pl_module, outputs)}  "
                    f"{left:,.0f} s left"
                )
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.line.update(self.text(f"{time.monotonic() - self.started:,.1f} s"))


def progress() -> list[Callback]:
    """The progress bar, if there is a terminal or a notebook to show it."""
    if in_notebook():
        return [NotebookBar()]
    return [ProgressBar()] if os.isatty(1) else []
