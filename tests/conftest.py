"""What the tests share: a cache of their own, the real pictures, and whole commands run as a user would."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from signal import SIGALRM
from tempfile import TemporaryDirectory
from threading import current_thread, main_thread
from typing import Any

import pytest
from slurm import PROGRAMS, find

from cnnlab.runs.files import lock_file

ROOT = Path(__file__).parent.parent
PICTURES = os.environ.get("CNNLAB_PICTURES", "")  # folder or .tar.gz with train/<class>/*.jpg and test/<class>/*.jpg
SLURM = os.getuid() == 0 and all(find(program) for program in PROGRAMS)
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""

# What some tests need that pip cannot install, by the marker of such a test: whether it is here, and how to get it. A
# newcomer's first `pytest` passes without a cluster, a browser or a download: there these tests are skipped, and each
# says what it needs. .ci/run installs all of it and sets CNNLAB_ALL: there what is missing fails.
NEEDED = {
    "pictures": (PICTURES, "the CIFAR-10 pictures: set CNNLAB_PICTURES to a folder or .tar.gz of them"),
    "browser": (BROWSER, "Chromium: apt-get install chromium"),
    "slurm": (SLURM, "root and Slurm: apt-get install slurm-wlm munge"),
    "hosts": (os.getuid() == 0 and shutil.which("ip"), "root and ip: apt-get install iproute2"),
}
ALL = bool(os.environ.get("CNNLAB_ALL"))

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side

Command = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, (at_hand, what) in NEEDED.items():
        needing = [item for item in items if item.get_closest_marker(marker)]
        if ALL and not (needing and at_hand):
            raise pytest.UsageError(f"CNNLAB_ALL is set, and {what if needing else f'no test needs {marker}'}")
        for item in needing:
            reason = f"not on this machine, and not to be had by pip: {what}. CI has it, and fails if this does not run"
            item.add_marker(pytest.mark.skipif(not at_hand, reason=reason))


def until(condition: Callable[[], Any], timeout: float = 120, process: subprocess.Popen | None = None) -> Any:
    """Wait until something is the case, while a process runs, and return it."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    return found


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in an empty folder, with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CNNLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Any]]:
    """A process that has imported everything, started when it is first needed, whose forks run commands."""
    made: list[Any] = []

    def get() -> Any:
        from zygote import Zygote

        if not made:
            made.append(Zygote(tmp_path_factory.mktemp("forks")))
        return made[0]

    yield get
    for zygote in made:
        zygote.process.communicate()


@pytest.fixture
def command(tmp_path: Path, forks: Callable[[], Any]) -> Command:
    """Run `python ARGUMENTS...` in the test's folder; train.py is the project's. Returns status and output.

    train.py and `-m cnnlab` are forks of a process that has imported torch already, which saves ten seconds of
    processor time each. With an option for Python, an environment of its own or from another thread, Python starts
    anew.
    """

    def forked(arguments: tuple[str, ...], timeout: float, environment: dict[str, str]) -> Any:
        request: dict[str, Any] = {"arguments": arguments[1:], "folder": str(tmp_path), "timeout": round(timeout)}
        if arguments[0] == "-m":
            request |= {"module": arguments[1], "arguments": arguments[2:]}
        with TemporaryDirectory() as folder:
            out, errors = Path(folder, "out"), Path(folder, "errors")
            answer = forks().ask(
                request | {"log": str(out), "errors": str(errors), "environment": os.environ | environment}
            )
            if answer["status"] == -SIGALRM:
                raise subprocess.TimeoutExpired(arguments, timeout, out.read_text(), errors.read_text())
            return subprocess.CompletedProcess(arguments, answer["status"], out.read_text(), errors.read_text())

    def run(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        known = arguments[0] == "train.py" or arguments[:2] == ("-m", "cnnlab")
        if known and environment.keys() <= {"COLUMNS", "CNNLAB_CACHE"} and current_thread() is main_thread():
            return forked(arguments, timeout, environment)
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


@pytest.fixture
def own_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes `tmp_path` a project: own_options("own", "source of a module", {"model/mine": "text of an option"})."""
    made = list[str]()

    def make(module: str, source: str, options: Mapping[str, str]) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        for name, text in options.items():
            file = tmp_path / "conf" / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))
        monkeypatch.syspath_prepend(str(tmp_path))
        made.append(module)

    yield make
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Do what `cnnlab WORDS...` does, without another start of Python."""
    from cnnlab import cli

    def do(*words: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["cnnlab", *map(str, words)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return do


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of real CIFAR-10 pictures: train/<class>/*.jpg, test/<class>/*.jpg."""
    if not PICTURES.endswith(".tar.gz"):
        return Path(PICTURES)
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "pictures"
    with lock_file(folder.with_suffix(".lock")):  # one worker extracts them for all
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            partial.mkdir()
            subprocess.run(["tar", "-xzf", PICTURES, "-C", partial], check=True)  # ten times as fast as tarfile
            partial.rename(folder)
    return folder


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from zygote import Zygote  # takes torch, which most tests leave to the processes that they start

    made = Zygote(tmp_path_factory.mktemp("zygote"))
    yield made
    made.process.communicate()
