"""A LightningModule of a project: an autoencoder."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn


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
