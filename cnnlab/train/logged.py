"""What modules and callbacks log with `self.log`: across an interruption, and as rows of metrics.csv."""

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from lightning import Trainer
from torch import Tensor

Value: TypeAlias = tuple[Tensor, Tensor, str, str]  # the sum, or the like; its weight; the reduction; the name
REDUCTIONS = {"max": torch.maximum, "min": torch.minimum}  # all others add up

PARTS = ("train", "val", "test")
RECORDED = re.compile(f"({'|'.join(PARTS)})[/_](.+)")


def measured(trainer: Trainer, held_out: str) -> dict[str, float]:
    """What the module has logged in the epoch: {"train/loss": ..., "val/acc": ...}; train_loss counts as train/loss.

    With held_out="test", val/ is renamed to test/. A value that is logged by step and by epoch has two more names.
    """
    found = {}
    for name, value in (logged := trainer.callback_metrics).items():
        again = re.sub("_(step|epoch)$", "", name) in logged.keys() - {name}
        if (known := RECORDED.fullmatch(name)) and value.numel() == 1 and not again:
            part, kind = known.groups()
            found[f"{held_out if part == 'val' else part}/{kind}"] = value.item()
    return dict(sorted(found.items(), key=lambda item: PARTS.index(item[0].partition("/")[0])))


def unrecorded(trainer: Trainer) -> list[str]:
    """The names of values that were given to `self.log` for loggers, and that `measured` leaves out."""
    loop = trainer.fit_loop.epoch_loop
    logged = [result.meta for part in (loop, loop.val_loop) for result in part._results.values()]
    return sorted({meta.name for meta in logged if meta.logger and not RECORDED.fullmatch(meta.name)})


def state_of(trainer: Trainer) -> dict[str, Value]:
    """The values of this process in the epoch so far, by Lightning's keys."""
    none = torch.zeros((), dtype=torch.long)
    return {
        key: (
            result.value.cpu(),
            getattr(result, "cumulated_batch_size", none).cpu(),
            next((kind for kind in REDUCTIONS if getattr(result.meta, f"is_{kind}_reduction")), "sum"),
            result.meta.name,
        )
        for key, result in trainer.fit_loop.epoch_loop._results.items()
        if result.is_tensor and result.meta.on_epoch and not result.has_reset
    }


def merged(states: Iterable[Mapping[str, Value]]) -> dict[str, Value]:
    """The values of several processes together."""
    found: dict[str, Value] = {}
    for state in states:
        for key, (value, weight, *rest) in state.items():
            kind, name = rest or ("sum", key.partition(".")[2])  # of an older checkpoint
            if key in found:
                before, weight_before, *_ = found[key]
                value, weight = REDUCTIONS.get(kind, torch.add)(before, value), weight_before + weight
            found[key] = value, weight, kind, name
    return found


def add(trainer: Trainer, values: Mapping[str, Value]) -> dict[str, Value]:
    """Add values from before an interruption to those since; return those that have not been logged since."""
    results = trainer.fit_loop.epoch_loop._results
    for key, (value, weight, kind, _) in values.items():
        if (result := results.get(key)) is not None and not result.has_reset:
            result.value = REDUCTIONS.get(kind, torch.add)(result.value, value.to(result.value.device))
            if result.meta.is_mean_reduction:
                result.cumulated_batch_size = result.cumulated_batch_size + weight.to(result.value.device)
            result._computed = None
    return {key: value for key, value in values.items() if key not in results or results[key].has_reset}


def add_missing(trainer: Trainer, states: Iterable[Mapping[str, Value]]) -> None:
    """At the end of an epoch: values that were logged only before an interruption. states: of all processes."""
    for value, weight, _, name in merged(states).values():
        trainer.callback_metrics[name] = value / weight if weight else value
