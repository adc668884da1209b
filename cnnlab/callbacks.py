"""The callback that cnnlab adds to Lightning's."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """A moving average of weights and buffers, which is evaluated and saved in their place.

    Unlike Lightning's EMAWeightAveraging it starts from the initial weights, and updates all tensors of a dtype in one
    kernel without waiting for the device: on a GPU, Lightning's takes as long as the training step.

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
        """Update the average; can be part of a CUDA graph."""
        assert self._average_model is not None
        states = (self._average_model.module.state_dict().values(), module.state_dict().values())
        pairs = [pair for pair in zip(*states, strict=True) if isinstance(pair[0], Tensor)]  # others are an extra state
        averages, current = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, current, 1 - self.decay)
        for average, value in pairs:
            if not average.is_floating_point():  # num_batches_tracked of batch norm
                average.copy_(value)
