"""Metrics: accuracy, and how the loss and any torchmetrics are kept over the batches of an epoch.

Every torchmetrics class whose result is one number is an option: `update(outputs, targets)` is given the network's
outputs (B, K) float32 and targets that are int64: a class (B,), mixed ones by their largest share, or 0 and 1 (B, K)
for labels; or numbers (B, K) float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from cnnlab.config.options import UserError


class Accuracy(Metric):
    """The share of images whose largest output is that of their class."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    tasks = ("multiclass",)

    correct: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """outputs: (B, num_classes); targets: (B,) int64."""
        self.correct += (outputs.argmax(1) == targets).sum()
        self.count += len(targets)

    def compute(self) -> Tensor:
        """() float64, on the CPU."""
        return torch.tensor(self.correct.item() / self.count.item(), dtype=torch.float64)


def as_metrics_take_them(targets: Tensor, task: str) -> Tensor:
    """Targets for `Metric.update`, see above."""
    if task == "multiclass":
        return targets.argmax(1) if targets.ndim == 2 else targets
    return targets.round().long() if task == "multilabel" else targets


class EpochMetrics:
    """Loss and metrics over the batches of an epoch, on the device.

    Batches are looked at several at a time: some kernels for all of them, instead of for each. The losses of batches
    are kept one by one until the end: so their sum does not depend on when somebody looked at it.

    Args:
        metrics: by name; used here only, and reset.
        task: what the targets are, see cnnlab.config.shape.Shape.
        device: where the batches are.
    """

    TOGETHER = 8  # batches

    def __init__(self, metrics: Mapping[str, Metric], task: str, device: torch.device):
        self.metrics, self.task = metrics, task
        for metric in metrics.values():
            metric.to(device).reset()
        self.losses: list[Tensor] = []  # of batches, each times its images: (S,) float32 each
        self.count = 0  # images
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """loss: mean over the batch; outputs: (B, K); targets: (B,) int64 or (B, K) float."""
        if self.waiting and len(self.waiting[0][2]) != len(targets):
            self.settle()
        self.waiting.append((loss.detach(), outputs.detach(), targets))
        if len(self.waiting) == self.TOGETHER:
            self.settle()

    def settle(self) -> None:
        """Add up the batches that wait for it."""
        if self.waiting:
            losses, outputs, targets = zip(*self.waiting, strict=True)
            self.waiting = []
            self.add_batches(torch.stack(losses), torch.cat(outputs), torch.cat(targets))

    def add_batches(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """As `add`, for several batches of one size: losses (S,), outputs (S * B, K), targets (S * B, ...)."""
        self.losses.append(losses * (len(targets) // len(losses)))
        self.count += len(targets)
        outputs, targets = outputs.float(), as_metrics_take_them(targets, self.task)
        for metric in self.metrics.values():
            metric.update(outputs, targets)

    def mean_loss(self) -> float:
        """So far, in this process; waits for the device."""
        self.settle()
        return torch.cat(self.losses).sum().item() / self.count if self.count else float("nan")

    def totals(self) -> Tensor:
        """Loss and images, in sum: (2,) float64."""
        self.settle()
        losses = torch.cat(self.losses)
        loss = losses.to(torch.float32 if losses.device.type == "mps" else torch.float64).sum()
        return torch.stack((loss, torch.full_like(loss, self.count)))

    def compute(self, strategy: Any = None) -> dict[str, float]:
        """{"loss": ..., "acc": ...} over the images of all processes, those of a Lightning strategy."""
        totals = self.totals()
        loss, count = (strategy.reduce(totals, reduce_op="sum") if strategy else totals).tolist()
        return {"loss": loss / count} | {name: number(name, metric) for name, metric in self.metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        losses = torch.cat(self.losses).cpu() if self.losses else torch.zeros(0)
        return {"losses": losses, "count": self.count, "metrics": states_of(self.metrics)}

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Go on with what one process has counted, or several have together. Raises: UserError."""
        self.losses, self.waiting = [torch.cat([torch.zeros(0), *(state["losses"] for state in states)]).to(device)], []
        self.count = sum(state["count"] for state in states)
        restore(self.metrics, [state["metrics"] for state in states], device)


def states_of(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """What metrics have counted, by name; those that have seen nothing are left out."""
    for metric in metrics.values():
        metric.persistent(True)
    return {name: metric.state_dict() for name, metric in metrics.items() if metric.update_called}


def restore(metrics: Mapping[str, Metric], states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Let metrics go on with what `states_of` gave in one process, or in several. Raises: UserError."""
    for name, metric in metrics.items():
        metric.cpu()
        for place, state in enumerate(state[name] for state in states if name in state):
            try:
                metric.merge_state(state) if place else metric.load_state_dict(state)
            except RuntimeError as error:
                raise UserError(
                    f"What {name} has counted in several processes cannot be put together ({error}). Go on with as "
                    f"many processes as the run began with."
                ) from error
            metric._update_count += 1  # or it would warn that it has seen nothing
        metric.to(device)


def number(name: str, metric: Metric) -> float:
    """What a metric has come to. Raises: UserError if it is not one number."""
    value = metric.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"{value.numel()} numbers" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UserError(f"metrics.{name} gives {what}, and a metric here is one. Average it, as with average=macro.")
    return value.item()
