"""Everything random about an epoch's data, drawn up front from (seed, epoch) only.

A plan is a dictionary of tensors with one row per training image, in the order of the epoch. A step slices its rows, so
batches are the same for any number of processes, an epoch can be resumed at any step, and no step draws anything.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from cnnlab.augment.base import Augmentation, Size
from cnnlab.config.options import UserError
from cnnlab.data.images import Images

Plan = dict[str, Tensor]


def draw_epoch(
    seed: int,
    epoch: int,
    indices: Tensor,
    augmentations: Mapping[str, Augmentation],
    size: Size,
    weights: Tensor | None = None,
) -> Plan:
    """The plan of one epoch: `index`, the images in order, and `NAME/KEY` for the parameters of augmentations.

    Order and augmentations have their own generators: runs with different augmentations see the same order.

    indices: (N,) int64, the training images. size: of the stored images. weights: (N,), relative frequency of each
    image; None: each occurs once. Returns tensors of N rows, on the CPU.
    """
    num, chance = len(indices), generator(seed, epoch, "order")
    order = (
        torch.randperm(num, generator=chance) if weights is None else weights.multinomial(num, True, generator=chance)
    )
    plan = {"index": indices[order]}
    for name, augmentation in augmentations.items():
        drawn = dict(augmentation.draw(generator(seed, epoch, name), len(indices), size))
        if of_images := getattr(augmentation, "of_images", None):
            drawn |= of_images(generator(seed, 0, f"{name} of images"), plan["index"], epoch)
        plan |= {f"{name}/{key}": value for key, value in drawn.items()}
        size = augmentation.output_size(size)
    return plan


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A random generator for one purpose in one epoch."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def of_process(plan: Plan, batch_size: int, rank: int = 0, world_size: int = 1, halo: int = 0) -> Plan:
    """The rows of one process, step by step; an incomplete last batch is left out.

    In every step they are a contiguous share of the global batch, preceded by `halo` rows: the images before the share,
    cyclically within the global batch. Every mixer needs one, as the partner of an image is the one before it
    (`images.roll(1, 0)` of the global batch).

    Returns tensors of num_steps * (halo + batch_size // world_size) rows.
    """
    num_steps, share = len(plan["index"]) // batch_size, batch_size // world_size
    within = (torch.arange(-halo, share) + rank * share) % batch_size
    rows = (torch.arange(num_steps)[:, None] * batch_size + within).flatten()
    return {key: values[rows] for key, values in plan.items()}


def split_drawn(batch: Plan, name: str) -> Plan:
    """The parameters of one augmentation: {"crop_flip/top": t, ...} -> {"top": t, ...}."""
    return {key.removeprefix(f"{name}/"): rows for key, rows in batch.items() if key.startswith(f"{name}/")}


def sampling_weights(images: Images, index: np.ndarray, sampling: str) -> Tensor | None:
    """Weights (N,) float64 of the training images `index`; None if each occurs once. Raises: UserError."""
    if sampling == "uniform":
        return None
    if sampling == "balanced":
        if images.task != "multiclass":
            raise UserError(f"sampling=balanced needs multiclass data, and these are {images.task}.")
        labels = images.targets[index]
        return torch.from_numpy(1 / np.bincount(labels)[labels])
    if images.weights is None:
        raise UserError("sampling=weighted needs data with weights, and these have none.")
    weights = np.asarray(images.weights, dtype=np.float64)
    valid = weights.shape == (len(images.targets),) and ((weights >= 0) & (weights < 1e30)).all()
    if not valid or not weights[index].any():
        raise UserError(
            "The data's weights must be one finite, non-negative number for each training image, and not all 0."
        )
    return torch.from_numpy(weights[index])
