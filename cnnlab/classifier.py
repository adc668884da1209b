"""The training step: a network, its loss, its metrics, its optimizer and schedule.

Loss and metrics are kept on the device and logged once an epoch. Logging them at every step would cost as much as the
step itself for a network this small.
"""

import inspect
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from cnnlab.config import UserError
from cnnlab.data.images import Shape
from cnnlab.data.module import data_of
from cnnlab.machine import of_all_processes
from cnnlab.metrics import Accuracy, EpochMetrics

Batch = tuple[
    Tensor, Tensor
]  # images (B, C, H, W) float32; targets (B,) int64 or, mixed, labels, numbers: (B, K) float32


def replayable(training_step: Any) -> Any:
    """Say of a training step that it is `train_loss`, `sums.add` and no more; so it can be part of a CUDA graph."""
    training_step.replayable = True
    return training_step


class Classifier(LightningModule):
    """Trains a network by a loss: what `module` is unless another one is chosen (docs/own_project.md).

    Args:
        network: normalised images -> logits (B, num_classes), or K numbers.
        optimizer: makes the optimizer of groups of weights.
        scheduler: makes the learning rate's schedule for the optimizer; see `schedule`.
        held_out: what the images evaluated in every epoch are called, "val" or "test".
        loss: of logits (B, num_classes) and targets, (); see cnnlab.losses. It has no weights to be trained.
        metrics: by name; see cnnlab.metrics.
        task: what the targets are, see cnnlab.data.images.Shape.
        monitor: the metric that ReduceLROnPlateau watches, "val/acc".
        warmup_epochs: the learning rate rises linearly, step by step, for so many epochs at first.
        decay_all: whether weight decay applies to biases and normalisation layers too.
        test_flips: whether evaluation takes the mean of the logits of an image and of its mirror image.
        compile: whether torch.compile makes fewer and larger operations of the network and its loss in training.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[..., LRScheduler],
        held_out: str = "val",
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        metrics: Mapping[str, Metric] | None = None,
        task: str = "multiclass",
        monitor: str = "val/acc",
        warmup_epochs: float = 0.0,
        decay_all: bool = True,
        test_flips: bool = False,
        compile: bool = False,
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.loss = loss
        if isinstance(loss, nn.Module) and list(loss.parameters()):
            raise UserError(f"{type(loss).__name__} has weights of its own, which nothing trains. Use another loss.")
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.held_out, self.task, self.monitor = held_out, task, monitor
        kinds = metrics if metrics is not None else {"acc": Accuracy()}
        # of training, and of evaluation; hidden from nn.Module, which would keep them with the weights
        self.kept = tuple({name: metric.clone() for name, metric in kinds.items()} for _ in range(2))
        self.warmup_epochs, self.decay_all, self.test_flips = warmup_epochs, decay_all, test_flips
        self.train_loss = torch.compile(self.loss_of, dynamic=False) if compile else self.loss_of
        self.begin_epoch()
        self.predictions: tuple[Tensor, ...] | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """What is logged of every part: val/loss, val/acc."""
        return ("loss", *self.kept[0])

    def try_it(self, shape: Shape) -> None:
        """Raises: UserError if network and loss do not fit to data of a shape, or to each other."""
        with torch.no_grad():
            outputs = self.network.eval()(torch.zeros(1, shape.channels, *shape.size))
        self.network.train()
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if found != (1, shape.num_classes):
            raise UserError(
                f"{type(self.network).__name__} gives {found} for one image, and the outputs for {shape.num_classes} "
                f"{'numbers' if shape.task == 'regression' else 'classes'} are (1, {shape.num_classes}). Its file can "
                f"pass on the number: ARGUMENT: data.num_classes."
            )
        target = torch.zeros(1, dtype=torch.int64) if shape.task == "multiclass" else torch.zeros(1, shape.num_classes)
        try:
            with warnings.catch_warnings(action="error", category=UserWarning):  # as of torch, where it broadcasts
                loss = self.loss(outputs, target)
        except (RuntimeError, ValueError, TypeError, IndexError, UserWarning) as error:
            raise UserError(
                f"The loss {type(self.loss).__name__} takes no outputs {found} with targets {tuple(target.shape)} "
                f"{str(target.dtype).removeprefix('torch.')}: {error}."
            ) from error
        if not isinstance(loss, Tensor) or loss.shape:
            raise UserError(f"The loss {type(self.loss).__name__} gives more than one number. Average over the batch.")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    @replayable
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        loss, logits = self.train_loss(images, targets)
        self.sums.add(loss, logits, targets)
        return loss

    def loss_of(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The training loss of a batch, (), and its logits (B, num_classes)."""
        logits = self.network(images)
        return self.loss(logits, targets), logits

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the logits (B, num_classes)."""
        images, targets = batch
        logits = self.network(images)
        if self.test_flips:
            logits = (logits + self.network(images.flip(3))) / 2
        self.evaluation_sums.add(self.loss(logits, targets), logits, targets)
        return logits

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.tested.append(answers(self.validation_step(batch, batch_idx), self.task))

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.make_optimizer, self.network, self.decay_all)
        num_steps = self.num_steps()
        schedules = [schedule(self.make_scheduler, optimizer, num_steps, self.monitor)]
        if warmup_steps := round(self.warmup_epochs * num_steps / (self.trainer.max_epochs or 1)):
            rise = LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps)
            schedules.append({"scheduler": rise, "interval": "step"})
        return [optimizer], schedules

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """As Lightning does, which refuses fused optimizers in mixed precision: in float16 these unscale gradients as
        they step. Gradients that are unscaled before they are clipped, they take as they are."""
        plugin = self.trainer.precision_plugin
        scaler = getattr(plugin, "scaler", None)
        if scaler is not None and gradient_clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
        algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
        Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)

    def num_steps(self) -> int:
        """Steps of the whole training.

        `trainer.estimated_stepping_batches` would set up the loaders too early to be given their place in an epoch.
        """
        batches, limit = data_of(self.trainer).num_batches, self.trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return math.ceil(batches / self.trainer.accumulate_grad_batches) * (self.trainer.max_epochs or 0)

    def begin_epoch(self) -> None:
        self.sums, self.evaluation_sums = (EpochMetrics(kept, self.task, self.device) for kept in self.kept)

    def on_train_epoch_start(self) -> None:
        self.begin_epoch()

    def on_validation_epoch_start(self) -> None:
        self.evaluation_sums = EpochMetrics(self.kept[1], self.task, self.device)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()
        self.tested: list[tuple[Tensor, ...]] = []

    def on_validation_epoch_end(self) -> None:
        self.publish(self.held_out, self.evaluation_sums)

    def on_test_epoch_end(self) -> None:
        self.publish("test", self.evaluation_sums)
        self.predictions = self.gathered_predictions()

    def gathered_predictions(self) -> tuple[Tensor, ...]:
        """The answers of the test, see `answers`, in the order of the images, on the CPU."""
        of_rank = of_all_processes([torch.cat(parts).cpu() for parts in zip(*self.tested, strict=True)])
        together = []
        for parts in zip(*of_rank, strict=True):
            whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype)
            for rank, part in enumerate(parts):
                whole[rank :: len(parts)] = part
            together.append(whole)
        return tuple(together)

    def on_train_epoch_end(self) -> None:
        self.publish("train", self.sums)
        for kept in self.trainer.lr_scheduler_configs:
            if isinstance(kept.scheduler, ReduceLROnPlateau):
                kept.scheduler.step(self.trainer.callback_metrics[self.monitor])

    def release(self) -> None:
        """Let go of what the training has kept on the device besides the weights."""
        self.begin_epoch()
        self.zero_grad()

    def publish(self, part: str, sums: EpochMetrics) -> None:
        """Log loss and metrics in full precision; the run gives them to its loggers."""
        for name, value in sums.compute(self.trainer.strategy).items():
            self.log(f"{part}/{name}", torch.tensor(value, dtype=torch.float64), logger=False, batch_size=1)


def answers(outputs: Tensor, task: str) -> tuple[Tensor, ...]:
    """What the outputs (B, K) of a network say.

    multiclass: the most probable class (B,) int64, and its probability (B,) float32; multilabel: the probability of
    every label (B, K) float32; regression: the numbers (B, K) float32.
    """
    outputs = outputs.float()
    if task == "multiclass":
        confidence, predicted = outputs.softmax(1).max(1)
        return predicted, confidence
    return (outputs.sigmoid() if task == "multilabel" else outputs,)


def make_optimizer(make: Callable[[Any], Optimizer], network: nn.Module, decay_all: bool) -> Optimizer:
    """The optimizer of a network, in which every group of weights has its own rate."""
    optimizer = make(weight_groups(network, decay_all))
    for group in optimizer.param_groups:
        if (scale := group.pop("lr_scale", 1.0)) != 1.0:
            group["lr"] = group["lr"] * scale
    return optimizer


def weight_groups(network: nn.Module, decay_all: bool) -> list[dict[str, Any]]:
    """What an optimizer takes: the groups of a network, each with biases and normalisation layers by themselves where
    these have no decay.

    A network may have `parameter_groups()`: a list of {"params": weights, ...} with settings of the optimizer for each,
    or `lr_scale`, which multiplies optim.lr. What requires no gradient is not trained.

    Raises: UserError if its groups lack a weight, or have one twice.
    """
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    declared = cast(Any, network).parameter_groups() if hasattr(network, "parameter_groups") else [{"params": trained}]
    groups = [
        group | {"params": [weight for weight in group["params"] if weight.requires_grad]}
        for group in (group | {"params": list(group["params"])} for group in declared)
    ]
    held = [id(weight) for group in groups for weight in group["params"]]
    if sorted(held) != sorted(map(id, trained)):
        raise UserError(
            f"The groups of {type(network).__name__}.parameter_groups() hold {len(held)} trained weights, "
            f"{len(set(held))} of them different, and the network has {len(trained)}. Each belongs into one group; one "
            f"that is not trained has requires_grad=False."
        )
    if not decay_all:
        groups = [
            group | {"params": some} | extra
            for group in groups
            for some, extra in (
                ([weight for weight in group["params"] if weight.ndim > 1], {}),
                ([weight for weight in group["params"] if weight.ndim <= 1], {"weight_decay": 0.0}),
            )
        ]
    return [group for group in groups if group["params"]]


def schedule(
    scheduler: Callable[..., LRScheduler], optimizer: Optimizer, num_steps: int, monitor: str
) -> dict[str, Any]:
    """A schedule as Lightning takes it. Its class decides how it is stepped.

    A class that asks for the length of the training gets it, in steps, and is stepped after every step; others are
    stepped after every epoch. A rate, `max_lr` or `base_lr`, is for the first group of weights; others get theirs in
    proportion. ReduceLROnPlateau is kept by Lightning and stepped by `Classifier` before the epoch is saved: Lightning
    would do it after that, and a resumed run would miss it.
    """
    parameters = inspect.signature(scheduler).parameters
    rates = [group["lr"] for group in optimizer.param_groups]
    if len(set(rates)) > 1:
        given = {name: parameters[name].default for name in ("max_lr", "base_lr") if name in parameters}
        scheduler = partial(
            scheduler, **{name: [of_first * rate / rates[0] for rate in rates] for name, of_first in given.items()}
        )
    for name in ("total_steps", "T_max"):
        if name in parameters:
            return {"scheduler": scheduler(optimizer, **{name: num_steps}), "interval": "step"}
    made = scheduler(optimizer)
    ours = {"monitor": monitor, "frequency": sys.maxsize} if isinstance(made, ReduceLROnPlateau) else {}
    return {"scheduler": made, "interval": "epoch"} | ours
