"""The data pipeline: the data set lives on the device, a step slices the epoch's plan, and batches are made there.

resident uint8 images -> crop and flip, in one gather -> geometry, colour -> normalise -> erase, mix -> the network
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor

from cnnlab.augment import Augmentation, Crop, Stage, in_order, one_hot
from cnnlab.config import UserError
from cnnlab.data.images import DataSet, Images, expand, stratified_split
from cnnlab.data.plan import Plan, batch_of, draw_epoch, split_drawn
from cnnlab.normalize import Normalization, fit_once

if TYPE_CHECKING:
    from cnnlab.graph import StepGraph

LOOKAHEAD = 8  # batches that are whitened together: large matrices are multiplied faster


class ImageData(LightningDataModule):
    """Batches for training and evaluation out of a data set held in memory.

    Args:
        data: the training and test images.
        norm: fitted here, on the images that are trained on, as evaluation sees them.
        augmentations: by option name; applied in the order of their stages.
        batch_size: images per step, of all processes together; the incomplete last batch of an epoch is left out.
        val_fraction: share of the training images held out; with 0 the test images are what is evaluated every epoch.
        num_train_images: use only so many of the images that are not held out.
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
        resident: str = "device",
        cache_dir: str = "~/.cache/cnnlab",
    ):
        super().__init__()
        self.data, self.norm, self.augmentations = data, norm, in_order(dict(augmentations))
        self.batch_size, self.seed, self.resident = batch_size, seed, resident
        self.classes = data.train.classes
        train, held_out = stratified_split(data.train.labels, val_fraction, seed)
        if val_fraction and not len(held_out):
            raise UserError(
                f"val_fraction={val_fraction} of {len(train)} images in {len(self.classes)} classes holds out none. "
                f"Type a larger val_fraction, or val_fraction=0 to evaluate the test images after every epoch."
            )
        if num_train_images is not None:
            train = np.sort(np.random.default_rng(seed).permutation(train)[:num_train_images])
        if len(train) < batch_size:
            raise UserError(
                f"batch_size={batch_size} is larger than the {len(train)} images that are trained on. Type "
                f"batch_size={len(train)} or less."
            )
        self.train_index, self.held_out_index = torch.from_numpy(train), torch.from_numpy(held_out)
        self.held_out = "val" if val_fraction else "test"
        stages = {stage: {name: a for name, a in self.augmentations.items() if a.stage == stage} for stage in Stage}
        self.crop = cast(Crop | None, next(iter(stages[Stage.CROP].values()), None))
        self.before_norm = stages[Stage.GEOMETRY] | stages[Stage.COLOR] | stages[Stage.QUALITY]
        self.erasers, self.mixers = stages[Stage.ERASE], stages[Stage.MIX]
        self.image_size = data.train.pixels.shape[2]  # of what is stored
        self.input_size = self.image_size  # of what the network sees
        for augmentation in self.augmentations.values():
            self.input_size = augmentation.output_size(self.input_size)
        self.split_digest = hashlib.sha256(train.tobytes()).hexdigest()
        self.device = torch.device("cpu")
        self.normalized: dict[str, Tensor] = {}
        self.graph: StepGraph | None = None  # does the training steps, if there is one
        self.images = {"train": on_device(data.train, self.device)}
        fitted_on = f"{data.fingerprint} {self.split_digest} {self.input_size}"
        fit_once(norm, lambda: self.cropped("train", self.train_index), fitted_on, expand(cache_dir) / "norm")

    @property
    def num_batches(self) -> int:
        return len(self.train_index) // self.batch_size

    def setup(self, stage: str) -> None:
        """Move images, labels and statistics to the device, once; normalise what can be normalised for good."""
        assert self.trainer is not None
        self.device = self.trainer.strategy.root_device
        home = self.device if self.resident == "device" else torch.device("cpu")
        train, test = on_device(self.data.train, home), on_device(self.data.test, home)
        self.images = {"train": train, "val": train, "test": test}
        self.norm.to(self.device)
        num = evaluated_together(self.device)
        if self.norm.once and not self.normalized:
            parts = {"val": self.held_out_index, "test": torch.arange(len(test.labels))}
            if self.crop is None and not self.before_norm:
                parts["train"] = torch.arange(len(train.labels))
            for part, index in parts.items():
                if len(index):
                    batches = [self.evaluation_images(part, chunk).to(home) for chunk in index.split(num)]
                    self.normalized[part] = torch.cat(batches)

    def train_dataloader(self) -> "EpochBatches":
        return EpochBatches(self)

    def val_dataloader(self) -> "Slices":
        return self.test_dataloader() if self.held_out == "test" else Slices(self, "val", self.held_out_index)

    def test_dataloader(self) -> "Slices":
        return Slices(self, "test", torch.arange(len(self.data.test.labels)))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are indices into what is on the device."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the batch.

        Images (B, C, H, W) float32, channels_last; labels (B,) int64 or, mixed, (B, num_classes) float32.
        """
        if isinstance(batch, slice):  # of steps: a graph makes their batches
            return batch
        return self.training_batch(batch) if isinstance(batch, dict) else self.evaluation_batch(*batch)

    def training_batch(self, batch: Plan) -> tuple[Tensor, Tensor]:
        """The augmented images of a slice of the plan."""
        images = batch["images"] if "images" in batch else self.normalized_images(batch)
        for name, eraser in self.erasers.items():
            images = eraser.apply(images, **self.drawn(batch, name))
        labels = self.images["train"].labels[batch["index"]].to(self.device, non_blocking=True)
        if self.mixers:
            labels = one_hot(labels, len(self.classes))
        for name, mixer in self.mixers.items():  # row 0 is the partner of row 1
            rows = {key: rows[1 - len(images) :] for key, rows in self.drawn(batch, name).items()}
            images, labels = mixer.apply(images[1:], labels[1:], images[:-1], labels[:-1], **rows)
        return images, labels

    def normalized_images(self, batch: Plan) -> Tensor:
        """The images of a slice of the plan up to their normalisation."""
        index, pixels = batch["index"], self.images["train"].pixels
        if "train" in self.normalized:
            return self.normalized["train"][index].to(self.device, non_blocking=True)
        if self.crop is None:
            pixels = pixels[index]
        else:
            pixels = self.crop.apply(pixels, index, **split_drawn(batch, next(iter(self.augmentations))))
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        if self.before_norm:
            images = images.float()
        for name, augmentation in self.before_norm.items():
            images = augmentation.apply(images, **self.drawn(batch, name))
        return self.norm(images)

    def drawn(self, batch: Plan, name: str) -> Plan:
        """What a slice of the plan has for an augmentation, on the device."""
        return {key: rows.to(self.device) for key, rows in split_drawn(batch, name).items()}

    def evaluation_batch(self, part: str, index: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        """The images `index` of a part, which are those at `place` of its evaluation."""
        labels = self.images[part].labels[index.to(self.images[part].labels.device)].to(self.device)
        if part in self.normalized:
            return self.normalized[part][place.to(self.normalized[part].device)].to(self.device), labels
        return self.evaluation_images(part, index), labels

    def evaluation_images(self, part: str, index: Tensor) -> Tensor:
        """Images as the network sees them at evaluation: cropped to the centre, normalised."""
        return self.norm(self.cropped(part, index).to(self.device))

    def cropped(self, part: str, index: Tensor) -> Tensor:
        """Images of a part, whole or cropped to the centre: (B, C, h, w) uint8, where the part lives."""
        pixels = self.images[part].pixels
        pixels = pixels[index.to(pixels.device)]
        if self.crop is not None:
            pixels = self.crop.center(pixels)
        return pixels.permute(0, 3, 1, 2)

    def samples(self, num: int = 40) -> tuple[np.ndarray, np.ndarray]:
        """The first images of epoch 0 as they are stored and as the network sees them, de-normalised.

        Two arrays of uint8: (num, H, W, C) and (num, h, w, C).
        """
        plan = draw_epoch(self.seed, 0, self.train_index, self.augmentations, self.image_size)
        batch = batch_of(plan, 0, min(num, len(self.train_index)), halo=len(self.mixers))
        images, _ = self.training_batch(batch)
        seen = self.norm.inverse(images).clamp(0, 255).round().byte().permute(0, 2, 3, 1)
        return self.images["train"].pixels[batch["index"]][-len(seen) :].numpy(), seen.numpy()

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics of the normalisation."""
        return self.norm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.norm.restore(state_dict)
        self.norm.to(self.device)


def data_of(trainer: Trainer) -> ImageData:
    """The data that `trainer.fit` was given: Lightning sets the attribute there, and its class does not declare it."""
    return cast(ImageData, cast(Any, trainer).datamodule)


def evaluated_together(device: torch.device) -> int:
    """How many images make a batch when nothing is learned from it."""
    return 500 if device.type == "cpu" else 2500


class Resident:
    """Images and labels in the memory of a device: pixels (N, H, W, C) uint8, labels (N,) int64."""

    def __init__(self, images: Images, device: torch.device):
        self.pixels = torch.from_numpy(images.pixels.transpose(0, 2, 3, 1)).to(device)
        self.labels = torch.from_numpy(images.labels).to(device)


@functools.lru_cache(maxsize=2)  # training and test images of one data set
def on_device(images: Images, device: torch.device) -> Resident:
    """The images on the device, moved there once for all jobs of a process."""
    return Resident(images, device)


class EpochBatches:
    """Iterates over the slices of the current epoch's plan; after `load_state_dict` it enters where it was."""

    def __init__(self, data: ImageData):
        self.data = data
        self.batches_done = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return self.data.num_batches

    def __iter__(self) -> Iterator[Plan | slice]:
        data, trainer = self.data, self.data.trainer
        assert trainer is not None
        plan = draw_epoch(data.seed, trainer.current_epoch, data.train_index, data.augmentations, data.image_size)
        home = data.images["train"].pixels.device
        plan = {key: rows.to(home, non_blocking=True) for key, rows in plan.items()}
        first, self.first_batch = self.first_batch, 0
        if first >= trainer.num_training_batches:  # the epoch was done
            first = 0
        if data.graph is not None:
            data.graph.load(plan)
            for steps in data.graph.chunks(first, int(trainer.num_training_batches)):
                self.batches_done = steps.stop
                yield steps
            return
        together = LOOKAHEAD if data.norm.once and "train" not in data.normalized else 1
        for start in range(first - first % together, len(self), together):
            batches = [
                batch_of(plan, batch, data.batch_size, trainer.global_rank, trainer.world_size, len(data.mixers))
                for batch in range(start, min(start + together, len(self)))
            ]
            if together > 1:
                joined = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
                images = data.normalized_images(joined).split(len(batches[0]["index"]))
                batches = [batch | {"images": some} for batch, some in zip(batches, images, strict=True)]
            for number, batch in enumerate(batches, start):
                if number >= first:
                    self.batches_done = number + 1
                    yield batch

    def state_dict(self) -> dict[str, int]:
        return {"batches_done": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first_batch = state["batches_done"]


class Slices:
    """The images of one part, in order, in large batches, of which every process takes its share."""

    def __init__(self, data: ImageData, part: str, index: Tensor):
        assert data.trainer is not None
        mine = torch.arange(len(index))[data.trainer.global_rank :: data.trainer.world_size]
        self.batches = [(part, index[place], place) for place in mine.split(evaluated_together(data.device))]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        return iter(self.batches)
