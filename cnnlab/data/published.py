"""Data sets that are published as files: found on disk or downloaded, verified, and converted once to plain arrays.

To add one, write a subclass that names and reads its files, and a file in conf/data with its sources and hashes.
"""

import hashlib
import pickle
import struct
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from cnnlab.config.options import UserError
from cnnlab.config.paths import expand, make_folder
from cnnlab.config.shape import Shape
from cnnlab.data.download import ContentError, download, file_sha256, reason
from cnnlab.data.images import DataSet, Images, cached_data
from cnnlab.runs.files import lock_file

# What readers raise for files in other formats.
WRONG_CONTENT = (
    *(tarfile.TarError, zlib.error, struct.error, OSError, EOFError, pickle.UnpicklingError),
    *(AttributeError, ImportError, LookupError, TypeError, ValueError),
)


class Published(ABC):
    """Images in files whose SHA-256 is known.

    Args:
        sources: https addresses, tried in turn: of the file, or of the folder that contains the files, ending with /.
        sha256: of the file, or of all `files` in their order: 64 hexadecimal digits each.
        cache_dir: where files and converted arrays are kept; a file that was put there by hand is used.
        timeout: seconds without data after which an attempt fails; there are three attempts per source.

    Attributes:
        title, name: of the data set, and of its option.
        files: names of its files.
        num_train, shape: see cnnlab.data.images.Source.
    """

    title: str
    name: str
    files: tuple[str, ...]
    num_train: int
    shape: Shape

    def __init__(self, sources: Sequence[str], sha256: str | Sequence[str], cache_dir: str, timeout: float = 30.0):
        hashes = [sha256] if isinstance(sha256, str | int) else sha256
        self.sources, self.sha256, self.timeout = list(sources), [str(one).lower() for one in hashes], timeout
        self.folder = expand(cache_dir) / self.name
        for source in self.sources:
            if not str(source).startswith("https://"):
                raise ValueError(f"data.sources has {source}, but only https:// is allowed")
            if len(self.files) > 1 and not source.endswith("/"):
                raise ValueError(f"data.sources has {source}, but must be a folder with {self._all}, ending with /")
        for one in self.sha256:
            if len(one) != 64:
                raise ValueError(f"data.sha256={one} is not a SHA-256, which has 64 hexadecimal digits")
        if len(self.sha256) != len(self.files):
            raise ValueError(f"data.sha256 has {len(self.sha256)} values, and needs one for each of {self._all}")

    @staticmethod
    @abstractmethod
    def read(*files: Path) -> tuple[Images, Images]:
        """Training and test images from the verified files. Raises: one of WRONG_CONTENT."""

    @property
    def _all(self) -> str:
        return ", ".join(self.files)

    def digest(self) -> str:
        """The SHA-256 of the file, or of those of the files."""
        return self.sha256[0] if len(self.sha256) == 1 else hashlib.sha256(" ".join(self.sha256).encode()).hexdigest()

    def load(self) -> DataSet:
        """Read the converted arrays; download and convert the files if there are none."""
        return cached_data(self.prepared, self._read)

    @property
    def prepared(self) -> Path:
        return self.folder / f"{self.digest()[:32]}.images"

    def _read(self) -> tuple[Images, Images]:
        files = self.fetch()
        try:
            return self.read(*files)
        except WRONG_CONTENT as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{', '.join(map(str, files))}: the SHA-256 is the expected one, but this is not {self.title} in the "
                f"official format ({cause}). Delete it, and leave data.sha256 and data.sources as they are."
            ) from error

    def fetch(self) -> list[Path]:
        """The verified files, each downloaded by one process, however many need it."""
        return [self._fetch(name, sha256) for name, sha256 in zip(self.files, self.sha256, strict=True)]

    def _fetch(self, name: str, sha256: str) -> Path:
        path = self.folder / name
        if path.exists():
            return self._verified(path, sha256)
        make_folder(self.folder)
        try:
            with lock_file(Path(f"{path}.lock")):
                if path.exists():
                    return self._verified(path, sha256)
                failures = []
                for source in self.sources:
                    address = source + name if source.endswith("/") else source
                    try:
                        download(address, path, sha256, self.timeout)
                        return path
                    except (OSError, HTTPException, ValueError, ContentError) as error:
                        failures.append(f"{address}: {reason(error)}")
        except OSError as error:
            failures = [f"{self.folder} cannot be written to: {error.strerror}"]
        raise UserError(
            f"{self.title} is not in {self.folder} and could not be fetched ({'; '.join(failures)}). You have three "
            f"options: run 'cnnlab fetch data={self.name}' on a machine with internet access and copy {self._all} "
            f"to {self.folder}; train on your own images with data=image_folder data.root=FOLDER; or use the generated "
            f"images of data=shapes."
        )

    def _verified(self, path: Path, sha256: str) -> Path:
        if (found := file_sha256(path)) == sha256:
            return path
        meant = f", or set data.sha256={found} if it is the file you mean" if len(self.files) == 1 else ""
        raise UserError(f"{path} has the SHA-256 {found}, expected {sha256}. Delete it to fetch it again{meant}.")
