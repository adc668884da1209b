"""Training steps as CUDA graphs: recorded once, then replayed, several steps per iteration of Lightning's loop.

A step of a small network is some dozens of kernels of a few microseconds each. Launched one by one, they wait for
Python and Lightning's loop. A graph contains several whole steps: forward and backward pass, clipping, the optimizer,
and what callbacks do after each step. Their batches are made in one pass before, and their losses and logits are
accumulated after it. Lightning sees one batch; its counters are advanced by the other steps, so that checkpoints,
schedules and resumed runs are the same.

Every step reads its learning rates from the device, where they are written before the replay; every other number of the
optimizer is part of the recording. Results are those of a run without a graph, up to rounding: the rates on the device
are float32.
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

WARM_UP = 3  # steps, undone afterwards, in which libraries choose their algorithms and optimizers create their state


def capture(work: Callable[[], None]) -> Callable[[], None]:
    """Record what `work` does on the GPU; return a function that replays it."""
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()  # freeing a tensor can abort the recording
    try:
        with torch.cuda.graph(graph):
            work()
    finally:
        gc.enable()
    return graph.replay


def graphed(kind: type[LightningModule]) -> type[LightningModule]:
    """A subclass whose training steps are replayed."""
    return type(f"Graphed{kind.__name__}", (GraphedSteps, kind), {})


class GraphedSteps(LightningModule):
    """Replays the training steps of another class; a batch is that of one or several steps.

    That class has `train_loss(images, targets)`, which returns the loss, (), and the outputs (B, K), and `sums`, whose
    `add_batches` takes them for several steps. If recording fails, the steps are run one by one, with a warning.
    """

    train_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    sums: Any

    calls_after_step = True  # callbacks must not call their `after_step` themselves

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.replays: dict[int, Callable[[], None]] = {}  # by number of steps
        self.step_buffers: dict[str, Tensor] = {}  # what recorded steps read and write
        self.rates_written: list[list[float]] = []
        self.was_recorded = self.recording_failed = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Run one or several whole steps; return the loss of the last one, (), on the device."""
        images, targets = batch
        trainer, [optimizer] = self.trainer, self.trainer.optimizers
        num = len(targets) // data_of(trainer).batch_size
        settings = [dict(group) for group in optimizer.param_groups]
        last_rates = rates_of(optimizer)
        try:
            for group in optimizer.param_groups:
                if "capturable" in group:
                    group["capturable"] = True
            if not self.step_buffers:
                self.prepare(images, targets, last_rates)  # first, as schedules expect an optimizer that has stepped
            rates = [last_rates]
            for _ in range(num - 1):
                step_schedules(trainer)
                rates.append(rates_of(optimizer))
            last_rates = rates[-1]
            self.step_buffers["images"][: len(images)].copy_(images)
            self.step_buffers["targets"][: len(targets)].copy_(targets)
            self.write_rates(rates)
            if num not in self.replays:
                self.replays[num] = self.recorded(num)
            self.replays[num]()
        finally:
            for group, before, rate in zip(optimizer.param_groups, settings, last_rates, strict=True):
                group |= before | {"lr": rate}
        advance_counters(trainer, num - 1)
        losses = self.step_buffers["losses"][:num]
        self.sums.add_batches(losses, self.step_buffers["logits"][: len(targets)], targets)
        return losses[-1]

    def backward(self, loss: Tensor, *_: Any) -> None:
        """Part of the training step."""

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Part of the training step."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        if optimizer_closure is not None:
            optimizer_closure()  # the training step, which includes everything else

    def release(self) -> None:
        super().release()  # type: ignore[misc]  # of the other base class, see `graphed`
        self.replays, self.step_buffers, self.rates_written = {}, {}, []

    # ---------------------------------------------------------------------------------------------- recording

    def steps(self, num: int, callbacks: Sequence[Callback]) -> None:
        """Run `num` whole steps, without reading any result."""
        trainer, [optimizer] = self.trainer, self.trainer.optimizers
        memory, batch_size = self.step_buffers, data_of(trainer).batch_size
        for step in range(num):
            rows = slice(step * batch_size, (step + 1) * batch_size)
            for group, rate in zip(optimizer.param_groups, memory["rates"][step], strict=True):
                group["lr"] = rate
            with torch.autocast(self.device.type, enabled=False):  # autocast is for the network only
                with trainer.precision_plugin.forward_context():
                    loss, logits = self.train_loss(memory["images"][rows], memory["targets"][rows])
                optimizer.zero_grad()
                loss.backward()
                self.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
                optimizer.step()
                if "logits" not in memory:  # the first step of the warm-up
                    shape = len(memory["targets"]), *logits.shape[1:]
                    memory["logits"] = torch.zeros(shape, dtype=logits.dtype, device=logits.device)
                memory["losses"][step].copy_(loss.detach())
                memory["logits"][rows].copy_(logits.detach())
                for callback in callbacks:
                    cast(Any, callback).after_step(self)

    def prepare(self, images: Tensor, targets: Tensor, rates: list[float]) -> None:
        """Allocate the buffers, run some steps for warm-up, and undo them."""
        trainer, [optimizer], device = self.trainer, self.trainer.optimizers, self.device
        data = data_of(trainer)
        num_images = data.steps_per_batch * data.batch_size
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        rows = images.permute(0, 2, 3, 1)  # the order in memory
        self.step_buffers = {
            "images": rows.new_zeros(num_images, *rows.shape[1:]).permute(0, 3, 1, 2),
            "targets": targets.new_zeros(num_images, *targets.shape[1:]),
            "losses": torch.zeros(data.steps_per_batch, device=device),
            "rates": torch.zeros(data.steps_per_batch, len(rates), device=device, dtype=dtype),
        }
        self.rates_written = [[]] * data.steps_per_batch
        self.step_buffers["images"][: len(images)].copy_(images)
        self.step_buffers["targets"][: len(targets)].copy_(targets)
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
            for place, values in optimizer_tensors(optimizer).items():  # state that is created by a step begins as 0
                values.copy_(states_before[place]) if place in states_before else values.zero_()
        if device.type == "cpu":
            torch.set_rng_state(generator)
        else:
            torch.cuda.set_rng_state(generator, device)

    def warm_up(self) -> None:
        for _ in range(WARM_UP):
            self.steps(1, callbacks=[])

    def write_rates(self, rates: list[list[float]]) -> None:
        """Write the learning rates of steps, by parameter group, to where the steps read them."""
        if self.rates_written[: len(rates)] != rates:
            self.rates_written[: len(rates)] = rates
            memory = self.step_buffers["rates"]
            memory[: len(rates)].copy_(upload(torch.tensor(rates, dtype=memory.dtype), memory.device))

    def recorded(self, num: int) -> Callable[[], None]:
        """A function that runs `num` steps: a recording, or, if recording failed, the steps themselves."""
        callbacks = [callback for callback in cast(Any, self.trainer).callbacks if hasattr(callback, "after_step")]
        work = partial(self.steps, num, callbacks)
        if not self.recording_failed:
            try:
                self.trainer.optimizers[0].zero_grad()  # a recording allocates its own gradients
                replay = capture(work)
                self.was_recorded = True
                return replay
            except RuntimeError as error:
                self.recording_failed = True
                log.warning(
                    f"No CUDA graph, steps are run one by one: recording failed ({str(error).splitlines()[0]})."
                )
        return work


def rates_of(optimizer: Optimizer) -> list[float]:
    """The learning rates, by parameter group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def optimizer_tensors(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    """The tensors in an optimizer's state, by number of the weight and name."""
    return {
        (number, name): values
        for number, state in enumerate(optimizer.state.values())
        for name, values in state.items()
        if isinstance(values, Tensor)
    }


def on_side_stream(work: Callable[[], Any], device: torch.device) -> None:
    """Run work on a separate stream, as torch requires before a recording."""
    if device.type != "cuda":
        work()
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream(device).wait_stream(stream)


def step_schedules(trainer: Trainer) -> None:
    """Step the schedules as Lightning does between two steps."""
    for config in trainer.lr_scheduler_configs:
        if config.interval == "step" and not isinstance(config.scheduler, ReduceLROnPlateau):  # which needs a metric
            config.scheduler.step()
            trainer.fit_loop.epoch_loop.scheduler_progress.increment_by(1)


def advance_counters(trainer: Trainer, steps: int) -> None:
    """Advance Lightning's counters by steps that it has not seen."""
    loop = trainer.fit_loop.epoch_loop
    loop.batch_progress.increment_by(steps)
    optimizer_progress = loop.automatic_optimization.optim_progress.optimizer
    optimizer_progress.step.increment_by(steps)
    optimizer_progress.zero_grad.increment_by(steps)
    loop._batches_that_stepped += steps
