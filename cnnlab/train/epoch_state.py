"""The state of a process in the middle of an epoch, besides the weights: sums, metrics, random generators."""

import random
from collections.abc import Callable
from functools import partial
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
    sums = sums_of(module)
    results = trainer.fit_loop.epoch_loop._results
    return {
        "sums": sums.state_dict() if sums is not None else None,
        "metrics": states_of(metrics_in(module)),
        "logged": {
            key: (result.value.cpu(), getattr(result, "cumulated_batch_size", torch.zeros((), dtype=torch.long)).cpu())
            for key, result in results.items()
            if result.is_tensor and result.meta.on_epoch and not result.has_reset
        },
    }


def sums_of(module: LightningModule) -> Any:
    """What a module accumulates, if that can be saved and loaded; an attribute `sums` may be anything else."""
    return sums if hasattr(sums := getattr(module, "sums", None), "load_state_dicts") else None


def take_over(trainer: Trainer, module: LightningModule) -> Callable[[], None]:
    """Log values over all processes unless the module says otherwise; return what steps ReduceLROnPlateau.

    Lightning would step it after the epoch's checkpoint has been saved, and a resumed run would miss it.
    """
    if trainer.world_size > 1:
        log = module.log  # replaced on these instances alone, which live as long as the run
        module.log = lambda *given, **named: log(  # type: ignore[method-assign]
            *given, **({"sync_dist": not named.get("rank_zero_only")} | named)
        )
    loop = trainer.fit_loop.epoch_loop
    update = loop.update_lr_schedulers

    def without_plateau(interval: str, update_plateau_schedulers: bool) -> None:
        if interval != "epoch" or not update_plateau_schedulers:
            update(interval, update_plateau_schedulers=update_plateau_schedulers)

    loop.update_lr_schedulers = without_plateau  # type: ignore[method-assign]
    return partial(update, "epoch", update_plateau_schedulers=True)


def restore_epoch_state(states: list[dict[str, Any]], module: LightningModule) -> dict[str, tuple[Tensor, Tensor]]:
    """Restore a module from the states of some processes; return their logged values, for `add_logged`."""
    if (sums := sums_of(module)) is not None:
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
            value, meta = value.to(result.value.device), result.meta
            one = torch.max if meta.is_max_reduction else torch.min if meta.is_min_reduction else torch.add
            result.value = one(result.value, value)
            if meta.is_mean_reduction:
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
