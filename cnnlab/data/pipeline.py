"""The data pipeline: the data set lives on the device, a step slices the epoch's plan, and batches are made there.

resident uint8 images -> crop and flip, in one gather -> geometry, color -> normalize -> erase, mix -> the network

The batches of several steps are made in one pass, `ImageData.make`, so that its small kernels are launched once for all
of them.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning import LightningDataModule, Trainer
from torch import Tensor

from cnnlab.augment.base import Augmentation, Crop, Stage, center_digest, in_order, output_size
from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.data.images import DataSet, for_evaluation, is_fetched
from cnnlab.data.loaders import EpochSteps, Part, Slices
from cnnlab.data.plan import Plan, draw_epoch, generator, of_process, sampling_weights, split_drawn
from cnnlab.data.resident import _uploaded, evaluated_together, on_device, taken, upload
from cnnlab.data.split import training_split
from cnnlab.normalize import Normalization, fit_once

STEPS_PER_PASS = {"cpu": 8, "cuda": 32}  # on a GPU enough to make the cost of launching a pass negligible
BYTES_PER_PASS = 1 << 28  # upper limit for its images in float32


class ImageData(LightningDataModule):
    """Batches for training and evaluation from a data set in memory.

    Args:
        data: the training and test images.
        norm: fitted here, on the images that are trained on, as evaluation sees them.
        augmentations: by option name; applied in the order of their stages.
        batch_size: images per step, in all processes together; the incomplete last batch of an epoch is left out.
        val_fraction: share of the training images that is held out; with 0 the test images are evaluated every epoch.
        num_train_images: number of the remaining images to use; None: all.
        seed: determines split and plans.
        sampling: "uniform": every training image once per epoch; "balanced": all classes equally often; "weighted": by
            the data's weights.
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
        self.parts = {"train": data.train, "val": for_evaluation(data.train), "test": data.test}
        self.batch_size, self.seed, self.resident = batch_size, seed, resident
        train, held_out = training_split(data.train.targets, val_fraction, num_train_images, seed)
        if len(train) < batch_size:
            raise UserError(
                f"batch_size={batch_size} is larger than the {len(train)} training images. Use batch_size={len(train)} "
                f"or less."
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
        self.shape = self.stored.resized(output_size(self.augmentations, self.stored.size))  # of the network's input
        self.split_digest = hashlib.sha256(train.tobytes()).hexdigest()
        self.device = self.home = torch.device("cpu")  # where batches are made, and where the data set is
        self.normalized: dict[str, Tensor] = {}
        self.passes_are_batches = False  # whether the steps of a pass are one batch to Lightning
        self.drawn_ahead: dict[int, Plan] = {}  # plans by epoch
        self.release()
        self.images = {part: on_device(images, self.device) for part, images in self.parts.items()}
        part = center_digest(self.crop, self.stored.size, self.stored.channels) if self.crop else ""
        fitted_on = f"{data.fingerprint} {self.split_digest} {self.shape.image_size} {part}"
        fit_once(norm, lambda: cast(Tensor, Part(self, "val", self.train_index)), fitted_on, expand(cache_dir) / "norm")

    def release(self) -> None:
        """Free the memory that training uses on the device, except for images and statistics."""
        self.plan: Plan = {}  # the rows of this process in the current epoch
        self.drawn_ahead = {}
        self.made: tuple[range, tuple[Tensor, Tensor]] | None = None  # the steps of the last pass, and their batches
        self.fetching: Iterator[Tensor] | None = None  # the stored images of the next passes

    @property
    def num_batches(self) -> int:
        return len(self.train_index) // self.batch_size

    @property
    def num_full_batches(self) -> int:
        """Without the last ones, if they are too few for a step of accumulated gradients: Lightning divides by all."""
        assert self.trainer is not None
        together = self.trainer.accumulate_grad_batches
        return self.num_batches // together * together

    def setup(self, stage: str) -> None:
        """Move images, targets and statistics to the device; normalize the whole data set if that is worth it."""
        assert self.trainer is not None
        self.device = self.trainer.strategy.root_device
        in_memory = self.resident == "device" and not is_fetched(self.data.train)
        home = self.home = self.device if in_memory else torch.device("cpu")
        self.images = {part: on_device(images, home) for part, images in self.parts.items()}
        self.norm.to(self.device)
        if home.type == "cpu":
            _uploaded.cache_clear()  # free the images of another run
        if self.norm.once and not self.normalized and not is_fetched(self.data.train):
            self.normalize_once()

    def normalize_once(self) -> None:
        """Normalize all images of the parts in which nothing random precedes the normalization."""
        home, num = self.home, evaluated_together(self.device, self.stored.size)
        train, test = self.images["train"], self.images["test"]
        parts = {"val": self.held_out_index, "test": torch.arange(len(test.targets))}
        if self.crop is None and not self.before_norm:
            parts["train"] = torch.arange(len(train.targets))
        for part, index in parts.items():
            if len(index):
                batches = [self.evaluation_images(part, chunk).to(home) for chunk in index.to(home).split(num)]
                self.normalized[part] = torch.cat(batches)

    def train_dataloader(self) -> EpochSteps:
        return EpochSteps(self)

    def val_dataloader(self) -> Slices:
        return self.test_dataloader() if self.held_out == "test" else Slices(self, "val", self.held_out_index)

    def test_dataloader(self) -> Slices:
        return Slices(self, "test", torch.arange(len(self.data.test.targets)))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are ranges of steps, or indices that are on the device already."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make a batch: images (B, C, H, W) float32, channels_last, and targets.

        Targets are (B,) int64; if they are mixed, several labels or numbers, (B, num_classes) float32.
        """
        return self.training_batch(batch) if isinstance(batch, range) else self.evaluation_batch(*batch)

    @functools.cached_property
    def steps_per_pass(self) -> int:
        """The number of steps whose batches are made together; constant during a run."""
        size = 4 * self.shape.channels * self.shape.height * self.shape.width * self.batch_size
        return max(1, min(STEPS_PER_PASS.get(self.device.type, 8), BYTES_PER_PASS // size))

    @property
    def steps_per_batch(self) -> int:
        return self.steps_per_pass if self.passes_are_batches else 1

    def draw(self, epoch: int) -> Plan:
        """The rows of this process in the plan of an epoch, on the devices where they are used."""
        assert self.trainer is not None
        plan = self.draw_whole(epoch)
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        plan = of_process(plan, self.batch_size, rank, world_size, halo=len(self.mixers))
        cropping = {"index", *(f"{self.crop_name}/{key}" for key in split_drawn(plan, self.crop_name))}
        return {key: upload(rows, self.home if key in cropping else self.device) for key, rows in plan.items()}

    def draw_whole(self, epoch: int) -> Plan:
        plan = draw_epoch(self.seed, epoch, self.train_index, self.augmentations, self.stored.size, self.weights)
        if is_fetched(self.data.train):
            num, chance = len(self.train_index), generator(self.seed, epoch, "fetch")
            plan["seed"] = torch.randint(2**62, (num,), generator=chance)
        return plan

    def draw_ahead(self, epoch: int) -> None:
        self.drawn_ahead = {epoch: self.draw(epoch)}

    def begin_epoch(self, epoch: int) -> None:
        self.plan = self.drawn_ahead.get(epoch) or self.draw(epoch)
        self.drawn_ahead, self.made, self.fetching = {}, None, None

    def fetch(self, first: int) -> Tensor:
        """The stored images of the pass that begins with step `first`: (B, H, W, C) uint8, prefetched."""
        if self.fetching is None:
            width = len(self.plan["index"]) // self.num_batches * self.steps_per_pass
            rows = torch.stack((self.plan["index"], self.plan["seed"]), 1)[first * width // self.steps_per_pass :]
            passes = [list(map(tuple, chunk.tolist())) for chunk in rows.split(width)]
            self.fetching = cast(Any, self.data.train.pixels).batches(passes)
        return next(self.fetching)

    def training_batch(self, steps: range) -> tuple[Tensor, Tensor]:
        """Images and targets of some steps of the epoch, which belong to the same pass."""
        first = steps.start - steps.start % self.steps_per_pass
        if self.made is None or self.made[0].start != first:
            self.made = None  # frees its memory for the next pass
            together = range(first, min(first + self.steps_per_pass, self.num_batches))
            width = len(self.plan["index"]) // self.num_batches  # rows of a step
            rows = slice(together.start * width, together.stop * width)
            pixels = self.fetch(first) if is_fetched(self.data.train) else None
            batch = {key: values[rows] for key, values in self.plan.items()}
            self.made = together, self.make(batch, width, pixels)
        assert steps.stop <= self.made[0].stop
        images, targets = self.made[1]
        share = len(targets) // len(self.made[0])
        rows = slice((steps.start - first) * share, (steps.stop - first) * share)
        return images[rows], targets[rows]

    def make(self, batch: Plan, width: int, pixels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The augmented images and the targets for rows of the plan, `width` rows per step.

        Except for mixers, augmentations are functions of single images, so several steps are treated as one batch.

        pixels: the stored images of these rows, (B, H, W, C) uint8; None: they are gathered from the data set.
        """
        images = self.normalized_images(batch, pixels)
        for name, eraser in self.erasers.items():
            images = eraser.apply(images, **split_drawn(batch, name))
        targets = upload(self.images["train"].targets[batch["index"]], self.device)
        if self.mixers and targets.ndim == 1:
            targets = F.one_hot(targets, self.shape.num_classes).float()
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
        """The images for rows of the plan, up to their normalization."""
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

    def evaluation_batch(
        self, part: str, index: Tensor, place: Tensor, pixels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The images `index` of a part. place: their positions in its evaluation. pixels: if they are fetched."""
        targets = upload(self.images[part].targets[index], self.device)
        if part in self.normalized:
            return upload(self.normalized[part][place], self.device), targets
        return self.evaluation_images(part, index, pixels), targets

    def evaluation_images(self, part: str, index: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Images as the network sees them at evaluation: cropped to the center, normalized."""
        return self.norm(upload(self.cropped(part, index, pixels), self.device))

    def cropped(self, part: str, index: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Images of a part, whole or cropped to the center: (B, C, h, w) uint8, on the device of the data set."""
        if pixels is None:
            pixels = self.images[part].pixels[index]
        if self.crop is not None:
            pixels = self.crop.center(pixels)
        return pixels.permute(0, 3, 1, 2)

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics of the normalization."""
        return self.norm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore the statistics; if they differ, normalize again the images that are normalized once."""
        before = self.norm.state_dict() if self.normalized else {}
        differ = any(not torch.equal(state_dict[name].cpu(), values.cpu()) for name, values in before.items())
        self.norm.restore(state_dict)
        self.norm.to(self.device)
        if differ:
            self.normalize_once()


def data_of(trainer: Trainer) -> ImageData:
    """The data that `trainer.fit` was called with: Lightning sets the attribute without declaring it."""
    return cast(ImageData, cast(Any, trainer).datamodule)
