"""Optimizers and schedules for groups of weights."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cnnlab.config.options import UserError


def make_optimizer(
    make: Callable[[Any], Optimizer], network: nn.Module, decay_all: bool, lr_scale: Mapping[str, float] | None = None
) -> Optimizer:
    """The optimizer of a network, with a learning rate for each group of weights."""
    optimizer = make(weight_groups(network, decay_all, lr_scale or {}))
    for group in optimizer.param_groups:
        if (scale := group.pop("lr_scale", 1.0)) != 1.0:
            group["lr"] = group["lr"] * scale
    if hasattr(optimizer, "_gather_flat_grad"):  # L-BFGS flattens gradients, which have the layout of their weights
        for weight in network.parameters():
            weight.data = weight.data.contiguous()
    return optimizer


def parsed(lr_scale: Sequence[str]) -> dict[str, float]:
    """["fc:10", "conv1:0"] -> {"fc": 10.0, "conv1": 0.0}. Raises: UserError."""
    factors = {}
    for one in lr_scale:
        layer, _, factor = str(one).rpartition(":")
        try:
            factors[layer] = float(factor)
        except ValueError:
            factors[layer] = math.nan
        if not layer or not 0 <= factors[layer] < math.inf:
            raise UserError(f"lr_scale=[{one}] is not LAYER:FACTOR. Use lr_scale=[fc:10,conv1:0]; 0 freezes.")
    return factors


def factor_of(name: str, lr_scale: Mapping[str, float]) -> float:
    """The factor of a layer or a weight: that of the longest prefix of its name in `lr_scale`."""
    prefixes = [layer for layer in lr_scale if f"{name}.".startswith(f"{layer}.")]
    return lr_scale[max(prefixes, key=len)] if prefixes else 1.0


def freeze(network: nn.Module, lr_scale: Mapping[str, float]) -> None:
    """Freeze the layers with factor 0: their weights and, as they stay in evaluation mode, batch norm statistics.

    Raises: UserError for a name that is no prefix of any weight's name.
    """
    names = [name for name, _ in network.named_parameters()]
    for layer in lr_scale:
        if not any(f"{name}.".startswith(f"{layer}.") for name in names):
            known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UserError(f"lr_scale=[{layer}:...]: no weight's name begins with {layer}. The layers are {known}.")
    for name, weight in network.named_parameters():
        if not factor_of(name, lr_scale):
            weight.requires_grad_(False)
    for name, layer in network.named_modules():
        if not factor_of(name, lr_scale):
            layer.training = False


def weight_groups(
    network: nn.Module, decay_all: bool, lr_scale: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """The parameter groups of a network; without `decay_all`, biases and normalization layers are separate groups.

    A network may have `parameter_groups()`, which returns a list of {"params": weights, ...} with optimizer settings
    for each group, or `lr_scale`, which multiplies optim.lr. Weights that require no gradient are left out.
    lr_scale: factors of layers, see `factor_of`.

    Raises: UserError if its groups lack a weight, or contain one twice.
    """
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    declared = cast(Any, network).parameter_groups() if hasattr(network, "parameter_groups") else [{"params": trained}]
    groups: list[dict[str, Any]] = []
    for group in declared:
        given = [entry[1] if isinstance(entry, tuple) else entry for entry in group["params"]]  # named_parameters()
        groups.append(group | {"params": [weight for weight in given if weight.requires_grad]})
    held = [id(weight) for group in groups for weight in group["params"]]
    if sorted(held) != sorted(map(id, trained)):
        raise UserError(
            f"The groups of {type(network).__name__}.parameter_groups() contain {len(held)} trained weights, "
            f"{len(set(held))} of them distinct, but the network has {len(trained)}. Put each into one group; weights "
            f"that are not trained need requires_grad=False."
        )
    factors = {id(weight): factor_of(name, lr_scale or {}) for name, weight in network.named_parameters()}
    return [
        group
        | {"params": some}
        | ({"lr_scale": group.get("lr_scale", 1.0) * factor} if factor != 1 else {})  # optimizers may refuse other keys
        | ({} if decayed else {"weight_decay": 0.0})
        for group in groups
        for factor in dict.fromkeys(factors.values())
        for decayed in (True, False)
        if (some := [w for w in group["params"] if (factors[id(w)], decay_all or w.ndim > 1) == (factor, decayed)])
    ]


def schedule(
    scheduler: Callable[..., LRScheduler], optimizer: Optimizer, num_steps: int, monitor: str
) -> dict[str, Any]:
    """A schedule in Lightning's form.

    A class with an argument for the length of the training (`total_steps`, `T_max`) gets it in steps, and is stepped
    after every step; others are stepped after every epoch. `max_lr` or `base_lr` is multiplied for each group of
    weights as the optimizer's rate is.

    Raises: UserError for a length that is given.
    """
    parameters = inspect.signature(scheduler).parameters
    if any("lr" not in group for group in [optimizer.defaults, *optimizer.param_groups]):
        raise UserError(f"{type(optimizer).__name__} has no learning rate called lr, which schedules change.")
    multiples = [group["lr"] / optimizer.defaults["lr"] for group in optimizer.param_groups]
    if set(multiples) != {1.0}:
        given = {name: parameters[name].default for name in ("max_lr", "base_lr") if name in parameters}
        scheduler = partial(
            scheduler, **{name: [rate * multiple for multiple in multiples] for name, rate in given.items()}
        )
    for name in ("total_steps", "T_max"):
        if name in parameters:
            if (length := getattr(scheduler, "keywords", {}).get(name)) is not None:
                raise UserError(
                    f"sched.{name}={length} would have no effect: it is set to the steps of the whole training. Leave "
                    f"sched.{name} out."
                )
            return {"scheduler": scheduler(optimizer, **{name: num_steps}), "interval": "step"}
    made = scheduler(optimizer)
    monitored = {"monitor": monitor} if isinstance(made, ReduceLROnPlateau) else {}
    return {"scheduler": made, "interval": "epoch"} | monitored


def keeps_factors(scheduler: LRScheduler) -> bool:
    """Whether a schedule multiplies the present rates, so that a warmup can do so too, instead of replacing them.

    The schedule is of no use afterwards: rates of 0 have to stay small.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        return True
    groups = scheduler.optimizer.param_groups
    rates = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] = 0.0
    with warnings.catch_warnings(action="ignore"):  # the optimizer has not stepped
        scheduler.step()
    return all(group["lr"] <= 0.01 * rate for group, rate in zip(groups, rates, strict=True))
