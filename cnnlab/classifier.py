"""The training step: a network, its loss, its optimizer and schedule, and the sums behind the metrics.

Loss and accuracy are summed on the device, for several batches at once, and logged once an epoch. Logging them at every
step would cost as much as the step itself for a network this small.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, ReduceLROnPlateau

from cnnlab.config import UserError
from cnnlab.data.module import data_of

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) float32; labels (B,) int64 or, mixed, (B, num_classes) float32


class Classifier(LightningModule):
    """Trains a network by a loss.

    Args:
        network: normalised images -> logits (B, num_classes).
        optimizer: makes the optimizer of groups of weights.
        scheduler: makes the learning rate's schedule for the optimizer; see `schedule`.
        held_out: what the images evaluated in every epoch are called, "val" or "test".
        loss: of logits (B, num_classes) and labels, (); see cnnlab.losses. It has no weights to be trained.
        warmup_epochs: the learning rate rises linearly, step by step, for so many epochs at first.
        decay_all: whether weight decay applies to biases and normalisation layers too.
        test_flips: whether evaluation takes the mean of the logits of an image and of its mirror image.
        compiled: whether torch.compile makes fewer and larger operations of the network and its loss in training.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Any], Optimizer],
        scheduler: Callable[..., LRScheduler],
        held_out: str = "val",
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        warmup_epochs: float = 0.0,
        decay_all: bool = True,
        test_flips: bool = False,
        compiled: bool = False,
    ):
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.loss = loss
        if isinstance(loss, nn.Module) and list(loss.parameters()):
            raise UserError(f"{type(loss).__name__} has weights of its own, which nothing trains. Use another loss.")
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.held_out = held_out
        self.warmup_epochs, self.decay_all, self.test_flips = warmup_epochs, decay_all, test_flips
        self.train_loss = torch.compile(self.loss_of, dynamic=False) if compiled else self.loss_of
        self.sums = Sums()
        self.evaluation_sums = Sums()
        self.measured: dict[str, float] = {}  # the metrics of the epoch, in full precision
        self.predictions: tuple[Tensor, Tensor] | None = None

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        loss, logits = self.train_loss(images, labels)
        self.sums.add(loss, logits, labels)
        return loss

    def loss_of(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The training loss of a batch, (), and its logits (B, num_classes)."""
        logits = self.network(images)
        return self.loss(logits, labels), logits

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the logits (B, num_classes)."""
        images, labels = batch
        logits = self.network(images)
        if self.test_flips:
            logits = (logits + self.network(images.flip(3))) / 2
        self.evaluation_sums.add(self.loss(logits, labels), logits, labels)
        return logits

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        confidence, predicted = self.validation_step(batch, batch_idx).float().softmax(1).max(1)
        self.tested.append((predicted, confidence))

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(weight_groups(self.network, self.decay_all))
        num_steps = self.num_steps()
        schedules = [schedule(self.make_scheduler, optimizer, num_steps, monitor=f"{self.held_out}/acc")]
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
        return batches * (self.trainer.max_epochs or 0)

    def on_train_epoch_start(self) -> None:
        self.sums = Sums()
        self.measured = {}

    def on_validation_epoch_start(self) -> None:
        self.evaluation_sums = Sums()

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()
        self.tested: list[tuple[Tensor, Tensor]] = []

    def on_validation_epoch_end(self) -> None:
        self.publish(self.evaluation_sums.means(self.held_out, self.trainer))

    def on_test_epoch_end(self) -> None:
        self.publish(self.evaluation_sums.means("test", self.trainer))
        self.predictions = self.gathered_predictions()

    def gathered_predictions(self) -> tuple[Tensor, Tensor]:
        """The labels predicted in the test and their probabilities, in the order of the images, on the CPU.

        (N,) int64 and (N,) float32.
        """
        of_rank = of_all_processes([torch.cat(parts).cpu() for parts in zip(*self.tested, strict=True)])
        together = []
        for parts in zip(*of_rank, strict=True):
            whole = torch.empty(sum(map(len, parts)), dtype=parts[0].dtype)
            for rank, part in enumerate(parts):
                whole[rank :: len(parts)] = part
            together.append(whole)
        return together[0], together[1]

    def on_train_epoch_end(self) -> None:
        self.publish(self.sums.means("train", self.trainer))
        for kept in self.trainer.lr_scheduler_configs:
            if isinstance(kept.scheduler, ReduceLROnPlateau):
                kept.scheduler.step(self.measured[f"{self.held_out}/acc"])

    def release(self) -> None:
        """Let go of what the training has kept on the device besides the weights."""
        self.sums, self.evaluation_sums = Sums(), Sums()
        self.zero_grad()

    def publish(self, metrics: dict[str, float]) -> None:
        """Keep the metrics, and offer them to callbacks that watch one."""
        self.measured |= metrics
        self.log_dict(metrics, logger=False)


def of_all_processes(mine: Any) -> list[Any]:
    """What each process gives, by rank."""
    if not torch.distributed.is_initialized():
        return [mine]
    everything: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everything, mine)
    return everything


def weight_groups(network: nn.Module, decay_all: bool) -> list[dict[str, Any]]:
    """What an optimizer takes: all weights, or biases and normalisation layers by themselves, without decay."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if decay_all:
        return [{"params": weights}]
    return [
        {"params": [weight for weight in weights if weight.ndim > 1]},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]


def schedule(
    scheduler: Callable[..., LRScheduler], optimizer: Optimizer, num_steps: int, monitor: str
) -> dict[str, Any]:
    """A schedule as Lightning takes it. Its class decides how it is stepped.

    A class that asks for the length of the training gets it, in steps, and is stepped after every step; others are
    stepped after every epoch. ReduceLROnPlateau is kept by Lightning and stepped by `Classifier`, before the epoch is
    saved: Lightning would do it after that, and a resumed run would miss it.
    """
    parameters = inspect.signature(scheduler).parameters
    for name in ("total_steps", "T_max"):
        if name in parameters:
            return {"scheduler": scheduler(optimizer, **{name: num_steps}), "interval": "step"}
    made = scheduler(optimizer)
    ours = {"monitor": monitor, "frequency": sys.maxsize} if isinstance(made, ReduceLROnPlateau) else {}
    return {"scheduler": made, "interval": "epoch"} | ours


class Sums:
    """Loss and number of correct predictions, summed over images on the device.

    With mixed labels a prediction counts as correct if it is the label with the largest share. The losses of batches
    are kept one by one until the end: so the sum does not depend on when somebody looked at it.
    """

    TOGETHER = 8  # batches that are looked at together: some kernels for all of them, instead of for each

    def __init__(self) -> None:
        self.losses: list[Tensor] = []  # of batches, each times its images: (S,) float32 each
        self.correct: list[Tensor] = []  # predictions of some batches together: (1,) int64 each
        self.count = 0  # images
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """loss: mean over the batch; logits: (B, num_classes); labels: (B,) int64 or (B, num_classes) float."""
        if self.waiting and len(self.waiting[0][2]) != len(labels):
            self.settle()
        self.waiting.append((loss.detach(), logits.detach(), labels))
        if len(self.waiting) == self.TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Add up the batches that wait for it."""
        if self.waiting:
            losses, logits, labels = zip(*self.waiting, strict=True)
            self.waiting = []
            self.add_batches(torch.stack(losses), torch.cat(logits), torch.cat(labels))

    def add_batches(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """As `add`, for several batches of one size: losses (S,), logits (S * B, num_classes), labels (S * B, ...)."""
        if labels.ndim == 2:
            labels = labels.argmax(1)
        self.losses.append(losses * (len(labels) // len(losses)))
        self.correct.append((logits.argmax(1) == labels).sum()[None])
        self.count += len(labels)

    def mean_loss(self) -> float:
        """So far, in this process; waits for the device."""
        self.settle()
        return torch.cat(self.losses).sum().item() / self.count if self.count else float("nan")

    def totals(self) -> Tensor:
        """Loss, correct predictions and images, in sum: (3,) float64."""
        self.settle()
        losses, correct = torch.cat(self.losses), torch.cat(self.correct)
        kind = torch.float32 if losses.device.type == "mps" else torch.float64
        loss = losses.to(kind).sum()
        return torch.stack((loss, correct.sum().to(kind), torch.full_like(loss, self.count)))

    def means(self, stage: str, trainer: Any) -> dict[str, float]:
        """{"train/loss": ..., "train/acc": ...} over the images of all processes."""
        loss, correct, count = trainer.strategy.reduce(self.totals(), reduce_op="sum").tolist()
        return {f"{stage}/loss": loss / count, f"{stage}/acc": correct / count}

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        losses = torch.cat(self.losses).cpu() if self.losses else torch.zeros(0)
        correct = int(torch.cat(self.correct).sum()) if self.correct else 0
        return {"losses": losses, "correct": correct, "count": self.count}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.losses, self.correct = [state["losses"].to(device)], [torch.tensor([state["correct"]], device=device)]
        self.count, self.waiting = state["count"], []
