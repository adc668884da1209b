"""The data pipeline: the data set lives on the device, a step slices the epoch's plan, and batches are made there.

resident uint8 images -> crop and flip, in one gather -> geometry, colour -> normalise -> erase, mix -> the network

The batches of several steps are made in one pass, `ImageData.make`, so that the small kernels of which the pipeline
consists are launched once for all of them.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor

from cnnlab.augment import Augmentation, Crop, Size, Stage, in_order, one_hot
from cnnlab.config import UserError
from cnnlab.data.images import DataSet, Images, expand, fetches, stratified_split
from cnnlab.data.plan import Plan, draw_epoch, generator, of_process, split_drawn
from cnnlab.normalize import Normalization, fit_once

STEPS_PER_PASS = {"cpu": 8, "cuda": 32}  # on a GPU, so many that launching the pass costs little
BYTES_PER_PASS = 1 << 28  # at most, of images in float32


class ImageData(LightningDataModule):
    """Batches for training and evaluation out of a data set held in memory.

    Args:
        data: the training and test images.
        norm: fitted here, on the images that are trained on, as evaluation sees them.
        augmentations: by option name; applied in the order of their stages.
        batch_size: images per step, of all processes together; the incomplete last batch of an epoch is left out.
        val_fraction: share of the training images held out; with 0 the test images are what is evaluated every epoch.
        num_train_images: use only so many of the images that are not held out.
        sampling: "uniform": every training image once an epoch; "balanced": classes equally often; "weighted": as the
            data's weights say.
        seed: decides split and plans.
        resident: "device", or "host" for a data set that does not fit there: batches are then gathered on the CPU.
        cache_dir: where fitted statistics are kept.
    """

    def __init__(
        self,
        data: DataSet,
        norm: Normalization,
        augmentations: Mapping[str, Augmentation],
        batch_size: int = 128,
        val_fraction: float = 0.1,
        num_train_images: int | None = None,
        seed: int = 0,
        sampling: str = "uniform",
        resident: str = "device",
        cache_dir: str = "~/.cache/cnnlab",
    ):
        super().__init__()
        self.data, self.norm, self.augmentations = data, norm, in_order(dict(augmentations))
        self.batch_size, self.seed, self.resident = batch_size, seed, resident
        train, held_out = stratified_split(data.train.targets, val_fraction, seed)
        if val_fraction and not len(held_out):
            raise UserError(
                f"val_fraction={val_fraction} of {len(train)} images in {data.shape.num_classes} classes holds out "
                f"none. Type a larger val_fraction, or val_fraction=0 to evaluate the test images after every epoch."
            )
        if num_train_images is not None:
            train = np.sort(np.random.default_rng(seed).permutation(train)[:num_train_images])
        if len(train) < batch_size:
            raise UserError(
                f"batch_size={batch_size} is larger than the {len(train)} images that are trained on. Type "
                f"batch_size={len(train)} or less."
            )
        self.weights = sampling_weights(data.train, train, sampling)
        self.train_index, self.held_out_index = torch.from_numpy(train), torch.from_numpy(held_out)
        self.held_out = "val" if val_fraction else "test"
        stages = {stage: {name: a for name, a in self.augmentations.items() if a.stage == stage} for stage in Stage}
        if len(stages[Stage.CROP]) > 1:
            raise UserError(f"Several crops are chosen. Choose one of {', '.join(stages[Stage.CROP])}.")
        self.crop_name, self.crop = cast(tuple[str, Crop | None], next(iter(stages[Stage.CROP].items()), ("", None)))
        self.before_norm = stages[Stage.GEOMETRY] | stages[Stage.COLOR] | stages[Stage.QUALITY]
        self.erasers, self.mixers = stages[Stage.ERASE], stages[Stage.MIX]
        self.stored = data.shape
        self.shape = self.stored.resized(output_size(self.augmentations, self.stored.size))  # what the network sees
        self.split_digest = hashlib.sha256(train.tobytes()).hexdigest()
        self.device = self.home = torch.device("cpu")  # where batches are made, and where all images are
        self.normalized: dict[str, Tensor] = {}
        self.passes_are_batches = False  # whether Lightning is given the steps of a pass as one
        self.plan: Plan = {}  # the rows of this process in the current epoch
        self.drawn_ahead: dict[int, Plan] = {}  # plans by epoch
        self.made: tuple[range, tuple[Tensor, Tensor]] | None = None  # the batches of the newest pass, by their steps
        self.fetching: Iterator[Tensor] | None = None  # the stored images of the passes to come
        self.images = {"train": on_device(data.train, self.device)}
        fitted_on = f"{data.fingerprint} {self.split_digest} {self.shape.image_size}"
        fit_once(
            norm, lambda: cast(Tensor, Part(self, "train", self.train_index)), fitted_on, expand(cache_dir) / "norm"
        )

    @property
    def num_batches(self) -> int:
        return len(self.train_index) // self.batch_size

    def setup(self, stage: str) -> None:
        """Move images, targets and statistics to the device, once; normalise what can be normalised for good."""
        assert self.trainer is not None
        self.device = self.trainer.strategy.root_device
        in_memory = self.resident == "device" and not fetches(self.data.train)
        home = self.home = self.device if in_memory else torch.device("cpu")
        train, test = on_device(self.data.train, home), on_device(self.data.test, home)
        self.images = {"train": train, "val": train, "test": test}
        self.norm.to(self.device)
        if home.type == "cpu":
            _uploaded.cache_clear()  # of another run, whose images the device need not keep
        if self.norm.once and not self.normalized and not fetches(self.data.train):
            self.normalize_once()

    def normalize_once(self) -> None:
        """Normalise for good what nothing random happens to before."""
        home, num = self.home, evaluated_together(self.device, self.stored.size)
        train, test = self.images["train"], self.images["test"]
        parts = {"val": self.held_out_index, "test": torch.arange(len(test.targets))}
        if self.crop is None and not self.before_norm:
            parts["train"] = torch.arange(len(train.targets))
        for part, index in parts.items():
            if len(index):
                batches = [self.evaluation_images(part, chunk).to(home) for chunk in index.to(home).split(num)]
                self.normalized[part] = torch.cat(batches)

    def train_dataloader(self) -> "EpochSteps":
        return EpochSteps(self)

    def val_dataloader(self) -> "Slices":
        return self.test_dataloader() if self.held_out == "test" else Slices(self, "val", self.held_out_index)

    def test_dataloader(self) -> "Slices":
        return Slices(self, "test", torch.arange(len(self.data.test.targets)))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are numbers of steps, or indices that are on the device already."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the batch.

        Images (B, C, H, W) float32, channels_last; targets (B,) int64 or, if they are mixed or of several labels or
        numbers, (B, num_classes) float32.
        """
        return self.training_batch(batch) if isinstance(batch, range) else self.evaluation_batch(*batch)

    # ------------------------------------------------------------------------------------------------- training

    @functools.cached_property
    def steps_per_pass(self) -> int:
        """How many steps' batches are made together; a run does not change it on its way."""
        size = 4 * self.shape.channels * self.shape.height * self.shape.width * self.batch_size
        return max(1, min(STEPS_PER_PASS.get(self.device.type, 8), BYTES_PER_PASS // size))

    @property
    def steps_per_batch(self) -> int:
        return self.steps_per_pass if self.passes_are_batches else 1

    def draw(self, epoch: int) -> Plan:
        """What this process takes of the plan of an epoch, where it is needed."""
        assert self.trainer is not None
        plan = self.draw_whole(epoch)
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        plan = of_process(plan, self.batch_size, rank, world_size, halo=len(self.mixers))
        home = self.home  # where crops are taken
        taking = {"index", *(f"{self.crop_name}/{key}" for key in split_drawn(plan, self.crop_name))}
        return {key: upload(rows, home if key in taking else self.device) for key, rows in plan.items()}

    def draw_whole(self, epoch: int) -> Plan:
        plan = draw_epoch(self.seed, epoch, self.train_index, self.augmentations, self.stored.size, self.weights)
        if fetches(self.data.train):
            num, chance = len(self.train_index), generator(self.seed, epoch, "fetch")
            plan["seed"] = torch.randint(2**62, (num,), generator=chance)
        return plan

    def draw_ahead(self, epoch: int) -> None:
        self.drawn_ahead = {epoch: self.draw(epoch)}

    def begin_epoch(self, epoch: int) -> None:
        self.plan = self.drawn_ahead.get(epoch) or self.draw(epoch)
        self.drawn_ahead, self.made, self.fetching = {}, None, None

    def fetch(self, first: int) -> Tensor:
        """The stored images of the pass that begins with step `first`: (B, H, W, C) uint8, fetched ahead."""
        if self.fetching is None:
            width = len(self.plan["index"]) // self.num_batches * self.steps_per_pass
            rows = torch.stack((self.plan["index"], self.plan["seed"]), 1)[first * width // self.steps_per_pass :]
            passes = [list(map(tuple, some.tolist())) for some in rows.split(width)]
            self.fetching = cast(Any, self.data.train.pixels).batches(passes)
        return next(self.fetching)

    def training_batch(self, steps: range) -> tuple[Tensor, Tensor]:
        """Images and targets of some steps of the epoch, one after the other; all of them are of one pass."""
        first = steps.start - steps.start % self.steps_per_pass
        if self.made is None or self.made[0].start != first:
            self.made = None  # its memory is free for the next
            together = range(first, min(first + self.steps_per_pass, self.num_batches))
            width = len(self.plan["index"]) // self.num_batches  # rows of a step
            rows = slice(together.start * width, together.stop * width)
            pixels = self.fetch(first) if fetches(self.data.train) else None
            batch = {key: values[rows] for key, values in self.plan.items()}
            self.made = together, self.make(batch, width, pixels)
        assert steps.stop <= self.made[0].stop
        images, targets = self.made[1]
        share = len(targets) // len(self.made[0])
        rows = slice((steps.start - first) * share, (steps.stop - first) * share)
        return images[rows], targets[rows]

    def make(self, batch: Plan, width: int, pixels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The augmented images and the targets of rows of the plan, `width` of them a step.

        Every augmentation but a mixer is a function of single images, so the batches of several steps are made as one.

        pixels: of these rows, (B, H, W, C) uint8; None: they are taken out of all images.
        """
        images = self.normalized_images(batch, pixels)
        for name, eraser in self.erasers.items():
            images = eraser.apply(images, **split_drawn(batch, name))
        targets = upload(self.images["train"].targets[batch["index"]], self.device)
        if self.mixers and targets.ndim == 1:
            targets = one_hot(targets, self.shape.num_classes)
        for done, (name, mixer) in enumerate(self.mixers.items(), 1):
            row = torch.arange(len(targets), device=self.device).view(-1, width - done + 1)
            mixed, partners = row[:, 1:].flatten(), row[:, :-1].flatten()  # the partner is the one before
            drawn = split_drawn(batch, name).items()
            images, targets = mixer.apply(
                *(taken(images, mixed), targets[mixed], taken(images, partners), targets[partners]),
                **{key: values.unflatten(0, (-1, width))[:, done:].flatten(0, 1) for key, values in drawn},
            )
        return images, targets

    def normalized_images(self, batch: Plan, pixels: Tensor | None) -> Tensor:
        """The images of rows of the plan up to their normalisation."""
        index = batch["index"]
        if "train" in self.normalized:
            return upload(self.normalized["train"][index], self.device)
        if pixels is None:
            pixels = self.images["train"].pixels
        else:
            index = torch.arange(len(pixels))
        if self.crop is None:
            pixels = pixels[index]
        else:
            pixels = self.crop.apply(pixels, index, **split_drawn(batch, self.crop_name))
        images = upload(pixels, self.device).permute(0, 3, 1, 2)
        if self.before_norm:
            images = images.float()
        for name, augmentation in self.before_norm.items():
            images = augmentation.apply(images, **split_drawn(batch, name))
        return self.norm(images)

    def release(self) -> None:
        """Let go of what the training has kept on the device, besides images and statistics."""
        self.plan, self.drawn_ahead, self.made, self.fetching = {}, {}, None, None

    # ----------------------------------------------------------------------------------------------- evaluation

    def evaluation_batch(
        self, part: str, index: Tensor, place: Tensor, pixels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The images `index` of a part, which are those at `place` of its evaluation. pixels: theirs, if fetched."""
        targets = upload(self.images[part].targets[index], self.device)
        if part in self.normalized:
            return upload(self.normalized[part][place], self.device), targets
        return self.evaluation_images(part, index, pixels), targets

    def evaluation_images(self, part: str, index: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Images as the network sees them at evaluation: cropped to the centre, normalised."""
        return self.norm(upload(self.cropped(part, index, pixels), self.device))

    def cropped(self, part: str, index: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Images of a part, whole or cropped to the centre: (B, C, h, w) uint8, where the part lives."""
        if pixels is None:
            pixels = self.images[part].pixels[index]
        if self.crop is not None:
            pixels = self.crop.center(pixels)
        return pixels.permute(0, 3, 1, 2)

    def samples(self, num: int = 40) -> tuple[np.ndarray, np.ndarray]:
        """The first images of epoch 0 as they are stored and as the network sees them, de-normalised.

        Two arrays of uint8: (num, H, W, C) and (num, h, w, C).
        """
        plan = {key: rows[:num] for key, rows in self.draw_whole(0).items()}
        batch = of_process(plan, len(plan["index"]), halo=len(self.mixers))
        pixels = self.images["train"].pixels[batch["index"]] if fetches(self.data.train) else None
        images, _ = self.make(batch, len(batch["index"]), pixels)
        seen = self.norm.inverse(images).clamp(0, 255).round().byte().permute(0, 2, 3, 1)
        return self.images["train"].pixels[plan["index"]].numpy(), seen.numpy()

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics of the normalisation."""
        return self.norm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Also what was normalised for good is made anew, if it was with other statistics."""
        before = self.norm.state_dict() if self.normalized else {}
        differ = any(not torch.equal(state_dict[name].cpu(), values.cpu()) for name, values in before.items())
        self.norm.restore(state_dict)
        self.norm.to(self.device)
        if differ:
            self.normalize_once()


class Part:
    """Images as evaluation sees them, read piece by piece: as much of a tensor (N, C, h, w) as normalisations need."""

    def __init__(self, data: ImageData, part: str, index: Tensor):
        self.data, self.part, self.index = data, part, index
        self.shape = torch.Size((len(index), data.shape.channels, *data.shape.size))

    def split(self, num: int) -> Iterator[Tensor]:
        return (self.data.cropped(self.part, some) for some in self.index.split(num))


def pixel_batches(images: Images, num: int) -> Iterator[Tensor]:
    """All images in order, `num` at a time: (B, C, H, W) uint8."""
    if not fetches(images):
        yield from torch.from_numpy(images.pixels).split(num)
        return
    items = torch.arange(len(images.targets))[:, None].expand(-1, 2)  # the seed is the place
    for pixels in cast(Any, images.pixels).batches([list(map(tuple, some.tolist())) for some in items.split(num)]):
        yield pixels.permute(0, 3, 1, 2)


def sampling_weights(images: Images, index: np.ndarray, sampling: str) -> Tensor | None:
    """(N,) float64, of the training images `index`; None if each comes once. Raises: UserError."""
    if sampling == "uniform":
        return None
    if sampling == "balanced":
        if images.task != "multiclass":
            raise UserError(f"sampling=balanced is for data that are multiclass, and these are {images.task}.")
        labels = images.targets[index]
        return torch.from_numpy(1 / np.bincount(labels)[labels])
    if images.weights is None:
        raise UserError("sampling=weighted needs data that give weights, and these do not.")
    return torch.from_numpy(images.weights[index].astype(np.float64))


def data_of(trainer: Trainer) -> ImageData:
    """The data that `trainer.fit` was given: Lightning sets the attribute there, and its class does not declare it."""
    return cast(ImageData, cast(Any, trainer).datamodule)


def output_size(augmentations: Mapping[str, Augmentation], size: Size) -> Size:
    """Height and width of what the network sees. Raises: UserError for images that one cannot be applied to."""
    for name, augmentation in augmentations.items():
        try:
            size = augmentation.output_size(size)
        except ValueError as error:
            raise UserError(f"aug={name}: {error}.") from error
    return size


def evaluated_together(device: torch.device, size: Size) -> int:
    """How many images make a batch when nothing is learned from it: by the pixels of 500 of CIFAR's, or 2,500."""
    return max(1, (500 if device.type == "cpu" else 2500) * 32**2 // (size[0] * size[1]))


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Values on the device; from pinned memory if it is a GPU, so that nothing waits for the copy."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def taken(images: Tensor, rows: Tensor) -> Tensor:
    """Some of the images, channels_last as they were: (N, C, H, W), (B,) int64 -> (B, C, H, W)."""
    return images.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)


class Resident:
    """Images and targets in the memory of a device: pixels (N, H, W, C) uint8, targets (N,) int64 or (N, K) float32."""

    def __init__(self, images: Images, device: torch.device):
        self.pixels = cast(Tensor, images.pixels)
        if not fetches(images):
            self.pixels = torch.from_numpy(images.pixels.transpose(0, 2, 3, 1)).to(device)
        self.targets = torch.from_numpy(images.targets).to(device)


def on_device(images: Images, device: torch.device) -> Resident:
    """The images on the device, moved to a GPU once for all jobs of a process."""
    return Resident(images, device) if device.type == "cpu" else _uploaded(images, device)


@functools.lru_cache(maxsize=2)  # training and test images of one data set
def _uploaded(images: Images, device: torch.device) -> Resident:
    return Resident(images, device)


class EpochSteps:
    """Iterates over the steps of an epoch, as ranges; after `load_state_dict` it enters where it was."""

    def __init__(self, data: ImageData):
        self.data = data
        self.steps_done = 0
        self.first_step = 0

    def __len__(self) -> int:
        return self.data.num_batches

    def __iter__(self) -> Iterator[range]:
        data, trainer = self.data, self.data.trainer
        assert trainer is not None
        data.begin_epoch(trainer.current_epoch)
        last, size = int(trainer.num_training_batches), data.steps_per_batch
        first, self.first_step = self.first_step, 0
        if first >= last:  # the epoch was done
            first = 0
        while first < last:
            steps = range(first, min(first - first % size + size, last))
            in_last_pass = first // data.steps_per_pass == (last - 1) // data.steps_per_pass
            if in_last_pass and not data.drawn_ahead and trainer.current_epoch + 1 != trainer.max_epochs:
                data.draw_ahead(trainer.current_epoch + 1)  # while a GPU still computes
            first = self.steps_done = steps.stop
            yield steps

    def state_dict(self) -> dict[str, int]:
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first_step = state["steps_done"]


class Slices:
    """The images of one part, in order, in large batches, of which every process takes its share."""

    def __init__(self, data: ImageData, part: str, index: Tensor):
        assert data.trainer is not None
        place = torch.arange(len(index))[data.trainer.global_rank :: data.trainer.world_size]
        num, home = evaluated_together(data.device, data.stored.size), data.home
        longest = math.ceil(len(index) / data.trainer.world_size)
        num_batches = math.ceil(longest / num)  # the same for every process: each one waits for the others
        shares = [
            values.split(num) if math.ceil(len(place) / num) == num_batches else values.tensor_split(num_batches)
            for values in (index[place].to(home), place.to(home))
        ]
        self.images = data.data.test if part == "test" else data.data.train
        self.batches = [(part, *batch) for batch in zip(*shares, strict=True)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        if not fetches(self.images):
            return iter(self.batches)
        items = [[(place, place) for place in index.tolist()] for _, index, _ in self.batches]
        fetched = cast(Any, self.images.pixels).batches(items)
        return ((*batch, pixels) for batch, pixels in zip(self.batches, fetched, strict=True))
