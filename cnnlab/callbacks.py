"""A callback of cnnlab's own that is an option."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging


class EMA(WeightAveraging):
    """A moving average of weights and buffers, evaluated and kept in their place.

    As Lightning's EMAWeightAveraging, but that it begins with the initial weights, and is kept by one kernel for all
    tensors of a kind and without a wait for the device: on a GPU the other takes as long as the training step.

    Args:
        decay: the share of the average that a step keeps.
    """

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not getattr(pl_module, "calls_after_step", False) and not trainer.fit_loop._should_accumulate():
            self.after_step(pl_module)

    @torch.no_grad()
    def after_step(self, module: LightningModule) -> None:
        """One step of the average; it can be part of a CUDA graph."""
        assert self._average_model is not None
        averaged = self._average_model.module.state_dict().values()
        pairs = list(zip(averaged, module.state_dict().values(), strict=True))
        ours, theirs = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        for mine, value in pairs:
            if not mine.is_floating_point():  # a number of batches
                mine.copy_(value)
