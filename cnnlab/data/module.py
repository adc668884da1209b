"""The data pipeline: the data set lives on the device, a step slices the epoch's plan, and batches are made there.

resident uint8 images -> crop and flip, in one gather -> normalise -> mix -> the network
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from cnnlab.augment import Augmentation, Crop, Mixer, in_order, one_hot
from cnnlab.config import UserError
from cnnlab.data.images import DataSet, Images, stratified_split
from cnnlab.data.plan import Plan, batch_of, draw_epoch, split_drawn
from cnnlab.normalize import Normalization

EVALUATION_BATCH = 500  # images


class ImageData(LightningDataModule):
    """Batches for training and evaluation out of a data set held in memory.

    Args:
        data: the training and test images.
        norm: fitted here, on the images that are trained on.
        augmentations: by option name; applied in the order of their stages.
        batch_size: images per step, of all processes together; the incomplete last batch of an epoch is left out.
        val_fraction: share of the training images held out; with 0 the test images are what is evaluated every epoch.
        num_train_images: use only so many of the images that are not held out.
        seed: decides split and plans.
        resident: "device", or "host" for a data set that does not fit there: batches are then gathered on the CPU.
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
        self.train_index, self.held_out_index = torch.from_numpy(train), torch.from_numpy(held_out)
        self.held_out = "val" if val_fraction else "test"
        self.crop = next((a for a in self.augmentations.values() if isinstance(a, Crop)), None)
        self.mixers = {name: a for name, a in self.augmentations.items() if isinstance(a, Mixer)}
        self.image_size = data.train.pixels.shape[2]  # of what is stored
        self.input_size = self.image_size  # of what the network sees
        for augmentation in self.augmentations.values():
            self.input_size = augmentation.output_size(self.input_size)
        self.split_digest = hashlib.sha256(train.tobytes()).hexdigest()
        self.device = torch.device("cpu")
        self.norm.fit(torch.from_numpy(data.train.pixels)[self.train_index])

    @property
    def num_batches(self) -> int:
        return len(self.train_index) // self.batch_size

    def setup(self, stage: str) -> None:
        """Move images, labels and statistics to the device, once."""
        assert self.trainer is not None
        self.device = self.trainer.strategy.root_device
        home = self.device if self.resident == "device" else torch.device("cpu")
        self.images = {part: resident(getattr(self.data, part), home) for part in ("train", "test")}
        self.norm.to(self.device)

    def train_dataloader(self) -> "EpochBatches":
        return EpochBatches(self)

    def val_dataloader(self) -> "Slices":
        return self.test_dataloader() if self.held_out == "test" else Slices(self, "train", self.held_out_index)

    def test_dataloader(self) -> "Slices":
        return Slices(self, "test", torch.arange(len(self.data.test.labels)))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are indices into what is on the device."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Make the batch.

        Images (B, C, H, W) float32, channels_last; labels (B,) int64 or, mixed, (B, num_classes) float32.
        """
        if isinstance(batch, dict):
            return self.training_batch(batch, self.images["train"])
        part, index = batch
        return self.evaluation_batch(self.images[part], index)

    def training_batch(self, batch: Plan, resident: "Resident") -> tuple[Tensor, Tensor]:
        """The augmented images of a slice of the plan."""
        index = batch["index"]
        if self.crop is None:
            pixels = resident.pixels[index]
        else:
            name = next(iter(self.augmentations))
            pixels = self.crop.apply(resident.pixels, index, **split_drawn(batch, name))
        images = self.norm(pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2))
        labels = resident.labels[index].to(self.device, non_blocking=True)
        if self.mixers:
            labels = one_hot(labels, len(self.classes))
        for name, mixer in self.mixers.items():  # row 0 is the partner of row 1
            drawn = {key: rows[1:].to(self.device) for key, rows in split_drawn(batch, name).items()}
            images, labels = mixer.apply(images[1:], labels[1:], images[:-1], labels[:-1], **drawn)
        return images, labels

    def evaluation_batch(self, resident: "Resident", index: Tensor) -> tuple[Tensor, Tensor]:
        """The images `index` as the network sees them at evaluation: the centre crop, normalised."""
        pixels = resident.pixels[index.to(resident.pixels.device)]
        if self.crop is not None:
            pixels = self.crop.center(pixels)
        labels = resident.labels[index.to(resident.labels.device)]
        return self.norm(pixels.to(self.device).permute(0, 3, 1, 2)), labels.to(self.device)

    def samples(self, num: int = 40) -> tuple[np.ndarray, np.ndarray]:
        """The first images of epoch 0 as they are stored and as the network sees them, de-normalised.

        Two arrays of uint8: (num, H, W, C) and (num, h, w, C).
        """
        plan = draw_epoch(self.seed, 0, self.train_index, self.augmentations, self.image_size)
        batch = batch_of(plan, 0, min(num, len(self.train_index)), halo=bool(self.mixers))
        resident = Resident(self.data.train, torch.device("cpu"))
        images, _ = self.training_batch(batch, resident)
        seen = self.norm.inverse(images).clamp(0, 255).round().byte().permute(0, 2, 3, 1)
        return resident.pixels[batch["index"]][-len(seen) :].numpy(), seen.numpy()

    def state_dict(self) -> dict[str, Tensor]:
        """The statistics of the normalisation."""
        return self.norm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.norm.load_state_dict(state_dict)


class Resident:
    """Images and labels in the memory of a device: pixels (N, H, W, C) uint8, labels (N,) int64."""

    def __init__(self, images: Images, device: torch.device):
        self.pixels = torch.from_numpy(images.pixels.transpose(0, 2, 3, 1)).to(device)
        self.labels = torch.from_numpy(images.labels).to(device)


@functools.lru_cache(maxsize=2)
def resident(images: Images, device: torch.device) -> Resident:
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

    def __iter__(self) -> Iterator[Plan]:
        data, trainer = self.data, self.data.trainer
        assert trainer is not None
        plan = draw_epoch(data.seed, trainer.current_epoch, data.train_index, data.augmentations, data.image_size)
        home = data.images["train"].pixels.device
        plan = {key: rows.to(home, non_blocking=True) for key, rows in plan.items()}
        first, self.first_batch = self.first_batch, 0
        for batch in range(first, len(self)):
            self.batches_done = batch + 1
            yield batch_of(
                plan, batch, data.batch_size, trainer.global_rank, trainer.world_size, halo=bool(data.mixers)
            )

    def state_dict(self) -> dict[str, int]:
        return {"batches_done": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first_batch = state["batches_done"] % len(self)


class Slices:
    """The images of one part, in order, in large batches, of which every process takes its share."""

    def __init__(self, data: ImageData, part: str, index: Tensor):
        assert data.trainer is not None
        self.part = part
        self.batches = index[data.trainer.global_rank :: data.trainer.world_size].split(EVALUATION_BATCH)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for index in self.batches:
            yield self.part, index
