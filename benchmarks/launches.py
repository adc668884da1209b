"""Kernels that a training step launches on a GPU, copies between devices, and waits for it; counted without a GPU.

Tensors of `torch._subclasses.FakeTensorMode` have a device, a type and a shape, and no memory: they claim to be on a
GPU, and everything that a step does with them is real, but for the arithmetic. What mixes devices, and what would wait
for the device (`if tensor:`, `.item()`, a boolean index), raises an error. A launch is an operator that is neither a
view nor an allocation. torch's autograd engine refuses tensors without a GPU; so the backward pass is counted on fake
tensors of the processor, for which it consists of the same operators.

    python benchmarks/launches.py               a table of one step: batch of 128, bfloat16, the report's network
    python benchmarks/launches.py --save NAME   also write benchmarks/results/NAME.json
"""

import argparse
import copy
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from lightning.pytorch.plugins import MixedPrecision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cnnlab.augment import color
from cnnlab.config.identity import configuration
from cnnlab.config.objects import instantiate
from cnnlab.config.shape import Shape
from cnnlab.data import pipeline, resident
from cnnlab.data.images import DataSet, Images
from cnnlab.runs.files import write_text
from cnnlab.train import graph
from cnnlab.train.classifier import Batch
from cnnlab.train.optimizers import make_optimizer
from cnnlab.train.parts import assemble

GPU = torch.device("cuda", 0)
NO_KERNEL = (
    "_unsafe_view",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "device",
)
OPTIMIZER = "_fused_"  # what changes its arguments and returns nothing; torch has no fake form of most


BACKWARD = torch.Tensor.backward
BATCH, NUM_IMAGES = 16, 1370  # three quarters of them are 64 batches, two passes
trained: list[nn.Module] = []  # the network to which a backward pass gives gradients


class Launches(TorchDispatchMode):
    """Counts launches on the GPU, and the copies between devices."""

    def __init__(self, device: str = "cuda"):
        super().__init__()
        self.device, self.kernels, self.copies = device, Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        out = None if name.startswith(OPTIMIZER) else func(*args, **(kwargs or {}))
        before, after = devices((args, kwargs)), devices(out)
        if before and after and not after <= before:
            self.copies[name] += 1
        elif self.device in before | after and not func.is_view and name not in NO_KERNEL:
            self.kernels[name] += 1
        return out


def devices(tree: Any) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


@contextmanager
def pretended_gpu() -> Iterator[FakeTensorMode]:
    """Within the block tensors can claim to be on a GPU; those that are made are fake."""
    real_draw = pipeline.draw_epoch

    def drawn(*arguments: Any) -> dict[str, Tensor]:
        with unset_fake_temporarily():
            plan = real_draw(*arguments)
        return {key: mode.from_tensor(rows) for key, rows in plan.items()}

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        for target, name, stand_in in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (torch._C, "_select_conv_backend", lambda *_, **__: cast(Any, torch._C)._ConvBackend.Cudnn),
            (torch.cuda, "get_rng_state", lambda *_: None),
            (torch.cuda, "set_rng_state", lambda *_: None),
            (torch.Tensor, "pin_memory", lambda values: values),
            (torch.Tensor, "backward", lambda loss: give_gradients()),
            (pipeline, "draw_epoch", drawn),
            (graph, "capture", lambda work: work),
            (graph, "on_side_stream", lambda work, device: work()),
        ):
            stack.enter_context(patch.object(target, name, stand_in))
        for cache in (color.constant, resident._uploaded):
            cache.cache_clear()
            stack.callback(cache.cache_clear)
        yield stack.enter_context(mode)


def on_gpu(values: Tensor) -> Tensor:
    return torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device=GPU)


def give_gradients() -> None:
    for weights in trained[-1].parameters():
        weights.grad = on_gpu(weights)


def pretend(network: nn.Module) -> None:
    """Give a module parameters and buffers of the same form that claim to be on the GPU."""
    for part in network.modules():
        for name, values in part._parameters.items():
            if values is not None:
                setattr(part, name, nn.Parameter(on_gpu(values), requires_grad=values.requires_grad))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_gpu(buffer)


class Pretended:
    """A run of one process and its parts on a pretended GPU; use it within `pretended_gpu`.

    Args:
        words: as one gives them to train.py.
        graphed: whether its steps are recorded ones; a recording and its replay are the recorded function itself.
    """

    def __init__(self, *words: str, graphed: bool = False):
        with unset_fake_temporarily():
            config = configuration(["data=shapes", f"batch_size={BATCH}", "val_fraction=0.25", *words])
            parts = assemble(config, DATA, extend=lambda kind, *_: graph.graphed(kind) if graphed else kind)
            self.data, network, self.classifier = parts.data, parts.network, cast(Any, parts.module)
            self.backward_launches = backward_launches(copy.deepcopy(self.classifier), self.data.shape)
            self.callbacks = [instantiate(node) for node in config.callbacks.values()]
            for callback in self.callbacks:
                callback._average_model = SimpleNamespace(module=copy.deepcopy(self.classifier))
        for part in (self.classifier, *(callback._average_model.module for callback in self.callbacks)):
            pretend(part)
        self.classifier._device = GPU
        self.classifier.begin_epoch()
        trained.append(network)
        self.optimizer = make_optimizer(self.classifier.make_optimizer, network, config.decay_all)
        made = SimpleNamespace(
            current_epoch=0,
            max_epochs=2,
            num_training_batches=self.data.num_batches,
            global_rank=0,
            world_size=1,
            strategy=SimpleNamespace(root_device=GPU),
            optimizers=[self.optimizer],
            precision_plugin=MixedPrecision("bf16-mixed", "cuda"),
            gradient_clip_val=config.trainer.gradient_clip_val,
            gradient_clip_algorithm=None,
            callbacks=self.callbacks,
            lr_scheduler_configs=[],
            fit_loop=MagicMock(),  # Lightning's counters
            datamodule=self.data,
        )
        self.trainer = cast(Any, made)
        self.data.trainer = self.trainer
        self.classifier.trainer = self.trainer
        self.data.passes_are_batches = graphed
        self.data.setup("fit")

    def batches(self, loader: Any) -> Iterator[Any]:
        for batch in loader:
            yield self.data.on_after_batch_transfer(batch, 0)

    def train(self) -> "Launches":
        """An epoch of two passes; what the second one launches and copies."""
        passes = [Launches(), Launches()]
        for steps in self.data.train_dataloader():
            with passes[steps.start // self.data.steps_per_pass]:
                self.step(self.data.on_after_batch_transfer(steps, 0), steps.start)
        return passes[1]

    def step(self, batch: Batch, number: int) -> None:
        if isinstance(self.classifier, graph.GraphedSteps):
            self.classifier.training_step(batch, number)
            return
        with self.trainer.precision_plugin.forward_context():
            loss = self.classifier.training_step(batch, number)
        self.optimizer.zero_grad()
        loss.backward()
        self.classifier.configure_gradient_clipping(self.optimizer, self.trainer.gradient_clip_val)
        self.optimizer.step()
        for callback in self.callbacks:
            callback.on_train_batch_end(self.trainer, self.classifier, None, None, 0)

    def evaluate(self) -> None:
        """Held-out and test images."""
        self.classifier.on_test_epoch_start()
        with self.trainer.precision_plugin.forward_context():
            for batch in self.batches(self.data.val_dataloader()):
                self.classifier.validation_step(batch, 0)
            for batch in self.batches(self.data.test_dataloader()):
                self.classifier.test_step(batch, 0)
        self.classifier.evaluation_sums.totals()


def backward_launches(classifier: Any, shape: Shape) -> int:
    """Of one step, on fake tensors of the processor."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(BATCH, shape.channels, *shape.size).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = classifier.loss_of(images, torch.zeros(BATCH, dtype=torch.int64))
        with Launches("cpu") as launches:
            BACKWARD(loss)
    return launches.kernels.total()


def data_set(channels: int = 3, size: int = 32) -> DataSet:
    """Random images: nobody looks at them."""
    generator = np.random.default_rng(0)

    def images(num: int) -> Images:
        pixels = generator.integers(0, 256, (num, size, size, channels), dtype=np.uint8)
        return Images(pixels.transpose(0, 3, 1, 2), np.arange(num) % 10, tuple("abcdefghij"))

    return DataSet(images(NUM_IMAGES), images(40), "pretended")


DATA = data_set()
ROWS = (
    ("pad_crop_flip, standard", ("aug=pad_crop_flip", "norm=standard")),
    ("trivial_augment, standard", ("aug=trivial_augment", "norm=standard")),
    ("pad_crop_flip and CutMix, standard", ("aug=[pad_crop_flip,cutmix]", "norm=standard")),
    ("pad_crop_flip, PCA whitening", ("aug=pad_crop_flip", "norm=pca", "norm.num_components=20")),
    ("pad_crop_flip, standard, moving average", ("aug=pad_crop_flip", "norm=standard", "callbacks=ema")),
    (
        "pad_crop_flip, standard, Adam, clipped",
        ("aug=pad_crop_flip", "norm=standard", "optim=adam", "trainer.gradient_clip_val=1"),
    ),
)


def bare() -> float:
    """Launches of a step that is given its batch and measures nothing: forward, backward, optimizer."""
    with pretended_gpu():
        one = Pretended("norm=standard")
        images = torch.empty(BATCH, 3, 32, 32, device=GPU).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(BATCH, dtype=torch.int64, device=GPU)
        with Launches() as launches:
            with one.trainer.precision_plugin.forward_context():
                loss, _ = one.classifier.loss_of(images, labels)
            loss.backward()
            one.optimizer.step()
    return one.backward_launches + launches.kernels.total()


def per_step(*words: str, graphed: bool) -> dict[str, float]:
    """Launches and copies of one step, on average over a pass."""
    with pretended_gpu():
        one = Pretended(*words, graphed=graphed)
        launches = one.train()
        steps = one.data.steps_per_pass
    return {
        "launches": one.backward_launches + launches.kernels.total() / steps,
        "copies": launches.copies.total() / steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    options = parser.parse_args()
    counted = {
        name: {kind: per_step(*words, graphed=kind == "graph") for kind in ("eager", "graph")} for name, words in ROWS
    }
    table = Table("one step", "eager", "recorded")
    table.add_row("a bare loop, for comparison", f"{bare():.1f}", "")
    for name, kinds in counted.items():
        table.add_row(name, *(f"{kind['launches']:.1f}" for kind in kinds.values()))
    Console().print(table)
    if options.save:
        path = Path(__file__).parent / "results" / f"{options.save}.json"
        write_text(path, json.dumps({"torch": torch.__version__, "bare": bare(), "steps": counted}, indent=1) + "\n")


if __name__ == "__main__":
    main()
