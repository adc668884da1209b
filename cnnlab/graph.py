"""The training step as a CUDA graph: recorded once, replayed many times between two looks of Lightning.

A step of this network is some dozens of kernels of a few microseconds each. Started one by one they wait for Python,
and Lightning's loop takes 0.4 ms more. The graph holds all of a step: the rows of the plan, by a counter on the device;
the batch; forward and backward; clipping; the optimizer; the sums of the metrics. `CHUNK` replays are one batch to
Lightning, whose counters are moved on by the rest, so that a checkpoint, a schedule or a resumed run cannot tell.

The optimizer's rate is read from the device, and written there when the schedule has changed it; every other number of
the optimizer is part of the recording.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from cnnlab.data.module import ImageData
from cnnlab.data.plan import Plan

if TYPE_CHECKING:
    from cnnlab.classifier import Classifier

CHUNK = 32  # steps; a signal is noticed after so many
WARM_UP = 3  # steps, undone afterwards: libraries choose their algorithms, optimizers make their state
OPTIMIZERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """A function that replays what `step` does on the GPU."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def unsupported(trainer: Trainer, classifier: "Classifier", data: ImageData) -> str:
    """Why this run's steps cannot be a graph; empty if they can."""
    optimizer = classifier.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    if trainer.strategy.root_device.type != "cuda":
        return f"it needs a GPU, and this run is on {trainer.strategy.root_device.type}"
    if trainer.world_size > 1:
        return "several processes wait for each other in every step"
    if data.resident != "device":
        return f"resident={data.resident} gathers the images elsewhere"
    if not isinstance(optimizer, OPTIMIZERS) or not optimizer.defaults["fused"]:
        return f"it needs SGD, Adam or AdamW with fused=true, and the optimizer is {type(optimizer).__name__}"
    if getattr(classifier.make_scheduler, "keywords", {}).get("cycle_momentum"):
        return "sched.cycle_momentum=true changes the momentum, which is part of the recording"
    if trainer.precision_plugin.precision == "16-mixed":
        return "float16 looks at every gradient before it is used; bf16-mixed does not"
    return ""


class StepGraph:
    """Does the steps of an epoch by replaying one.

    Args:
        classifier, data: what a step is made of.
        chunk: how many steps are one batch to Lightning.
    """

    def __init__(self, classifier: "Classifier", data: ImageData, chunk: int):
        self.classifier, self.data, self.chunk = classifier, data, chunk
        self.plan: Plan = {}
        self.replay: Callable[[], None] | None = None
        self.rate_written: dict[Tensor, float] = {}

    def load(self, plan: Plan) -> None:
        """Put the plan of the next epoch, on the device, where the recorded step reads it."""
        if not self.plan:
            self.plan = {key: rows.clone() for key, rows in plan.items()}
        for key, rows in plan.items():
            self.plan[key].copy_(rows)

    def chunks(self, first: int, stop: int) -> list[slice]:
        """The steps of an epoch from `first` to before `stop`, as Lightning's batches."""
        return [slice(start, min(start + self.chunk, stop)) for start in range(first, stop, self.chunk)]

    def __call__(self, steps: slice) -> Tensor:
        """Do these steps of the epoch; return the loss of the last one, (), on the device."""
        trainer = self.classifier.trainer
        optimizer = trainer.optimizers[0]
        if self.replay is None:
            self.replay = self.recorded(optimizer)
        self.number.fill_(steps.start)
        for step in range(steps.start, steps.stop):
            for rate, group in zip(self.rates, optimizer.param_groups, strict=True):
                if self.rate_written.get(rate) != group["lr"]:
                    self.rate_written[rate] = group["lr"]
                    rate.fill_(group["lr"])
            self.replay()
            if step + 1 < steps.stop:
                step_schedules(trainer)
        count_more(trainer, steps.stop - steps.start - 1)
        return self.loss

    def step(self) -> None:
        """All of one step, without a look at what it computes."""
        classifier, optimizer = self.classifier, self.classifier.trainer.optimizers[0]
        rows = self.number * self.data.batch_size + self.places
        images, labels = self.data.training_batch({key: values[rows] for key, values in self.plan.items()})
        with classifier.trainer.precision_plugin.forward_context():
            loss = classifier.loss_of(images, labels)
        optimizer.zero_grad()
        loss.backward()
        classifier.configure_gradient_clipping(optimizer, classifier.trainer.gradient_clip_val)
        optimizer.step()
        self.loss.copy_(loss.detach())
        self.number += 1

    def warm_up(self) -> None:
        for _ in range(WARM_UP):
            self.number.zero_()
            self.step()

    def recorded(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Warm up, undo it, and record."""
        device, halo, batch_size = self.data.device, len(self.data.mixers), self.data.batch_size
        # a mixer's partners come first, as in cnnlab.data.plan.batch_of
        self.places = torch.cat((torch.arange(batch_size - halo, batch_size), torch.arange(batch_size))).to(device)
        self.number = torch.zeros((), dtype=torch.int64, device=device)
        self.loss = torch.zeros((), device=device)
        self.rates = [torch.tensor(float(group["lr"]), device=device) for group in optimizer.param_groups]
        settings = [dict(group) for group in optimizer.param_groups]
        for rate, group in zip(self.rates, optimizer.param_groups, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True

        network, sums = self.classifier.network, self.classifier.sums.values
        held = [*network.state_dict().values(), sums, self.number]
        before, states = [values.clone() for values in held], optimizer_tensors(optimizer)
        states_before = {place: values.clone() for place, values in states.items()}
        generator = torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)
        on_side_stream(self.warm_up, device)
        with torch.no_grad():
            for values, value in zip(held, before, strict=True):
                values.copy_(value)
            for place, values in optimizer_tensors(optimizer).items():  # what the first step has made begins with zeros
                values.copy_(states_before[place]) if place in states_before else values.zero_()
        if device.type == "cpu":
            torch.set_rng_state(generator)
        else:
            torch.cuda.set_rng_state(generator, device)

        optimizer.zero_grad()  # the recording has gradients of its own
        replay = capture(self.step)
        for group, as_set in zip(optimizer.param_groups, settings, strict=True):
            group |= as_set
        return replay


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], Tensor]:
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
        if config.interval == "step":
            config.scheduler.step()  # type: ignore[call-arg]
            trainer.fit_loop.epoch_loop.scheduler_progress.increment_by(1)


def count_more(trainer: Trainer, steps: int) -> None:
    """Move Lightning's counters on by steps that it has not seen."""
    loop = trainer.fit_loop.epoch_loop
    loop.batch_progress.increment_by(steps)
    optimizer_progress = loop.automatic_optimization.optim_progress.optimizer
    optimizer_progress.step.increment_by(steps)
    optimizer_progress.zero_grad.increment_by(steps)
    loop._batches_that_stepped += steps


def looks_at_every_step(callback: Callback) -> bool:
    return type(callback).on_train_batch_end is not Callback.on_train_batch_end
