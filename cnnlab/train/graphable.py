"""Whether training steps can be recorded as a CUDA graph."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from cnnlab.data.pipeline import ImageData

OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
WITHIN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
STEPPING = (
    *("on_train_batch_start", "on_train_batch_end", "lr_scheduler_step"),
    *("backward", "optimizer_step", "optimizer_zero_grad"),
)
BETWEEN = ("accumulate_grad_batches", "detect_anomaly", "max_steps", "overfit_batches", "plugins", "val_check_interval")


def unsupported(
    trainer: Trainer,
    optimizer: Any,
    make_scheduler: Callable[..., Any],
    data: ImageData,
    arguments: Mapping[str, Any],
    module: type[LightningModule],
) -> str:
    """Why this run's steps cannot be recorded; empty if they can.

    optimizer: of the run's class, or what else makes it. arguments: of Lightning's Trainer. module: the class that is
    trained.
    """
    name = getattr(optimizer, "__name__", type(optimizer).__name__)
    cycle = inspect.signature(make_scheduler).parameters.get("cycle_momentum")
    callbacks = cast(Any, trainer).callbacks
    within = [name for name in WITHIN if any(overrides(type(callback), Callback, name) for callback in callbacks)]
    own = [name for name in (*WITHIN, *STEPPING) if overrides(module, LightningModule, name)]
    added = [name for name in BETWEEN if arguments.get(name)]
    device = trainer.strategy.root_device.type
    for case, reason in (
        (device != "cuda", f"it needs a GPU, and this run is on {device}"),
        (not isinstance(trainer.strategy, SingleDeviceStrategy), "processes wait for each other in every step"),
        (data.resident != "device", f"resident={data.resident} gathers the images elsewhere"),
        (
            type(optimizer) not in OPTIMIZERS or not optimizer.defaults["fused"],
            f"it needs SGD, Adam or AdamW with fused=true, and the optimizer is {name}",
        ),
        (
            getattr(optimizer, "defaults", {}).get("dampening"),
            "with optim.dampening the first step differs from the others",
        ),
        (cycle and cycle.default, "sched.cycle_momentum=true changes the momentum, which is part of the recording"),
        (trainer.precision_plugin.precision == "16-mixed", "float16 checks gradients before it uses them"),
        (added, f"trainer.{', trainer.'.join(added)} needs control between two steps"),
        (within, f"a callback has {', '.join(within)}, which is called within a step"),
        (own, f"{module.__name__} has {', '.join(own)}, which is called within a step"),
        (
            not getattr(module.training_step, "replayable", False),
            f"the step of {module.__name__} may do more than compute a loss",
        ),
    ):
        if case:
            return reason
    return ""


def overrides(kind: type, base: type, name: str) -> bool:
    return getattr(kind, name) is not getattr(base, name)


def looks_at_every_step(callback: Callback) -> bool:
    """Whether a callback needs control after every step: not if it says so (`every_step = False`), or can be recorded
    (`after_step`).
    """
    if not getattr(callback, "every_step", True) or hasattr(callback, "after_step"):
        return False
    names = ("on_train_batch_start", "on_train_batch_end")
    return any(overrides(type(callback), Callback, name) for name in names)
