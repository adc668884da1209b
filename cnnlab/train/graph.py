"""Training steps as CUDA graphs: recorded once, replayed many times between two looks of Lightning.

A step of this network is some dozens of kernels of a few microseconds each. Started one by one they wait for Python,
and for Lightning's loop. A graph holds all of several steps, one after the other: forward and backward, clipping, the
optimizer, and what callbacks do after each step. Their batches are made in one pass before, and their losses and
logits are added up after it. To Lightning they are one batch; its counters are moved on by the rest, so that a
checkpoint, a schedule or a resumed run cannot tell.

Every step reads its learning rates from the device, where they are written before; every other number of the optimizer
is part of the recording. A run with a graph is the run without, but for rounding: the rates on the device are float32.
"""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cnnlab.data.pipeline import data_of
from cnnlab.data.resident import upload
from cnnlab.runs.log import log

WARM_UP = 3  # steps, undone afterwards: libraries choose their algorithms, optimizers make their state


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """A function that replays what `work` does on the GPU."""
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()  # a tensor that is let go of while a graph is recorded can end the recording
    try:
        with torch.cuda.graph(graph):
            work()
    finally:
        gc.enable()
    return graph.replay


def graphed(kind: type[LightningModule]) -> type[LightningModule]:
    """A class that trains as another one does, with steps that are replayed."""
    return type(f"Graphed{kind.__name__}", (GraphedSteps, kind), {})


class GraphedSteps(LightningModule):
    """Does the training steps of another class by replaying recorded ones; a batch is that of one step or of several.

    That class offers `train_loss(images, targets)`, which gives the loss, (), and the outputs (B, K), and `sums`, whose
    `add_batches` takes them for several steps. Where a recording fails, it says so and does the steps one by one.
    """

    train_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    sums: Any

    calls_after_step = True  # and not Lightning, by way of its callbacks

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.replays: dict[int, Callable[[], None]] = {}  # by number of steps
        self.buffers_of_steps: dict[str, Tensor] = {}  # what recorded steps read and write
        self.rates_written: list[list[float]] = []
        self.was_recorded = self.recording_failed = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Do all of some steps; return the loss of the last one, (), on the device."""
        images, targets = batch
        trainer, [optimizer] = self.trainer, self.trainer.optimizers
        num = len(targets) // data_of(trainer).batch_size
        settings = [dict(group) for group in optimizer.param_groups]
        at_last = rates_of(optimizer)
        try:
            for group in optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = True
            if not self.buffers_of_steps:
                self.prepare(images, targets, at_last)  # before the schedules, which want an optimizer that has stepped
            rates = [at_last]
            for _ in range(num - 1):
                step_schedules(trainer)
                rates.append(rates_of(optimizer))
            at_last = rates[-1]
            self.buffers_of_steps["images"][: len(images)].copy_(images)
            self.buffers_of_steps["targets"][: len(targets)].copy_(targets)
            self.write_rates(rates)
            if num not in self.replays:
                self.replays[num] = self.recorded(num)
            self.replays[num]()
        finally:
            for group, as_set, rate in zip(optimizer.param_groups, settings, at_last, strict=True):
                group |= as_set | {"lr": rate}
        count_more(trainer, num - 1)
        losses = self.buffers_of_steps["losses"][:num]
        self.sums.add_batches(losses, self.buffers_of_steps["logits"][: len(targets)], targets)
        return losses[-1]

    def backward(self, loss: Tensor, *_: Any) -> None:
        """The training step has done it."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """The training step has done it."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        if optimizer_closure is not None:
            optimizer_closure()  # the training step, which is all of it

    def release(self) -> None:
        super().release()  # type: ignore[misc]  # it is of the class beside this one, see `graphed`
        self.replays, self.buffers_of_steps, self.rates_written = {}, {}, []

    # ---------------------------------------------------------------------------------------------- the recording

    def steps(self, num: int, callbacks: Sequence[Callback]) -> None:
        """All of `num` steps, without a look at what they compute."""
        trainer, [optimizer] = self.trainer, self.trainer.optimizers
        memory, batch_size = self.buffers_of_steps, data_of(trainer).batch_size
        for step in range(num):
            rows = slice(step * batch_size, (step + 1) * batch_size)
            for group, rate in zip(optimizer.param_groups, memory["rates"][step], strict=True):
                group["lr"] = rate
            with torch.autocast(self.device.type, enabled=False):  # which is for the network alone
                with trainer.precision_plugin.forward_context():
                    loss, logits = self.train_loss(memory["images"][rows], memory["targets"][rows])
                optimizer.zero_grad()
                loss.backward()
                self.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
                optimizer.step()
                if "logits" not in memory:  # in the first step of the warm-up
                    shape = len(memory["targets"]), *logits.shape[1:]
                    memory["logits"] = torch.zeros(shape, dtype=logits.dtype, device=logits.device)
                memory["losses"][step].copy_(loss.detach())
                memory["logits"][rows].copy_(logits.detach())
                for callback in callbacks:
                    cast(Any, callback).after_step(self)

    def prepare(self, images: Tensor, targets: Tensor, rates: list[float]) -> None:
        """Make the memory of the steps, do some of them, and undo them."""
        trainer, [optimizer], device = self.trainer, self.trainer.optimizers, self.device
        data = data_of(trainer)
        most = data.steps_per_batch * data.batch_size  # images
        kind = torch.float32 if device.type == "cuda" else torch.float64
        rows = images.permute(0, 2, 3, 1)  # the order in which they lie in memory
        self.buffers_of_steps = {
            "images": rows.new_zeros(most, *rows.shape[1:]).permute(0, 3, 1, 2),
            "targets": targets.new_zeros(most, *targets.shape[1:]),
            "losses": torch.zeros(data.steps_per_batch, device=device),
            "rates": torch.zeros(data.steps_per_batch, len(rates), device=device, dtype=kind),
        }
        self.rates_written = [[]] * data.steps_per_batch
        self.buffers_of_steps["images"][: len(images)].copy_(images)
        self.buffers_of_steps["targets"][: len(targets)].copy_(targets)
        self.write_rates([rates])

        held, states = list(self.state_dict().values()), optimizer_tensors(optimizer)
        before, states_before = [values.clone() for values in held], {place: s.clone() for place, s in states.items()}
        generator = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
        on_side_stream(self.warm_up, device)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        with torch.no_grad():
            for values, value in zip(held, before, strict=True):
                values.copy_(value)
            for place, values in optimizer_tensors(optimizer).items():  # what the first step has made begins with zeros
                values.copy_(states_before[place]) if place in states_before else values.zero_()
        if device.type == "cpu":
            torch.set_rng_state(generator)
        else:
            torch.cuda.set_rng_state(generator, device)

    def warm_up(self) -> None:
        for _ in range(WARM_UP):
            self.steps(1, callbacks=[])

    def write_rates(self, rates: list[list[float]]) -> None:
        """Put the learning rates of steps, by parameter group, where the steps read them."""
        if self.rates_written[: len(rates)] != rates:
            self.rates_written[: len(rates)] = rates
            memory = self.buffers_of_steps["rates"]
            memory[: len(rates)].copy_(upload(torch.tensor(rates, dtype=memory.dtype), memory.device))

    def recorded(self, num: int) -> Callable[[], None]:
        """What does `num` steps: a recording, or the steps themselves."""
        callbacks = [callback for callback in cast(Any, self.trainer).callbacks if hasattr(callback, "after_step")]
        work = partial(self.steps, num, callbacks)
        if not self.recording_failed:
            try:
                self.trainer.optimizers[0].zero_grad()  # a recording has gradients of its own
                replay = capture(work)
                self.was_recorded = True
                return replay
            except RuntimeError as error:
                self.recording_failed = True
                log.warning(
                    f"No CUDA graph, steps are done one by one: recording failed ({str(error).splitlines()[0]})."
                )
        return work


def rates_of(optimizer: Optimizer) -> list[float]:
    """The learning rates, by parameter group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def optimizer_tensors(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    """An optimizer's state by weight and name."""
    return {
        (number, name): values
        for number, state in enumerate(optimizer.state.values())
        for name, values in state.items()
        if isinstance(values, Tensor)
    }


def on_side_stream(work: Callable[[], Any], device: torch.device) -> None:
    """Work on a stream of its own, as torch asks for before a recording."""
    if device.type != "cuda":
        work()
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream(device).wait_stream(stream)


def step_schedules(trainer: Trainer) -> None:
    """What Lightning does between two steps."""
    for config in trainer.lr_scheduler_configs:
        if config.interval == "step" and not isinstance(config.scheduler, ReduceLROnPlateau):  # that wants a metric
            config.scheduler.step()
            trainer.fit_loop.epoch_loop.scheduler_progress.increment_by(1)


def count_more(trainer: Trainer, steps: int) -> None:
    """Move Lightning's counters on by steps that it has not seen."""
    loop = trainer.fit_loop.epoch_loop
    loop.batch_progress.increment_by(steps)
    optimizer_progress = loop.automatic_optimization.optim_progress.optimizer
    optimizer_progress.step.increment_by(steps)
    optimizer_progress.zero_grad.increment_by(steps)
    loop._batches_that_stepped += steps
