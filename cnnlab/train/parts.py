"""The parts of a run, made from its configuration and its data, in one place for all commands. Imports torch."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torchmetrics import Metric

from cnnlab.augment.base import Augmentation
from cnnlab.config.objects import filled, instantiate
from cnnlab.config.options import UserError, default_option, option_file
from cnnlab.config.shape import Shape
from cnnlab.config.values import plain, selection
from cnnlab.data.images import DataSet
from cnnlab.data.pipeline import ImageData
from cnnlab.metrics import try_metric
from cnnlab.networks import in_evaluation_mode
from cnnlab.train.refusals import misfits_as_user_errors
from cnnlab.train.weights import load_weights

# Options of train.yaml that are arguments of a module if it has them, with the values that have no effect.
MODULE_OPTIONS: dict[str, Any] = {
    "warmup_epochs": 0.0,
    "decay_all": True,
    "lr_scale": [],
    "test_flips": False,
    "test_shifts": 0,
    "compile": False,
}


@dataclass(frozen=True)
class Parts:
    """What is trained, and on which data.

    Attributes:
        data: the batches.
        network, metrics: as passed to the module; metrics by name.
        module: what Lightning trains.
        select_on: the metric that determines the best epoch, "val/acc".
        higher: whether higher values of it are better.
        loaded: the tensors of the network that are from `weights`.
    """

    data: ImageData
    network: nn.Module
    module: LightningModule
    metrics: Mapping[str, Metric]
    select_on: str
    higher: bool
    loaded: frozenset[str] = frozenset()

    @property
    def modes(self) -> dict[str, str]:
        """ "max" or "min" by the name of each metric, whichever is better; without metrics that do not know."""
        better = {name: metric.higher_is_better for name, metric in self.metrics.items()}
        return {name: "max" if higher else "min" for name, higher in better.items() if higher is not None}

    @property
    def bounds(self) -> dict[str, dict[str, float]]:
        """The smallest and largest possible value, "low" and "high", of each metric that states them."""
        ends = (("low", "plot_lower_bound"), ("high", "plot_upper_bound"))
        return {
            name: {end: float(bound) for end, stated in ends if (bound := getattr(metric, stated)) is not None}
            for name, metric in self.metrics.items()
        }

    def check_monitor(self, option: str, name: str, mode: str) -> None:
        """Raises: UserError if a metric is not logged, or mode, "max" or "min", is the wrong one for it.

        option: that names the metric, for messages.
        """
        held_out, measured = self.data.held_out, getattr(self.module, "measures", None)
        names = [f"{part}/{kind}" for part in ("train", held_out) for kind in measured or ()]
        if measured is not None and name not in names:
            why = " With val_fraction=0 nothing is held out." if held_out == "test" and name.startswith("val/") else ""
            raise UserError(f"{option}={name} is not measured.{why} Use one of {', '.join(names)}.")
        kind = name.partition("/")[2]
        better = "min" if kind.endswith("loss") else self.modes.get(kind, mode)
        if better != mode:
            side = "higher" if better == "max" else "lower"
            where = "select_mode" if option == "select_on" else "mode"
            given = f" with mode={mode}" * (where == "mode")
            raise UserError(f"{option}={name}{given}: {side} values are better. Use {where}={better}.")


def assemble(
    config: DictConfig,
    data: DataSet,
    extend: Callable[[type[LightningModule], Any, Any, ImageData], type[LightningModule]] | None = None,
) -> Parts:
    """The parts of a run.

    extend: returns a class to use for the module, given its class, the partial optimizer and schedule, and the batches.

    Raises: UserError for parts that do not fit together.
    """
    batches = make_data(config, data)
    network = make_network(config.model, batches.shape)
    loaded = load_weights(network, Path(config.weights)) if config.weights else frozenset[str]()
    metrics, loss = make_metrics(config.metrics, batches.shape), make_loss(config.loss, batches.shape)
    optimizer, scheduler = instantiate(config.optim), instantiate(config.sched)
    select_on, higher = selection(config)
    given = {
        "network": network,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "loss": loss,
        "metrics": metrics,
        "held_out": batches.held_out,
        "task": batches.shape.task,
        "monitor": select_on,
    }
    node = {key: value for key, value in filled(config.module, batches.shape.facts()).items() if key != "_target_"}
    kind: type[LightningModule] = instantiate({"_target_": config.module["_target_"], "_partial_": True}).func
    given |= plain(OmegaConf.masked_copy(config, list(MODULE_OPTIONS)))
    parameters = inspect.signature(kind).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    taken = {name: value for name, value in given.items() if takes_all or name in parameters}
    if metrics and "metrics" not in taken:
        raise UserError(
            f"metrics={'+'.join(metrics)}: {config.module['_target_']} takes no argument metrics. Use metrics=none and "
            f"a select_on that it logs itself, such as val/loss."
        )
    for name, neutral in MODULE_OPTIONS.items():
        if name not in taken and given[name] != neutral:
            raise UserError(f"{name}={given[name]}: {config.module['_target_']} takes no argument {name}.")
    for group, name in (("optim", "optimizer"), ("sched", "scheduler"), ("loss", "loss")):
        default, used = default_option(group), name in taken or (name == "loss" and batches.shape.task != "multiclass")
        if not used and plain(config[group]) != option_file(f"{group}/{default}"):
            raise UserError(f"{config.module['_target_']} takes no argument {name}. Use {group}={default}, unchanged.")
    if extend:
        kind = extend(kind, optimizer, scheduler, batches)
    with misfits_as_user_errors(f"Invalid arguments for {config.module['_target_']}"):
        module = kind(**taken, **node)
    if try_it := getattr(module, "try_it", None):
        try_it(batches.shape)
    if batches.mixers and batches.shape.task == "multiclass" and "loss" in taken:
        mixers, num = "+".join(batches.mixers), batches.shape.num_classes
        with misfits_as_user_errors(f"aug={mixers} mixes labels, which the loss {type(loss).__name__} does not accept"):
            loss(torch.zeros(2, num), torch.full((2, num), 1 / num))
    parts = Parts(batches, network, module, metrics, select_on, higher, loaded)
    parts.check_monitor("select_on", select_on, "max" if higher else "min")
    metric = select_on.partition("/")[2]
    if not (config.select_mode or metric == "acc" or metric.endswith("loss") or metric in parts.modes):
        raise UserError(f"select_on={select_on}: are higher or lower values better? Use select_mode=max or =min.")
    return parts


def make_data(config: DictConfig, data: DataSet) -> ImageData:
    """The batches that a configuration makes from a data set."""
    facts = data.shape.facts()
    augmentations = make_augmentations(config.aug, data.shape)
    norm = instantiate(filled(config.norm, facts))
    with misfits_as_user_errors("The data, norm and aug do not fit together"):
        return ImageData(
            data,
            norm,
            augmentations,
            batch_size=config.batch_size,
            val_fraction=config.val_fraction,
            num_train_images=config.num_train_images,
            seed=config.seed,
            sampling=config.sampling,
            resident=config.resident,
            cache_dir=config.cache_dir,
        )


def make_augmentations(node: DictConfig | Mapping[str, Any], shape: Shape) -> dict[str, Augmentation]:
    """Augmentations by option. shape: of the stored images."""
    made: dict[str, Augmentation] = {str(n): instantiate(filled(one, shape.facts())) for n, one in node.items()}
    for name, augmentation in made.items():
        check_task(f"aug={name}", augmentation, shape)
    return made


def make_loss(node: DictConfig | Mapping[str, Any], shape: Shape) -> Any:
    loss = instantiate(filled(node, shape.facts()))
    check_task(f"The loss {type(loss).__name__}", loss, shape)
    return loss


def make_metrics(node: DictConfig | Mapping[str, Any], shape: Shape) -> dict[str, Metric]:
    """Metrics by option, tried on random outputs and targets."""
    made: dict[str, Metric] = {}
    num = min(4 * shape.num_classes, 1000)
    outputs = torch.rand(num, shape.num_classes, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(len(outputs)) % shape.num_classes
    if shape.task != "multiclass":
        targets = (outputs > 0.5).long() if shape.task == "multilabel" else outputs.flip(0)
    for name, one in ((str(key), one) for key, one in node.items()):
        metric = made[name] = instantiate(filled(one, shape.facts()))
        check_task(f"metrics.{name}", metric, shape)
        if not any(part._defaults for part in metric.modules() if isinstance(part, Metric)):
            raise UserError(
                f"metrics.{name} has no state that was declared with add_state, so it could be neither saved nor added "
                f"up over processes."
            )
        fits = misfits_as_user_errors(f"metrics.{name} cannot be computed for data that are {shape.task}")
        with fits, warnings.catch_warnings(action="ignore"):  # about classes without images
            try_metric(name, metric, outputs, targets)
    return made


def check_task(name: str, part: Any, shape: Shape) -> None:
    """Raises: UserError if a part declares `tasks`, and that of the data is not among them."""
    tasks = getattr(part, "tasks", (shape.task,))
    tasks = (tasks,) if isinstance(tasks, str) else tasks
    if shape.task not in tasks:
        raise UserError(
            f"{name} is for data that are {' or '.join(tasks)}, and these are {shape.task}. Use another one."
        )


def make_network(node: DictConfig | Mapping[str, Any], shape: Shape, try_it: bool = True) -> nn.Module:
    """The network of an option, for images (B, channels, height, width).

    shape: of the network's input. try_it: on a black image, which also initializes lazy layers.

    Raises: UserError if it does not accept such images.
    """
    with misfits_as_user_errors(f"Invalid arguments for {node['_target_']}", node) if try_it else nullcontext():
        network: nn.Module = instantiate(filled(node, shape.facts()))
    if try_it:
        with misfits_as_user_errors(f"{node['_target_']} does not take images of {shape}"):
            on_black(network, shape)
    return network


def try_alone(network: nn.Module, shape: Shape) -> None:
    """Raises: UserError if a network cannot be trained on batches of one image, for example with batch norm."""
    image = torch.zeros(1, shape.channels, shape.height, shape.width)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copy.deepcopy(network).train()(image)
    except ValueError as error:
        raise UserError(f"batch_size leaves one image for each process: {error}. Use a larger batch_size.") from error


def refuse_bf16_of_single_pixels(network: nn.Module, shape: Shape) -> None:
    """For a CPU in bfloat16: there, torch 2.15 computes the gradient of some convolutions from uninitialized memory.

    Seen of inputs that are narrower than the stride, and of those of 1x1 pixels with a kernel of more than 3x3.

    Raises: UserError for a network that has such a convolution.
    """
    wrong = list[str]()

    def look(name: str, layer: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        kernel, (height, width) = max(layer.kernel_size), inputs[0].shape[2:]
        if kernel > 1 and (width < layer.stride[1] or (kernel > 3 and height == width == 1)):
            wrong.append(name)

    with ExitStack() as hooks:
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                hooks.enter_context(layer.register_forward_pre_hook(partial(look, name)))
        on_black(network, shape)
    if wrong:
        raise UserError(
            f"The input of the layer {wrong[0]} is so small that torch computes wrong gradients on this processor in "
            f"bfloat16. Use larger images, or trainer.precision=32-true."
        )


def on_black(network: nn.Module, shape: Shape) -> Any:
    """The output of a network for one black image, in evaluation mode."""
    with in_evaluation_mode(network), torch.no_grad():
        return network(torch.zeros(1, shape.channels, shape.height, shape.width))
