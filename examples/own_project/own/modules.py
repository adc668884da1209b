"""LightningModules of a project: an autoencoder, and distillation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from cnnlab.train.classifier import Classifier
from cnnlab.use.trained import open_run


class Autoencoder(LightningModule):
    """A network that reconstructs its input. It uses no class of cnnlab.

    Args:
        network, optimizer, scheduler: passed in by the run, because of their names.
        noise: standard deviation of the noise that is added to the images in training.
    """

    def __init__(self, network: nn.Module, optimizer: Callable, scheduler: Callable, noise: float = 0.1):
        super().__init__()
        self.network, self.make_optimizer, self.make_scheduler, self.noise = network, optimizer, scheduler, noise

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, _ = batch
        loss = F.mse_loss(self(images + self.noise * images.new_empty(images.shape).normal_()), images)
        self.log("train/loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/loss", F.mse_loss(self(batch[0]), batch[0]), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("test/loss", F.mse_loss(self(batch[0]), batch[0]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        return [optimizer], [self.make_scheduler(optimizer)]


class Distillation(Classifier):
    """Knowledge distillation (G. Hinton et al., 2015): a classifier that also learns from a finished run.

    Args:
        teacher: the directory of the finished run, which must have the same image size and normalization.
        share: weight of the distillation term in the loss.
        temperature: divisor of all logits in that term.
    """

    def __init__(self, *parts: Any, teacher: str, share: float = 0.5, temperature: float = 4.0, **more: Any):
        super().__init__(*parts, **more)
        model, _, _ = open_run(Path(teacher))
        self.teacher = (
            model.network.requires_grad_(False).eval(),
        )  # in a tuple, so that it is not part of the checkpoint
        self.share, self.temperature = share, temperature

    def loss_of(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss_of(images, targets)
        teacher = self.teacher[0].to(images.device)(images)
        ours, theirs = ((values / self.temperature).log_softmax(1) for values in (logits, teacher.detach()))
        soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.share) * loss + self.share * soft, logits
