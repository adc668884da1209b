"""CIFAR-10: found on disk or fetched, verified, and converted once to plain arrays.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. The archive holds pickles. Its
SHA-256 is compared before anything in it is read, and even then only arrays may be unpickled.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand, make_folder
from cnnlab.config.shape import Shape
from cnnlab.data.images import DataSet, Images, cached_data
from cnnlab.runs.files import lock_file
from cnnlab.runs.readers import open_regular

if TYPE_CHECKING:
    import numpy as np

ARCHIVE = "cifar-10-python.tar.gz"


class CIFAR10:
    """50,000 training and 10,000 test images of 32x32 in ten classes.

    Args:
        sources: https addresses of the archive, tried in turn.
        sha256: of the archive, 64 hexadecimal digits.
        cache_dir: where the archive and the converted arrays are kept; an archive put there by hand is used.
        timeout: seconds without a byte after which an attempt has failed; a source has three.
    """

    num_train = 50_000
    shape = Shape(num_classes=10, channels=3, height=32, width=32)

    def __init__(self, sources: Sequence[str], sha256: str, cache_dir: str, timeout: float = 30.0):
        self.sources, self.sha256, self.timeout = list(sources), str(sha256).lower(), timeout
        self.folder = expand(cache_dir) / "cifar10"
        for source in self.sources:
            if not str(source).startswith("https://"):
                raise ValueError(f"data.sources has {source}, but only https:// is fetched from")
        if len(self.sha256) != 64:
            raise ValueError(f"data.sha256={sha256} is not a SHA-256, which has 64 hexadecimal digits")

    def digest(self) -> str:
        """The archive's: it decides the pictures."""
        return self.sha256

    def load(self) -> DataSet:
        """Read the converted arrays; fetch and convert the archive if they are not there."""
        return cached_data(self.prepared, self._read)

    @property
    def prepared(self) -> Path:
        return self.folder / f"{self.sha256[:32]}.images"

    def _read(self) -> tuple[Images, Images]:
        archive = self.fetch()
        try:
            return read_archive(archive)
        except WRONG_CONTENT as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{archive} has the expected SHA-256 but is not CIFAR-10 in the official python format ({cause}). "
                f"Delete it, and leave data.sha256 and data.sources as they are."
            ) from error

    def fetch(self) -> Path:
        """The verified archive, downloaded by one process however many ask for it."""
        archive = self.folder / ARCHIVE
        if archive.exists():
            return self._verified(archive)
        make_folder(self.folder)
        try:
            with lock_file(Path(f"{archive}.lock")):
                if archive.exists():
                    return self._verified(archive)
                failures = []
                for source in self.sources:
                    try:
                        download(source, archive, self.sha256, self.timeout)
                        return archive
                    except (OSError, HTTPException, ValueError, ContentError) as error:
                        failures.append(f"{source}: {reason(error)}")
        except OSError as error:
            failures = [f"{self.folder} cannot be written to: {error.strerror}"]
        raise UserError(
            f"CIFAR-10 is not in {self.folder} and could not be fetched ({'; '.join(failures)}). Three ways out: run "
            f"'python -m cnnlab fetch' on a machine with a network and copy {ARCHIVE} to {self.folder}; train on "
            f"images of your own with data=image_folder data.root=FOLDER; or use the drawn images, data=shapes."
        )

    def _verified(self, archive: Path) -> Path:
        if (found := file_sha256(archive)) == self.sha256:
            return archive
        raise UserError(
            f"{archive} has the SHA-256 {found}, expected {self.sha256}. Delete it to fetch it again, or set "
            f"data.sha256={found} if it is the archive you mean."
        )


# What tarfile, pickle and our own reading raise over an archive that is something else.
WRONG_CONTENT = (
    *(tarfile.TarError, zlib.error, OSError, EOFError, pickle.UnpicklingError),
    *(AttributeError, ImportError, LookupError, TypeError, ValueError),
)


class ContentError(Exception):
    """A download that is complete but is not what was asked for."""


def reason(error: Exception) -> str:
    """One phrase for why a source failed."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answered {error.code} {error.reason}"
    if isinstance(error, TimeoutError):
        return "sent nothing for too long"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


class _OnlyHTTPS(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        if not url.startswith("https://"):
            raise ContentError(f"redirects to {url}, which is not https")
        return super().redirect_request(request, file, code, message, headers, url)


def download(source: str, target: Path, sha256: str, timeout: float, attempts: int = 3) -> None:
    """Fetch `source` into the file `target`, which appears complete and verified or not at all.

    A transfer that breaks off goes on where it stopped, up to `attempts` times and again at the next call.

    Raises: OSError, HTTPException when the source fails; ContentError when its content has another SHA-256.
    """
    opener = urllib.request.build_opener(_OnlyHTTPS, urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    partial = target.with_name(f"{target.name}.{hashlib.sha256(source.encode()).hexdigest()[:8]}.part")
    resumed = partial.exists()
    for attempt in range(1, attempts + 1):
        try:
            _append(opener, source, partial, timeout)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416 and partial.exists():  # the part is complete, or is not what it should be
                break
            if attempt == attempts or error.code < 500:
                raise
        except (OSError, HTTPException):
            if attempt == attempts:
                raise
        time.sleep(attempt)
    if (found := file_sha256(partial)) != sha256:
        partial.unlink()
        if resumed:  # the part may have been of another file
            download(source, target, sha256, timeout, attempts)
            return
        raise ContentError(f"its content has the SHA-256 {found}, expected {sha256}")
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    for other in target.parent.glob(f"{target.name}.*.part"):  # of sources that failed
        other.unlink()


def _append(opener: urllib.request.OpenerDirector, source: str, partial: Path, timeout: float) -> None:
    """Fetch what the partial file lacks, with a progress bar."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    size = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(source, headers={"Range": f"bytes={size}-"} if size else {})
    with opener.open(request, timeout=timeout) as response:
        if response.status != 206:  # the whole file
            size = 0
        length = response.headers.get("Content-Length")
        total = size + int(length) if length else None
        columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with open(partial, "r+b" if size else "wb") as file, Progress(*columns, TimeRemainingColumn()) as progress:
            task = progress.add_task(source.split("/")[2], total=total, completed=size)
            file.seek(size)
            while chunk := response.read1(1 << 20):
                file.write(chunk)
                progress.update(task, advance=len(chunk))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"broke off after {file.tell():,} of {total:,} bytes")


def file_sha256(path: Path) -> str:
    """Raises: UserError if the file cannot be read."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Make it readable, or delete it.") from error
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Array:
    """Stands in for an array or its type in a pickle: NumPy's own can be made to read memory that is not theirs."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state  # of an array: version, shape, type, whether in Fortran's order, bytes

    def rows(self) -> np.ndarray:
        import numpy as np

        return np.frombuffer(self.state[4], np.uint8).reshape(self.state[1])


ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Array,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how Python 3 writes bytes for Python 2
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, numbers, bytes and arrays of bytes, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of images")
        return ARRAY_PARTS[module, name]


def read_archive(archive: Path) -> tuple[Images, Images]:
    """Training and test images out of a verified archive in the official format; nothing is written to disk."""
    import numpy as np

    train = [f"data_batch_{number}" for number in range(1, 6)]
    files: dict[str, dict[Any, Any]] = {}
    with tarfile.open(archive, "r|gz") as tar:  # once from front to end: 1.8 s; file by file it is unpacked anew, 5.4 s
        for member in tar:
            name = member.name.removeprefix("cifar-10-batches-py/")
            if name in (*train, "test_batch", "batches.meta") and (file := tar.extractfile(member)):
                files[name] = _ArrayUnpickler(io.BytesIO(file.read()), encoding="bytes").load()
    classes = tuple(name.decode() for name in files["batches.meta"][b"label_names"])

    def images(*names: str) -> Images:
        pixels = np.concatenate([files[name][b"data"].rows() for name in names]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([files[name][b"labels"] for name in names]).astype(np.int64)
        return Images(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), labels, classes)

    return images(*train), images("test_batch")
