"""Metrics: accuracy, and how the loss and any torchmetrics are accumulated over the batches of an epoch.

Any torchmetrics class that computes one number can be an option. `update(outputs, targets)` is given the network's
outputs (B, K) float32, and as targets

    multiclass    (B,) int64, the class; for mixed labels the one with the largest share
    multilabel    (B, K) int64, 0 or 1
    regression    (B, K) float32

Those of torchmetrics.classification are given log-probabilities of classes, or probabilities of labels, see
`unmistakable`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from cnnlab.config.options import UserError


class Accuracy(Metric):
    """The share of images whose class has the largest output."""

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
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


class EpochMetrics:
    """Loss and metrics over the batches of an epoch, on the device.

    Metrics are updated with several batches at a time, which saves kernel launches. The losses of all batches are kept
    until the end, so that their sum does not depend on when it is read.

    Args:
        metrics: by name; reset here, and not to be used elsewhere.
        task: what the targets are, see cnnlab.config.shape.Shape.
        device: where the batches are.
    """

    TOGETHER = 8  # batches

    def __init__(self, metrics: Mapping[str, Metric], task: str, device: torch.device):
        self.metrics, self.task = metrics, task
        self.guessing = {
            name
            for name, metric in metrics.items()
            if any(kind.__module__.startswith("torchmetrics.classification.") for kind in type(metric).__mro__)
        }
        for metric in metrics.values():
            metric.to(device).reset()
        self.losses: list[Tensor] = []  # (S,) float32 each: loss of S batches, times the size of a batch
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
        """Add the batches that are waiting."""
        if self.waiting:
            losses, outputs, targets = zip(*self.waiting, strict=True)
            self.waiting = []
            self.add_batches(torch.stack(losses), torch.cat(outputs), torch.cat(targets))

    def add_batches(self, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """As `add`, for several batches of one size: losses (S,), outputs (S * B, K), targets (S * B, ...)."""
        self.losses.append(losses * (len(targets) // len(losses)))
        self.count += len(targets)
        outputs = outputs.to(torch.float32, copy=True)  # metrics may keep them, and a CUDA graph overwrites its own
        if self.task == "multiclass" and targets.ndim == 2:
            targets = targets.argmax(1)
        elif self.task == "multilabel":
            targets = targets.round().long()
        certain = unmistakable(outputs, self.task) if self.guessing else outputs
        for name, metric in self.metrics.items():
            metric.update(certain if name in self.guessing else outputs, targets)

    def mean_loss(self) -> float:
        """The mean loss so far, in this process; waits for the device."""
        self.settle()
        return torch.cat(self.losses).sum().item() / self.count if self.count else float("nan")

    def totals(self) -> Tensor:
        """The sum of losses and the number of images: (2,) float64."""
        self.settle()
        losses = torch.cat(self.losses)
        loss = losses.to(torch.float32 if losses.device.type == "mps" else torch.float64).sum()
        return torch.stack((loss, torch.full_like(loss, self.count)))

    def compute(self, strategy: Any = None) -> dict[str, float]:
        """{"loss": ..., "acc": ...} over the images of all processes of a Lightning strategy."""
        totals = self.totals()
        loss, count = (strategy.reduce(totals, reduce_op="sum") if strategy else totals).tolist()
        return {"loss": loss / count} | {name: scalar(name, metric) for name, metric in self.metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        losses = torch.cat(self.losses).cpu() if self.losses else torch.zeros(0)
        return {"losses": losses, "count": self.count, "metrics": states_of(self.metrics)}

    def load_state_dicts(self, states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Continue from the state of one process, or from those of several together. Raises: UserError."""
        self.losses, self.waiting = [torch.cat([torch.zeros(0), *(state["losses"] for state in states)]).to(device)], []
        self.count = sum(state["count"] for state in states)
        restore(self.metrics, [state["metrics"] for state in states], device)


def unmistakable(outputs: Tensor, task: str) -> Tensor:
    """Outputs (B, K) for torchmetrics, which takes logits for probabilities if all of an update are from 0 to 1.

    Log-probabilities of classes are logits with the same softmax, and some are below 0.
    """
    if task == "multilabel":
        return outputs.sigmoid()
    return outputs.log_softmax(1) if task == "multiclass" else outputs


def states_of(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """The states of metrics by name, except those that have not been updated."""
    found = {}
    for name, metric in metrics.items():
        parts = [part for part in metric.modules() if isinstance(part, Metric)]
        if any(part.update_called for part in parts):
            before = [dict(part._persistent) for part in parts]
            for part in parts:
                part.persistent(True)
            found[name] = metric.state_dict()
            for part, kept in zip(parts, before, strict=True):
                part._persistent = kept
    return found


def restore(metrics: Mapping[str, Metric], states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Continue metrics from what `states_of` returned in one process, or in several. Raises: UserError."""
    for name, metric in metrics.items():
        metric.cpu()
        for place, state in enumerate(state[name] for state in states if name in state):
            try:
                metric.merge_state(state) if place else metric.load_state_dict(state)
            except RuntimeError as error:
                raise UserError(
                    f"The states of {name} in several processes cannot be merged ({error}). Resume with the number of "
                    f"processes that the run began with."
                ) from error
            for part in metric.modules():
                if isinstance(part, Metric):
                    part._update_count += 1  # otherwise `compute` warns that there was no update
        metric.to(device)


def scalar(name: str, metric: Metric) -> float:
    """The value of a metric. Raises: UserError if it is not one number."""
    value = metric.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"{value.numel()} numbers" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UserError(f"metrics.{name} computes {what} instead of one number. Average them, e.g. with average=macro.")
    return value.item()


def try_metric(name: str, metric: Metric, outputs: Tensor, targets: Tensor) -> None:
    """Raises: UserError if a metric is not one number, or another one if the images are divided into two batches."""
    num, found = len(outputs), []
    for sizes in ([num], [num // 3, num - num // 3]):
        for batch in zip(outputs.split(sizes), targets.split(sizes), strict=True):
            metric.update(*batch)
        found.append(scalar(name, metric))
        metric.reset()
    if all(map(math.isfinite, found)) and not math.isclose(*found, rel_tol=1e-3, abs_tol=1e-6):
        raise UserError(
            f"metrics.{name} depends on how images are divided into batches, or on chance: it is {found[0]:.4g} for "
            f"{num} random images, and {found[1]:.4g} for the same in two batches. Use one that adds up over images."
        )
