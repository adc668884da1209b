"""predictions.npz: the predictions for the test images, at the best epoch."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cnnlab.runs.files import atomic_path
from cnnlab.runs.readers import MEGABYTE, BrokenFileError, read_bytes

if TYPE_CHECKING:
    import numpy as np

LARGEST = 64 * MEGABYTE
MAX_IMAGES = 10_000_000
MAX_CLASSES = 2000  # of a confusion matrix
UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, RuntimeError),
    *(SyntaxError, tokenize.TokenError, MemoryError),  # of NumPy, which parses the header of an array as Python
)


def read(path: Path, num_classes: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted labels, true labels and the predictions' probability; (N,) each.

    Raises: FileNotFoundError; BrokenFileError, also for labels beyond `num_classes`, if that is known.
    """
    content = read_bytes(path, LARGEST)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            predicted, labels, confidence = (
                _array(archive, f"{name}.npy", kind)
                for name, kind in (("predicted", "u"), ("labels", "u"), ("confidence", "f"))
            )
        if not len(predicted) == len(labels) == len(confidence):
            raise ValueError("its arrays differ in length")
        if num_classes is not None and len(labels) and max(int(predicted.max()), int(labels.max())) >= num_classes:
            raise ValueError(f"there are {num_classes} classes, and labels beyond them")
        if not ((confidence >= 0) & (confidence <= 1)).all():
            raise ValueError("a probability is not between 0 and 1")
    except UNREADABLE as error:
        raise BrokenFileError(path, f"is not a file of predictions ({' '.join(str(error).split())})") from error
    return predicted, labels, confidence


def _array(archive: zipfile.ZipFile, name: str, kind: str) -> np.ndarray:
    """One array, whose size is checked before memory is allocated. kind: of its dtype."""
    import numpy as np

    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by an unknown method")
    with archive.open(member) as file:
        np.lib.format.read_magic(cast(Any, file))
        shape, _, dtype = np.lib.format.read_array_header_1_0(cast(Any, file))
        if len(shape) != 1 or not 0 <= shape[0] <= MAX_IMAGES or dtype.kind != kind:
            raise ValueError(f"{name} is not a list of numbers")
        values = file.read(shape[0] * dtype.itemsize)
        if len(values) != shape[0] * dtype.itemsize:
            raise ValueError(f"{name} is cut off")
    return np.frombuffer(values, dtype).copy()  # a writable copy, as torch expects


def write(path: Path, targets: np.ndarray, *answers: np.ndarray) -> None:
    """Write compactly: with up to 256 classes, four bytes per image before compression.

    answers: as in cnnlab.train.classifier; for multilabel data and regression, `outputs` to be kept beside `targets`.
    """
    import numpy as np

    if targets.ndim == 1:
        predicted, confidence = answers
        kind = np.min_scalar_type(int(max(targets.max(), predicted.max())))
        kept = {"predicted": predicted.astype(kind), "labels": targets.astype(kind)}
        kept |= {"confidence": confidence.astype(np.float16)}
    else:
        kept = {"outputs": answers[0], "targets": targets}
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **cast(Any, kept))
