"""Checkpoint files: written atomically, verified by a digest, and loaded without executing their content.

    last.ckpt       the latest state of the training; the one before it is kept as previous.ckpt
    best.ckpt       the state after the best epoch
    *.ckpt.sha256   the digest of each, in the format of `sha256sum --check`

Whenever the process is killed, last.ckpt or previous.ckpt is complete and matches its digest.
"""

import hashlib
import io
import math
import pickle
import pickletools
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy as copy_of
from errno import EINVAL, ENOENT
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from cnnlab.config.options import UserError
from cnnlab.runs.directory import CheckpointError
from cnnlab.runs.files import atomic_path, write_text
from cnnlab.runs.log import log
from cnnlab.runs.readers import BrokenFileError, open_regular, read_text


class CheckpointFiles(CheckpointIO):
    """Writes and reads checkpoints for Lightning.

    A checkpoint is serialized in memory. A thread writes it while training continues, then its digest, then whatever
    must follow it (`then`), in order. After a failed write nothing else is written, and the next call raises its error.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self.newest: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.wait()  # at most one is kept in memory
        content = serialized(checkpoint)
        self.then(_write, content.getbuffer(), Path(path))

    def then(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do something in the thread after all earlier work. Raises: the error of earlier work."""
        before = self.newest
        if before is not None and before.done():
            before.result()

        def in_order() -> None:
            if before is not None:
                before.result()
            work(*arguments)

        self.newest = self.thread.submit(in_order)

    def wait(self) -> None:
        """Wait until everything is on disk. Raises: the error of earlier work."""
        if self.newest is not None:
            self.newest.result()

    def close(self) -> None:
        """Wait, and end the thread; errors are left to `wait`."""
        self.thread.shutdown()

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Load tensors and primitives only, whatever `weights_only` says.

        Raises: CheckpointError if the content does not match its digest.
        """
        self.wait()
        path = Path(path)
        try:
            if reason := damage(path):
                raise CheckpointError(f"{path} {reason}")
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except (*UNREADABLE, MemoryError) as error:  # `damage` reads no tensors
            raise CheckpointError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from error

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def serialized(checkpoint: dict[str, Any]) -> io.BytesIO:
    """A checkpoint as a file. Raises: UserError for one that could not be loaded again."""
    content = io.BytesIO()
    torch.save(with_python_numbers(checkpoint), content)
    with zipfile.ZipFile(content) as archive:
        [pickled] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if named := named_in(archive.read(pickled)):
            raise UserError(
                f"A checkpoint would contain {named}, and could not be loaded again. The states of callbacks, "
                f"optimizers, schedules and the module (save_hyperparameters) may consist of tensors, numbers of "
                f"Python, text, lists and dictionaries."
            )
    return content


def _write(content: memoryview, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_bytes(content)
        if path.exists():
            _write_digest(previous(path), read_digest(path))
            path.replace(previous(path))
        _write_digest(path, hashlib.sha256(content).hexdigest())


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint with its digest."""
    with atomic_path(target) as partial:
        shutil.copyfile(source, partial)
        _write_digest(target, read_digest(source))


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name("previous.ckpt")


def newest(folder: Path, set_aside: bool = True) -> Path | None:
    """The latest intact checkpoint; None if there is none.

    set_aside: rename damaged ones, with a warning.
    """
    last = folder / "last.ckpt"
    for path in (last, previous(last)):
        if path.exists():
            if not (reason := damage(path)):
                return path
            if set_aside:
                aside = path.with_name(f"{path.name}.damaged")
                path.replace(aside)
                log.warning(f"{path} {reason}; it is not used, and kept as {aside.name}.")
    return None


def damage(path: Path) -> str:
    """What is wrong with a file, in words; empty if it is an intact checkpoint.

    Raises: OSError, MemoryError for faults of the machine rather than of the file.
    """
    expected = read_digest(path)
    if not expected:
        return f"has no digest {path.name}.sha256"
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno not in (EINVAL, ENOENT):  # a fault of the machine
            raise
        return f"cannot be read ({error.strerror})"
    if found != expected:
        return f"is not what was written: its SHA-256 differs from {path.name}.sha256"
    try:
        return foreign(path)
    except UNREADABLE as error:
        if "allocate memory" in str(error):  # torch's words, and the operating system's
            raise MemoryError(f"{path}: {error}") from error
        return f"is not a checkpoint ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


KINDS = {  # of what Lightning writes
    **dict.fromkeys(("epoch", "global_step"), int),
    **dict.fromkeys(("state_dict", "loops", "callbacks", "records"), dict),
    **dict.fromkeys(("optimizer_states", "lr_schedulers"), list),
}
RECORDED = {  # of what `Records` writes; "precision" is newer
    **dict.fromkeys(("epoch_done", "should_stop"), bool),
    **dict.fromkeys(("rows", "filters", "processes"), list),
    **dict.fromkeys(("torch", "code"), str),
    **dict.fromkeys(("at", "seconds", "lr", "elapsed"), float),
}
MAX_EXPANDED = 1 << 28  # bytes by which tensors may exceed what is stored: an expanded tensor repeats its values

# What zipfile, pickle and torch.load raise for content that torch.save did not write, and that may be made to confuse
# them. Two are raised on purpose: NotImplementedError by zipfile for a version or compression that it does not know,
# and by torch for an unknown layout of tensors; AssertionError by torch for values of another type than it expects.
# Not MemoryError: sizes in a pickle are compared with the size of the file before they are used.
UNREADABLE = (
    *(zipfile.BadZipFile, pickle.UnpicklingError, EOFError, NotImplementedError, AssertionError),
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
)


def foreign(path: Path) -> str:
    """Why a file with the right digest is not one of our checkpoints, in words; empty if it is one.

    Reads the descriptions of tensors, but not their values. Raises: one of UNREADABLE.
    """
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            return "is compressed, unlike checkpoints that torch writes"
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            return "is smaller than its own content"
        for member in archive.infolist():
            if member.filename.endswith("/data.pkl") and (named := named_in(archive.read(member))):
                return f"names {named}, which has no place in a checkpoint"
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for part, kinds in ((content, KINDS), (content.get("records"), RECORDED)):
        if wrong := [key for key, kind in kinds.items() if not isinstance(part.get(key), kind)]:
            return f"lacks {wrong[0]}, or has something else there"
    if content["epoch"] + content["records"]["epoch_done"] != len(content["records"]["rows"]):
        return "has another epoch than its records"
    for key, value in content["state_dict"].items():
        if not isinstance(key, str) or not (isinstance(value, Tensor) or key.endswith("_extra_state")):
            return "has weights that are not tensors"
    sizes = [
        tensor.numel() * tensor.element_size() if tensor.layout == torch.strided else math.inf
        for tensor in tensors_in(content)
    ]
    if sum(sizes) > path.stat().st_size + MAX_EXPANDED:
        return "has tensors that are larger than what is stored for them"
    return ""


PARTS_OF_TENSORS = re.compile(r"collections OrderedDict|torch[\w.]* (?!.*Tensor$|TypedStorage|UntypedStorage)\w+")


def named_in(content: bytes) -> str:
    """The first name in a pickle other than torch's parts of tensors and ordered dictionaries; empty if there is none.

    Classes of tensors and untyped storages are not allowed: called with a number, they allocate that much memory.
    """
    for operation, argument, _ in pickletools.genops(content):
        if "GLOBAL" in operation.name and not PARTS_OF_TENSORS.fullmatch(str(argument)):
            return str(argument)
    return ""


def with_python_numbers(content: Any) -> Any:
    """A copy of nested containers in which NumPy's numbers are Python's, where these have the same bits."""
    if isinstance(content, np.float64 | np.integer | np.bool_):
        return content.item()
    if type(content) in (list, tuple):
        return type(content)(map(with_python_numbers, content))
    if isinstance(content, dict):
        content = copy_of(content)  # with the attributes of an ordered dictionary of weights
        content.update({key: with_python_numbers(value) for key, value in content.items()})
    return content


def tensors_in(content: Any) -> Iterator[Tensor]:
    """All tensors in nested containers, each of which is visited once."""
    waiting, seen = [content], set[int]()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)


def read_digest(path: Path) -> str:
    """The recorded SHA-256 of a checkpoint; empty if there is none."""
    try:
        words = read_text(path.with_name(f"{path.name}.sha256")).split()
    except (FileNotFoundError, BrokenFileError):
        return ""
    return words[0] if words else ""


def _write_digest(path: Path, digest: str) -> None:
    write_text(path.with_name(f"{path.name}.sha256"), f"{digest}  {path.name}\n")
