"""What the tests share: a cache of their own, the real pictures, and whole commands run as a user would."""

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PICTURES = os.environ.get("CNNLAB_PICTURES", "")  # folder or .tar.gz with train/<class>/*.jpg and test/<class>/*.jpg
BROWSER = os.environ.get("CNNLAB_BROWSER", "")
NO_PICTURES = (
    "needs the CIFAR-10 pictures, which the project does not ship: set CNNLAB_PICTURES to a folder or .tar.gz of them "
    "(.ci/run does)"
)

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("pictures") and not PICTURES:
            item.add_marker(pytest.mark.skip(reason=NO_PICTURES))
        if item.get_closest_marker("browser") and not (BROWSER or shutil.which("chromium")):
            item.add_marker(pytest.mark.skip(reason="needs Chromium: apt-get install chromium (.ci/run does)"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With the pictures at hand and all tests asked for, those that need them must have run."""
    if PICTURES and not session.config.args_source.name.startswith("ARGS") and not session.config.option.collectonly:
        ran = [item for item in session.items if item.get_closest_marker("pictures")]
        if not ran:
            session.exitstatus = 1


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in an empty folder, with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run `python ARGUMENTS...` in the test's folder; train.py is the project's. Returns status and output."""

    def run(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [str(ROOT / word) if word == "train.py" else word for word in arguments]
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of real CIFAR-10 pictures: train/<class>/*.jpg, test/<class>/*.jpg."""
    if not PICTURES.endswith(".tar.gz"):
        return Path(PICTURES)
    folder = tmp_path_factory.mktemp("pictures")
    with tarfile.open(PICTURES) as archive:
        archive.extractall(folder, filter="data")
    return folder
