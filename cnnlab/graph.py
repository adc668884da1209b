"""The training step as a CUDA graph: recorded once, replayed many times between two looks of Lightning.

A step of this network is some dozens of kernels of a few microseconds each. Started one by one they wait for Python,
and for Lightning's loop. The graph holds all of a step: the rows of the plan, by a counter on the device;
the batch; forward and backward; clipping; the optimizer; the sums of the metrics. `CHUNK` replays are one batch to
Lightning, whose counters are moved on by the rest, so that a checkpoint, a schedule or a resumed run cannot tell.

The optimizer's rate is read from the device as float32, and written there when the schedule has changed it; every
other number of the optimizer is part of the recording. A run with a graph is the run without, but for rounding: SGD
multiplies by that rate, and whitening after crops is done for one batch at a time.
"""

import inspect
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

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


def unsupported(trainer: Trainer, classifier: "Classifier", data: ImageData, added: Collection[str]) -> str:
    """Why this run's steps cannot be a graph; empty if they can.

    added: arguments of Lightning's Trainer that no file in conf/ has.
    """
    optimizer = classifier.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    cycle = inspect.signature(classifier.make_scheduler).parameters.get("cycle_momentum")
    looking = [
        name
        for name in ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
        if any(overrides(callback, name) for callback in cast(Any, trainer).callbacks)
    ]
    for case, reason in (
        (
            trainer.strategy.root_device.type != "cuda",
            f"it needs a GPU, and this run is on {trainer.strategy.root_device.type}",
        ),
        (not isinstance(trainer.strategy, SingleDeviceStrategy), "processes wait for each other in every step"),
        (data.resident != "device", f"resident={data.resident} gathers the images elsewhere"),
        (
            not isinstance(optimizer, OPTIMIZERS) or not optimizer.defaults["fused"],
            f"it needs SGD, Adam or AdamW with fused=true, and the optimizer is {type(optimizer).__name__}",
        ),
        (optimizer.defaults.get("dampening"), "optim.dampening makes the first step another one"),
        (cycle and cycle.default, "sched.cycle_momentum=true changes the momentum, which is part of the recording"),
        (trainer.precision_plugin.precision == "16-mixed", "float16 looks at gradients before it uses them"),
        (added, f"trainer.{', trainer.'.join(added)} may want to look between two steps"),
        (looking, f"a callback has {', '.join(looking)}, which is within a step"),
    ):
        if case:
            return reason
    return ""


def overrides(callback: Callback, name: str) -> bool:
    return getattr(type(callback), name) is not getattr(Callback, name)


def looks_at_every_step(callback: Callback) -> bool:
    return overrides(callback, "on_train_batch_start") or overrides(callback, "on_train_batch_end")


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
        classifier, trainer = self.classifier, self.classifier.trainer
        optimizer = trainer.optimizers[0]
        with torch.autocast(self.data.device.type, enabled=False):  # which is for the network alone
            rows = self.number * self.data.batch_size + self.places
            images, labels = self.data.training_batch({key: values[rows] for key, values in self.plan.items()})
            with trainer.precision_plugin.forward_context():
                loss = classifier.loss_of(images, labels)
            optimizer.zero_grad()
            loss.backward()
            classifier.configure_gradient_clipping(optimizer, trainer.gradient_clip_val)
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
