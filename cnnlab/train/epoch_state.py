"""What an interrupted run needs to continue, besides Lightning's checkpoint.

In the middle of an epoch: sums, metrics, logged values, random generators. At any time: frozen layers and the like.
"""

import copy
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.trainer import call
from torch.optim import Optimizer
from torchmetrics import Metric

from cnnlab.metrics import restore, states_of
from cnnlab.train import logged


def epoch_state(trainer: Trainer, module: LightningModule, before: dict[str, logged.Value]) -> dict[str, Any]:
    """What this process has accumulated in the epoch.

    sums: of a module that has some; metrics: torchmetrics among its submodules; logged: see cnnlab.train.logged,
    with those from `before` an interruption.
    """
    sums = sums_of(module)
    return {
        "sums": sums.state_dict() if sums is not None else None,
        "metrics": states_of(metrics_in(module)),
        "logged": logged.merged([before, logged.state_of(trainer)]),
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


def add_to_hook(module: LightningModule, name: str, work: Callable[..., None]) -> None:
    """Do something after a hook of a module, which Lightning calls after those of the callbacks."""
    hook = getattr(module, name)

    def both(*given: Any) -> None:
        hook(*given)
        work(*given)

    setattr(module, name, both)


def restore_epoch_state(states: list[dict[str, Any]], module: LightningModule) -> dict[str, logged.Value]:
    """Restore a module from the states of some processes; return their logged values, for `logged.add`."""
    if (sums := sums_of(module)) is not None:
        sums.load_state_dicts([state["sums"] for state in states], module.device)
    restore(metrics_in(module), [state["metrics"] for state in states], module.device)
    return logged.merged([state["logged"] for state in states])


def unsaved_state(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What modules and optimizers leave out of their `state_dict`; the same in all processes.

    frozen, evaluating: names of weights without gradients, and of layers in evaluation mode, which callbacks change
    during the training; buffers: those that are not persistent; gradients: of manual optimization, which may accumulate
    them; within: see `optimizers_within`.
    """
    weights, saved = dict(module.named_parameters()), module.state_dict().keys()
    accumulated = {} if module.automatic_optimization else {name: weight.grad for name, weight in weights.items()}
    return {
        "buffers": {name: values for name, values in module.named_buffers() if name not in saved},
        "frozen": [name for name, weight in weights.items() if not weight.requires_grad],
        "evaluating": [name for name, layer in module.named_modules() if not layer.training],
        "gradients": {name: gradient for name, gradient in accumulated.items() if gradient is not None},
        "within": [optimizer.state_dict() for optimizer in optimizers_within(trainer)],
    }


def restore_unsaved_state(state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
    for name, weight in module.named_parameters():
        weight.requires_grad_(name not in state["frozen"])
        if name in state["gradients"]:
            weight.grad = state["gradients"][name].to(weight.device)
    for name, saved in state["buffers"].items():
        place, _, key = name.rpartition(".")
        buffers = module.get_submodule(place)._buffers
        if (now := buffers.get(key)) is not None and now.shape == saved.shape and now.is_contiguous():
            now.copy_(saved)
        else:  # a cache that has grown, or is expanded
            buffers[key] = saved.to(module.device)
    for name, layer in module.named_modules():
        layer.training = name not in state["evaluating"]
    for optimizer, saved in zip(optimizers_within(trainer), state["within"], strict=True):
        groups = optimizer.param_groups  # they may be those of the outer optimizer
        optimizer.load_state_dict(saved)
        optimizer.param_groups = groups


def restore_for_evaluation(checkpoint: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
    """Load the weights of a checkpoint, and the states of callbacks: some replace the weights by an average.

    Weights are loaded after the hooks of callbacks: that of WeightAveraging loads those that training continues from.
    """
    callbacks = cast(Any, trainer).callbacks
    for callback in callbacks:
        if callback not in trainer.checkpoint_callbacks:
            callback.on_load_checkpoint(trainer, module, dict(checkpoint))
        if state := checkpoint["callbacks"].get(callback.state_key):
            callback.load_state_dict(state)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)


def optimizers_within(trainer: Trainer) -> list[Optimizer]:
    """Optimizers that others keep, as in SAM, in attributes or in lists of them, and that have a state of their own."""

    def optimizers_in(value: Any) -> Iterator[Optimizer]:
        if isinstance(value, Optimizer):
            yield value
        elif type(value) in (list, tuple, dict):
            for one in value.values() if type(value) is dict else value:
                yield from optimizers_in(one)

    found = [(outer, inner) for outer in trainer.optimizers for inner in optimizers_in(list(vars(outer).values()))]
    return [inner for outer, inner in found if inner.state is not outer.state]


def begin_epoch_again(trainer: Trainer, module: LightningModule) -> None:
    """Call the hooks for the start of an epoch that is resumed, which Lightning does not do, and undo what they do to
    saved states: others, such as attributes, are not in the checkpoint.
    """
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    parts = [module, *trainer.optimizers, *schedules, *cast(Any, trainer).callbacks]
    states, loggers = copy.deepcopy([part.state_dict() for part in parts]), trainer.loggers
    trainer.loggers = []  # which have what the hooks log
    call._call_callback_hooks(trainer, "on_train_epoch_start")
    call._call_lightning_module_hook(trainer, "on_train_epoch_start")
    trainer.loggers = loggers
    for part, state in zip(parts, states, strict=True):
        if part is module:
            module.load_state_dict(state, strict=module.strict_loading)
        elif state:
            part.load_state_dict(state)
    for result in trainer.fit_loop.epoch_loop._results.values():
        result.reset()
    trainer.fit_loop._load_combined_loader_states()  # if configure_optimizers has made the loaders, too early


def metrics_in(module: LightningModule) -> dict[str, Metric]:
    return {name: part for name, part in module.named_modules() if isinstance(part, Metric)}


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
