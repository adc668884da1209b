"""The training step: a network, its loss, its metrics, its optimizer and schedule.

Loss and metrics are accumulated on the device and logged once per epoch. For small networks, logging them at every step
would take as long as the step itself.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler
from torchmetrics import Metric

from cnnlab.config.options import UserError
from cnnlab.config.shape import Shape
from cnnlab.data.pipeline import data_of
from cnnlab.metrics import Accuracy, EpochMetrics
from cnnlab.networks import in_evaluation_mode, mean_of_views
from cnnlab.train.machine import gather
from cnnlab.train.optimizers import freeze, make_optimizer, parsed, schedule

# images (B, C, H, W) float32; targets (B,) int64, or (B, K) float32: mixed, several labels, or numbers
Batch = tuple[Tensor, Tensor]


def replayable(training_step: Any) -> Any:
    """Mark a training step that only calls `train_loss` and `sums.add`, and so can be part of a CUDA graph."""
    training_step.replayable = True
    return training_step


class Classifier(LightningModule):
    """Trains a network with a loss: the default `module` (docs/own_project.md).

    Args:
        network: normalized images -> logits (B, num_classes), or K numbers.
        optimizer: makes the optimizer from groups of weights.
        scheduler: makes the learning rate schedule from the optimizer; see `schedule`.
        held_out: name of the images that are evaluated in every epoch, "val" or "test".
        loss: logits (B, num_classes) and targets -> (); see cnnlab.losses. It has no trainable weights.
        metrics: by name; see cnnlab.metrics.
        task: what the targets are, see cnnlab.config.shape.Shape.
        monitor: the metric that ReduceLROnPlateau monitors, "val/acc".
        warmup_epochs: epochs of linear warmup of the learning rate, step by step.
        decay_all: whether weight decay also applies to biases and normalization layers.
        lr_scale: learning rates of layers, by the beginning of their names, as multiples of the optimizer's: ["fc:10",
            "conv1:0"]; 0 freezes.
        test_flips: whether evaluation averages the logits of each image and its mirror image.
        test_shifts: pixels by which evaluation also shifts every image, see `mean_of_views`.
        compile: whether torch.compile fuses operations of the network and its loss in training.
    """

    counted: int  # the last batch that is in the sums

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
        lr_scale: Sequence[str] = (),
        test_flips: bool = False,
        test_shifts: int = 0,
        compile: bool = False,
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.loss = loss
        if isinstance(loss, nn.Module) and list(loss.parameters()):
            raise UserError(f"{type(loss).__name__} has its own weights, which are not trained. Use another loss.")
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.held_out, self.task, self.monitor = held_out, task, monitor
        metrics = metrics if metrics is not None else {"acc": Accuracy()}
        # for training and for evaluation; in a tuple, so that nn.Module does not save them with the weights
        self.kept = tuple({name: metric.clone() for name, metric in metrics.items()} for _ in range(2))
        self.warmup_epochs, self.decay_all, self.lr_scale = warmup_epochs, decay_all, parsed(lr_scale)
        self.test_flips, self.test_shifts = test_flips, test_shifts
        freeze(network, self.lr_scale)
        self.train_loss = torch.compile(self.loss_of, dynamic=False) if compile else self.loss_of
        self.begin_epoch()
        self.predictions: tuple[Tensor, ...] | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """The names that are logged for every part: val/loss, val/acc."""
        return ("loss", *self.kept[0])

    def try_it(self, shape: Shape) -> None:
        """Raises: UserError if network and loss do not fit data of a shape, or each other."""
        if self.test_shifts >= min(shape.size):
            raise UserError(f"test_shifts={self.test_shifts} is too large for images of {shape}. Use a smaller one.")
        with in_evaluation_mode(self.network), torch.no_grad():
            outputs = self.network(torch.zeros(1, shape.channels, *shape.size))
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if found != (1, shape.num_classes):
            raise UserError(
                f"{type(self.network).__name__} returns {found} for one image, but {shape.num_classes} "
                f"{'numbers' if shape.task == 'regression' else 'classes'} need (1, {shape.num_classes}). Its file can "
                f"pass on the number: ARGUMENT: data.num_classes."
            )
        target = torch.zeros(1, dtype=torch.int64) if shape.task == "multiclass" else torch.zeros(1, shape.num_classes)
        try:
            with warnings.catch_warnings(action="error", category=UserWarning):  # torch warns where it broadcasts
                loss = copy.deepcopy(self.loss)(outputs, target)
        except (RuntimeError, ValueError, TypeError, IndexError, UserWarning) as error:
            if isinstance(error, torch.AcceleratorError):
                raise
            raise UserError(
                f"The loss {type(self.loss).__name__} does not accept outputs {found} with targets "
                f"{tuple(target.shape)} {str(target.dtype).removeprefix('torch.')}: {error}."
            ) from error
        if not isinstance(loss, Tensor) or loss.shape:
            raise UserError(f"The loss {type(self.loss).__name__} is not a single number. Average over the batch.")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    @replayable
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        loss, logits = self.train_loss(images, targets)
        if batch_idx != self.counted:  # an optimizer may evaluate a batch several times
            self.sums.add(loss, logits, targets)
            self.counted = batch_idx
        return loss

    def loss_of(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The training loss of a batch, (), and its logits (B, num_classes)."""
        logits = self.network(images)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"{type(self.network).__name__} returns a {type(logits).__name__} in training, where one tensor is "
                f"needed. Switch off auxiliary outputs, or use a module of your own."
            )
        return self.loss(logits, targets), logits

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the logits (B, num_classes)."""
        images, targets = batch
        logits = mean_of_views(self.network, images, self.test_flips, self.test_shifts)
        self.evaluation_sums.add(self.loss(logits, targets), logits, targets)
        return logits

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.tested.append(answers(self.validation_step(batch, batch_idx), self.task))

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.make_optimizer, self.network, self.decay_all, self.lr_scale)
        num_steps = self.num_steps()
        schedules = [schedule(self.make_scheduler, optimizer, num_steps, self.monitor)]
        if warmup_steps := round(self.warmup_epochs * num_steps / (self.trainer.max_epochs or 1)):
            rise = LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps)
            schedules.append({"scheduler": rise, "interval": "step"})
        return [optimizer], schedules

    def num_steps(self) -> int:
        """Steps of the whole training, as `trainer.estimated_stepping_batches`, which creates the loaders for it."""
        batches, limit = data_of(self.trainer).num_full_batches, self.trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return batches // self.trainer.accumulate_grad_batches * (self.trainer.max_epochs or 0)

    def begin_epoch(self) -> None:
        self.sums, self.evaluation_sums = (EpochMetrics(kept, self.task, self.device) for kept in self.kept)
        self.counted = -1

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
        """The predictions of all processes, see `answers`, in the order of the images, on the CPU."""
        by_rank = gather([torch.cat(parts).cpu() for parts in zip(*self.tested, strict=True)])
        gathered = []
        for parts in zip(*by_rank, strict=True):
            whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype)
            for rank, part in enumerate(parts):
                whole[rank :: len(parts)] = part
            gathered.append(whole)
        return tuple(gathered)

    def on_train_epoch_end(self) -> None:
        self.publish("train", self.sums)

    def release(self) -> None:
        """Free the memory that training uses on the device, except for the weights."""
        self.begin_epoch()
        self.zero_grad()

    def publish(self, part: str, sums: EpochMetrics) -> None:
        """Log loss and metrics in full precision; `Records` passes them on to the loggers."""
        for name, value in sums.compute(self.trainer.strategy).items():
            found = torch.tensor(value, dtype=torch.float64)  # of all processes
            self.log(f"{part}/{name}", found, logger=False, batch_size=1, sync_dist=False)


def answers(outputs: Tensor, task: str) -> tuple[Tensor, ...]:
    """The predictions from a network's outputs (B, K).

    multiclass: the most probable class (B,) int64, and its probability (B,) float32; multilabel: the probability of
    every label (B, K) float32; regression: the numbers (B, K) float32.
    """
    outputs = outputs.float()
    if task == "multiclass":
        confidence, predicted = outputs.softmax(1).max(1)
        return predicted, confidence
    return (outputs.sigmoid() if task == "multilabel" else outputs,)
