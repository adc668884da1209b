"""Which training images are held out, and on which a run trains. Needs NumPy only, which is imported when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnlab.config.options import UserError

if TYPE_CHECKING:
    import numpy as np


def stratified_split(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images kept and held out: `fraction` of each class, rounded, is held out.

    targets: (N,) int64; or (N, K), which is treated as a single class -> two sorted int64 arrays, together 0 ... N-1.

    Raises: UserError if no image would be held out, but a fraction is to be.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    labels = targets if targets.ndim == 1 else np.zeros(len(targets), dtype=np.int64)
    held_out = [
        generator.permutation(indices)[: round(fraction * len(indices))]
        for indices in (np.flatnonzero(labels == label) for label in np.unique(labels))
    ]
    mask = np.zeros(len(labels), dtype=bool)
    mask[np.concatenate(held_out)] = True
    if fraction and not mask.any():
        raise UserError(
            f"val_fraction={fraction} of {len(labels)} images in {len(held_out)} classes holds out none. Use a larger "
            f"val_fraction, or val_fraction=0 to evaluate the test images after every epoch."
        )
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def subset(indices: np.ndarray, num: int, seed: int) -> np.ndarray:
    """`num` random ones of the training images that are not held out, sorted. Raises: UserError if there are fewer."""
    import numpy as np

    if num > len(indices):
        raise UserError(
            f"num_train_images={num} is more than the {len(indices)} training images that are not held out. Use "
            f"{len(indices)} or less."
        )
    return np.sort(np.random.default_rng(seed).permutation(indices)[:num])


def training_split(
    targets: np.ndarray, val_fraction: float, num_train_images: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the images that a run trains on, and of those that it holds out. Raises: UserError."""
    train, held_out = stratified_split(targets, val_fraction, seed)
    return train if num_train_images is None else subset(train, num_train_images, seed), held_out
