"""What Lightning iterates over: the steps of an epoch, and the batches of an evaluation."""

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from cnnlab.config.options import UserError
from cnnlab.data.images import Images, is_fetched
from cnnlab.data.plan import of_process
from cnnlab.data.resident import as_tensor, evaluated_together
from cnnlab.runs.log import log

ImageData = Any  # of cnnlab.data.pipeline, which makes these


class Part:
    """Images as evaluation sees them, (N, C, h, w) uint8, with the part of a tensor's interface that `fit` uses."""

    def __init__(self, data: ImageData, part: str, index: Tensor):
        self.data, self.part, self.index = data, part, index
        self.shape = torch.Size((len(index), data.shape.channels, *data.shape.size))

    def split(self, num: int) -> Iterator[Tensor]:
        return (self.data.cropped(self.part, chunk) for chunk in self.index.split(num))


def pixel_batches(images: Images, num: int, index: Tensor | None = None) -> Iterator[Tensor]:
    """The images `index`, or all in order, `num` at a time: (B, C, H, W) uint8."""
    if not is_fetched(images):
        pixels = as_tensor(images.pixels)
        yield from pixels.split(num) if index is None else (pixels[chunk] for chunk in index.split(num))
        return
    index = torch.arange(len(images.targets)) if index is None else index
    items = index[:, None].expand(-1, 2)  # the seed of an image is its index
    for pixels in cast(Any, images.pixels).batches([list(map(tuple, chunk.tolist())) for chunk in items.split(num)]):
        yield pixels.permute(0, 3, 1, 2)


class EpochSteps:
    """Iterates over the steps of an epoch, as ranges; after `load_state_dict` from where it was."""

    def __init__(self, data: ImageData):
        self.data = data
        self.steps_done = 0
        self.first_step = 0

    def __len__(self) -> int:
        return self.data.num_full_batches

    def __iter__(self) -> Iterator[range]:
        data, trainer = self.data, self.data.trainer
        assert trainer is not None
        data.begin_epoch(trainer.current_epoch)
        last, size = int(trainer.num_training_batches), data.steps_per_batch
        first, self.first_step = self.first_step, 0
        if first >= last:  # the epoch was complete
            first = 0
        while first < last:
            steps = range(first, min(first - first % size + size, last))
            in_last_pass = first // data.steps_per_pass == (last - 1) // data.steps_per_pass
            if in_last_pass and not data.drawn_ahead and trainer.current_epoch + 1 != trainer.max_epochs:
                data.draw_ahead(trainer.current_epoch + 1)  # while the GPU is still computing
            first = self.steps_done = steps.stop
            yield steps

    def state_dict(self) -> dict[str, int]:
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first_step = state["steps_done"]


class Slices:
    """The images of one part, in order, in large batches that are split between the processes."""

    def __init__(self, data: ImageData, part: str, index: Tensor):
        assert data.trainer is not None
        place = torch.arange(len(index))[data.trainer.global_rank :: data.trainer.world_size]
        num, home = evaluated_together(data.device, data.stored.size), data.home
        longest = math.ceil(len(index) / data.trainer.world_size)
        num_batches = math.ceil(longest / num)  # the same for all processes, which wait for each other
        shares = [
            values.split(num) if math.ceil(len(place) / num) == num_batches else values.tensor_split(num_batches)
            for values in (index[place].to(home), place.to(home))
        ]
        self.images = data.parts[part]
        self.batches = [(part, *batch) for batch in zip(*shares, strict=True)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        if not is_fetched(self.images):
            return iter(self.batches)
        items = [[(place, place) for place in index.tolist()] for _, index, _ in self.batches]
        fetched = cast(Any, self.images.pixels).batches(items)
        return ((*batch, pixels) for batch, pixels in zip(self.batches, fetched, strict=True))


def refuse_few(data: ImageData, processes: int) -> None:
    """Raises: UserError if a process would have no image to evaluate."""
    for part, num in (("held-out", len(data.held_out_index)), ("test", len(data.data.test.targets))):
        if 0 < num < processes:
            raise UserError(
                f"{num} {part} images cannot be shared by {processes} processes, each of which needs at least one. Use "
                f"more images, or fewer devices."
            )


def samples(data: ImageData, num: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str], bool]:
    """The first images of epoch 0 for `run_figures.sheet`.

    Returns the images as stored (num, H, W, C) uint8, as the network sees them (num, h, w, C) uint8, their targets
    (num,) or (num, K), the K names, and whether the targets are the numbers of a regression.
    """
    plan = {key: rows[:num] for key, rows in data.draw_whole(0).items()}
    batch = of_process(plan, len(plan["index"]), halo=len(data.mixers))
    pixels = data.images["train"].pixels[batch["index"]] if is_fetched(data.data.train) else None
    images, targets = data.make(batch, len(batch["index"]), pixels)
    seen = data.norm.inverse(images).clamp(0, 255).round().byte().permute(0, 2, 3, 1)
    stored, classes = data.images["train"].pixels[plan["index"]], list(data.data.train.classes)
    return stored.numpy(), seen.numpy(), targets.numpy(), classes, data.shape.task == "regression"


def warn_of_absent_classes(data: ImageData) -> None:
    """Of which classes no image is evaluated: their share in a mean over classes, such as AUROC, is 0 or left out."""
    parts = {"held-out": data.data.train.targets[data.held_out_index], "test": data.data.test.targets}
    for part, given in parts.items():
        if not len(given) or data.shape.task == "regression":
            continue
        counts = np.bincount(given, minlength=data.shape.num_classes) if given.ndim == 1 else given.sum(0)
        if absent := [name for name, num in zip(data.data.train.classes, counts, strict=True) if not num]:
            named = ", ".join(absent[:5]) + ", ..." * (len(absent) > 5)
            log.warning(f"No {part} image is of {named}: metrics averaged over classes, such as auroc, are too low.")
