"""The training step: a network, its loss, its optimizer, and the sums behind the metrics.

Loss and accuracy are summed on the device and logged once an epoch. Logging them at every step costs a step of its
own for a network this small.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassConfusionMatrix

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) float32; labels (B,) int64 or, mixed, (B, num_classes) float32


class Classifier(LightningModule):
    """Trains a network by cross-entropy.

    Args:
        network: normalised images -> logits (B, num_classes).
        optimizer: makes the optimizer of the network's weights.
        scheduler: makes the learning rate's schedule for the optimizer, one step per epoch.
        num_classes: number of classes.
        held_out: what the images evaluated in every epoch are called, "val" or "test".
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterator[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        num_classes: int,
        held_out: str = "val",
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.held_out = held_out
        self.sums = Sums()
        self.evaluation_sums = Sums()
        self.measured: dict[str, float] = {}  # the metrics of the epoch, in full precision
        self.confusion = MulticlassConfusionMatrix(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.sums.add(loss, logits, labels)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self.network(images)
        self.evaluation_sums.add(F.cross_entropy(logits, labels), logits, labels)
        self.confusion.update(logits, labels)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.network.parameters())
        return [optimizer], [self.make_scheduler(optimizer)]

    def on_train_epoch_start(self) -> None:
        self.sums.reset(self.device)
        self.measured = {}

    def on_validation_epoch_start(self) -> None:
        self.evaluation_sums.reset(self.device)
        self.confusion.reset()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self.publish(self.evaluation_sums.means(self.held_out, self.trainer))

    def on_test_epoch_end(self) -> None:
        self.publish(self.evaluation_sums.means("test", self.trainer))

    def on_train_epoch_end(self) -> None:
        self.publish(self.sums.means("train", self.trainer))

    def publish(self, metrics: dict[str, float]) -> None:
        """Keep the metrics, and offer them to callbacks that watch one."""
        self.measured |= metrics
        self.log_dict(metrics, logger=False)


class Sums:
    """Loss and number of correct predictions, summed over images on the device.

    With mixed labels a prediction counts as correct if it is the label with the largest share.
    """

    def reset(self, device: torch.device) -> None:
        self.values = torch.zeros(3, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """loss: mean over the batch; logits: (B, num_classes); labels: (B,) int64 or (B, num_classes) float."""
        if labels.ndim == 2:
            labels = labels.argmax(1)
        correct = (logits.detach().argmax(1) == labels).sum()
        count = len(labels)
        self.values += torch.stack((loss.detach() * count, correct, torch.full_like(correct, count)))

    def means(self, stage: str, trainer: Any) -> dict[str, float]:
        """{"train/loss": ..., "train/acc": ...} over the images of all processes."""
        loss, correct, count = trainer.strategy.reduce(self.values, reduce_op="sum").tolist()
        return {f"{stage}/loss": loss / count, f"{stage}/acc": correct / count}
