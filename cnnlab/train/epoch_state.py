"""The state of a process in the middle of an epoch, besides the weights: sums, metrics, random generators."""

import random
from typing import Any, cast

import numpy as np
import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from cnnlab.metrics import restore, states_of


def epoch_state(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What this process has accumulated in the epoch.

    sums: of a module that has some; metrics: torchmetrics among its submodules; logged: sum and count of each value
    that was given to `self.log`.
    """
    sums = getattr(module, "sums", None)
    results = trainer.fit_loop.epoch_loop._results
    return {
        "sums": sums.state_dict() if sums is not None else None,
        "metrics": states_of(metrics_in(module)),
        "logged": {
            key: (result.value.cpu(), result.cumulated_batch_size.cpu())
            for key, result in results.items()
            if result.is_tensor and result.meta.on_epoch and result.meta.is_mean_reduction and not result.has_reset
        },
    }


def restore_epoch_state(states: list[dict[str, Any]], module: LightningModule) -> dict[str, tuple[Tensor, Tensor]]:
    """Restore a module from the states of some processes; return their logged values, for `add_logged`."""
    if (sums := getattr(module, "sums", None)) is not None:
        sums.load_state_dicts([state["sums"] for state in states], module.device)
    restore(metrics_in(module), [state["metrics"] for state in states], module.device)
    logged: dict[str, tuple[Tensor, Tensor]] = {}
    for state in states:
        for key, (value, count) in state["logged"].items():
            before = logged.get(key, (torch.zeros(()), torch.zeros((), dtype=count.dtype)))
            logged[key] = before[0] + value, before[1] + count
    return logged


def metrics_in(module: LightningModule) -> dict[str, Metric]:
    return {name: part for name, part in module.named_modules() if isinstance(part, Metric)}


def add_logged(trainer: Trainer, logged: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Add values that were logged before an interruption to those logged since."""
    for key, (value, count) in logged.items():
        if (result := trainer.fit_loop.epoch_loop._results.get(key)) is not None:
            result.value = result.value + value.to(result.value.device)
            result.cumulated_batch_size = result.cumulated_batch_size + count.to(result.value.device)
            result._computed = None


def random_states() -> dict[str, Any]:
    """The states of all random generators that a library may use, as tensors and primitives."""
    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
