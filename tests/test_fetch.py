"""Fetching CIFAR-10 from a local https server that can stall, break off, refuse, lie or know no ranges.

The server's certificate is signed by an authority of these tests, which SSL_CERT_FILE makes other processes trust. The
archives are pickled as the official one is, which Python 2 wrote.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import signal
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import ENOLCK, ENOSYS
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trustme
from conftest import ROOT, Command
from PIL import Image

from cnnlab.config.options import UserError
from cnnlab.data import download
from cnnlab.data.cifar import CIFAR10
from cnnlab.data.images import cached_data

[ARCHIVE] = CIFAR10.files
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WAYS_OUT = ("cnnlab fetch", f"copy {ARCHIVE} to", "data=image_folder", "data=shapes")


# ------------------------------------------------------------------------------------------------------- archives


class Python2Pickler(pickle._Pickler):
    """Text as byte strings, NumPy's functions under their old address: what pickles of Python 2 look like."""

    def save_text(self, text: str | bytes) -> None:
        content = text.encode() if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)

    dispatch = pickle._Pickler.dispatch | {str: save_text, bytes: save_text}

    def save_global(self, function: Any, name: str | None = None) -> None:
        module = function.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{name or function.__name__}\n".encode())


def python2(content: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


@dataclass
class Part:
    """Training or test images. pixels: (N, 32, 32, 3) uint8; labels: (N,) int64."""

    pixels: np.ndarray
    labels: np.ndarray


def random_part(num: int, seed: int) -> Part:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
    return Part(pixels, generator.permutation(np.arange(num) % len(CLASSES)))


def pack(train: Part, test: Part, pickled: Callable[[Any], bytes] = python2, **replaced: bytes) -> bytes:
    """The archive of these images: files in the official order; `replaced` has other contents for some of them."""

    def batch(pixels: np.ndarray, labels: np.ndarray) -> bytes:
        rows = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).reshape(len(pixels), 3072)
        return pickled({b"batch_label": b"a batch", b"labels": labels.tolist(), b"data": rows})

    files = {"test_batch": batch(test.pixels, test.labels)}
    names = [name.encode() for name in CLASSES]
    files["batches.meta"] = pickled({b"num_cases_per_batch": 10_000, b"label_names": names, b"num_vis": 3072})
    batches = zip(np.array_split(train.pixels, 5), np.array_split(train.labels, 5), strict=True)
    files |= {f"data_batch_{number}": batch(*arrays) for number, arrays in enumerate(batches, start=1)}
    files |= replaced
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for name in sorted(files, key="data_batch_4 test_batch data_batch_3 batches.meta data_batch_2".find):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return packed.getvalue()


TRAIN, TEST = random_part(500, seed=0), random_part(100, seed=1)


@pytest.fixture(scope="module")
def small() -> bytes:
    """An archive of 500 and 100 random images."""
    return pack(TRAIN, TEST)


# --------------------------------------------------------------------------------------------------------- server


class Server(ThreadingHTTPServer):
    """Serves one archive, whatever path is asked for, but for files that have other contents.

    Attributes:
        content: the archive.
        files: contents by name.
        faults: path -> what goes wrong at the first, second, ... request for it; the last one goes on.
        requests: path and Range header of every request.
    """

    def __init__(self, content: bytes, authority: trustme.CA):
        super().__init__(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.content = content
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"https://localhost:{self.server_port}{path}"

    def overrides(self, *paths: str) -> list[str]:
        """What to type for the archive at these addresses."""
        digest = hashlib.sha256(self.content).hexdigest()
        return [f"data.sha256={digest}", f"data.sources=[{','.join(self.url(path) for path in paths)}]"]

    def source(self, *paths: str, timeout: float = 30.0) -> CIFAR10:
        """The same, in this process."""
        digest = hashlib.sha256(self.content).hexdigest()
        return CIFAR10([self.url(path) for path in paths], digest, os.environ["CNNLAB_CACHE"], timeout)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client may leave at any time
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        faults = self.server.faults.get(self.path, ["none"])
        fault = faults.pop(0) if len(faults) > 1 else faults[0]
        asked, content = self.headers["Range"], self.server.files.get(Path(self.path).name, self.server.content)
        self.server.requests.append((self.path, asked))
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and fault != "no_ranges" else 0
        if fault == "silent":
            self.wait()
        if fault in ("busy", "missing"):
            self.send_error({"busy": 503, "missing": 404}[fault])
        elif fault.startswith("http"):
            self.answer(302, Location=fault)
        elif start >= len(content):
            self.answer(416)
        else:
            body = content[start:]
            if fault == "other_range":
                body = content[: len(body)]
            if fault == "wrong_byte":
                body = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]
            self.answer(206 if start else 200, **{"Content-Length": str(len(body))})
            half = len(body) // 2
            self.wfile.write(body[:half])
            if fault == "stall":
                self.wait()
            if fault != "cut":
                self.wfile.write(body[half:])

    def wait(self) -> None:
        """Until the client gives up; one that never does gets what it asked for."""
        self.connection.settimeout(20)
        with contextlib.suppress(TimeoutError):
            self.connection.recv(1)

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(small: bytes, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server, running and trusted."""
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    with Server(small, authority) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait before another attempt."""
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The folder that archive and arrays go to."""
    return tmp_path / "cache" / "cifar10"


def kept(cache: Path) -> list[str]:
    """What is in the cache, but for locks."""
    return sorted(file.name for file in cache.glob("*") if file.suffix != ".lock")


def assert_same(file: Path, train: Part, test: Part) -> None:
    """The converted arrays are these, and reading them unpickles nothing."""
    data = cached_data(file, lambda: pytest.fail("it is not in the cache"))
    for images, part in ((data.train, train), (data.test, test)):
        assert images.pixels.dtype == np.uint8
        assert np.array_equal(images.pixels.transpose(0, 2, 3, 1), part.pixels)
        assert images.targets.dtype == np.int64
        assert np.array_equal(images.targets, part.labels)
        assert images.classes == CLASSES


def assert_refused(result: subprocess.CompletedProcess[str], *phrases: str) -> None:
    """Exit status 2, and one paragraph with these phrases."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("cnnlab: ")
    assert result.stderr.count("\n") == 1
    for phrase in phrases:
        assert phrase in result.stderr


# ---------------------------------------------------------------------------------------- fetched, converted, kept


def test_fetch_verifies_converts_and_asks_once(server: Server, command: Command, cache: Path) -> None:
    first = command("-m", "cnnlab", "fetch", *server.overrides("/x.tar.gz"))
    assert first.returncode == 0, first.stderr
    assert "500 training images of 32x32x3 in 10 classes" in first.stdout
    assert "100 test images of 32x32x3 in 10 classes" in first.stdout
    digest = hashlib.sha256(server.content).hexdigest()
    assert kept(cache) == sorted([ARCHIVE, f"{digest[:32]}.images"])
    assert (cache / ARCHIVE).read_bytes() == server.content
    assert_same(cache / f"{digest[:32]}.images", TRAIN, TEST)

    second = command("-m", "cnnlab", "fetch", *server.overrides("/x.tar.gz"))
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert second.stdout.splitlines()[-1].startswith("fingerprint ")
    assert server.requests == [("/x.tar.gz", None)]


def test_load_returns_what_was_put_in(server: Server) -> None:
    """Pixels (N, C, H, W), the same from the archive and from the cache."""
    source = server.source("/x.tar.gz")
    for data in (source.load(), source.load()):
        for images, part in ((data.train, TRAIN), (data.test, TEST)):
            assert images.classes == CLASSES
            assert np.array_equal(images.pixels, part.pixels.transpose(0, 3, 1, 2))
            assert np.array_equal(images.targets, part.labels)


@pytest.mark.parametrize("flock", [0, ENOLCK, ENOSYS])
def test_eight_processes_download_once(
    flock: int, server: Server, command: Command, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With flock, and without it, as on some network mounts; a copy for this machine is made once too."""
    monkeypatch.setenv("CNNLAB_NODE_DIR", str(tmp_path / "node"))
    words = ["-m", "cnnlab", "fetch", *server.overrides("/x.tar.gz")]
    if flock:
        words = [str(ROOT / "tests" / "without.py"), "flock", str(flock), *words]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: command(*words), range(8)))
    assert [result.returncode for result in results] == [0] * 8, results[0].stderr
    assert len({result.stdout.splitlines()[-1] for result in results}) == 1
    assert server.requests == [("/x.tar.gz", None)]
    [original], [copy] = cache.glob("*.images"), (tmp_path / "node").glob("*.images")
    assert_same(original, TRAIN, TEST)
    assert copy.read_bytes() == original.read_bytes()


@pytest.mark.parametrize("protocol", [2, 4])
def test_archives_pickled_by_python_3_are_read_too(protocol: int, tmp_path: Path) -> None:
    archive = tmp_path / ARCHIVE
    archive.write_bytes(pack(TRAIN, TEST, pickled=lambda content: pickle.dumps(content, protocol)))
    train, test = CIFAR10.read(archive)
    for images, part in ((train, TRAIN), (test, TEST)):
        assert np.array_equal(images.pixels, part.pixels.transpose(0, 3, 1, 2))
        assert np.array_equal(images.targets, part.labels)


# ------------------------------------------------------------------------------------------------------ bad servers

REASONS = {
    "silent": "timed out",
    "stall": "timed out",
    "cut": "broke off after",
    "busy": "answered 503",
    "missing": "answered 404",
    "wrong_byte": "its content has the SHA-256",
    "http://localhost/x.tar.gz": "redirects to http://localhost/x.tar.gz, which is not https",
}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("fault", REASONS)
def test_the_second_source_is_used_when_the_first_is_bad(fault: str, server: Server, cache: Path) -> None:
    server.faults = {"/bad": [fault]}
    archive = server.source("/bad", "/good", timeout=0.5).fetch()[0]
    assert archive == cache / ARCHIVE
    assert archive.read_bytes() == server.content
    assert {path for path, _ in server.requests} == {"/bad", "/good"}


def test_all_sources_bad_then_mended(server: Server, command: Command, cache: Path) -> None:
    """One paragraph with every source, its reason and the ways out; nothing half done; the next try works."""
    bad = ("stall", "cut", "busy", "wrong_byte")
    server.faults = {f"/{fault}": [fault] for fault in bad}
    words = (*server.overrides(*server.faults), "data.timeout=1")
    failed = command("-m", "cnnlab", "fetch", *words)
    assert_refused(failed, *WAYS_OUT, *(f"{server.url(f'/{fault}')}: {REASONS[fault]}" for fault in bad))
    assert "Traceback" not in failed.stdout
    assert all(name.endswith(".part") for name in kept(cache))

    server.faults = {}
    assert command("-m", "cnnlab", "fetch", *words).returncode == 0
    assert (cache / ARCHIVE).read_bytes() == server.content
    assert_same(next(cache.glob("*.images")), TRAIN, TEST)


def test_training_without_data_is_refused_and_leaves_no_run(server: Server, command: Command, tmp_path: Path) -> None:
    server.faults = {"/x.tar.gz": ["missing"]}
    result = command("train.py", *server.overrides("/x.tar.gz"))
    assert_refused(result, *WAYS_OUT, f"{server.url('/x.tar.gz')}: answered 404")
    assert not list(tmp_path.glob("outputs/*/*"))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("fault", ["cut", "missing", "wrong_byte"])
def test_a_source_that_was_bad_is_good_once_mended(fault: str, server: Server, cache: Path) -> None:
    server.faults = {"/x": [fault]}
    source = server.source("/x")
    with pytest.raises(UserError, match=REASONS[fault]):
        source.fetch()[0]
    assert not (cache / ARCHIVE).exists()
    server.faults = {}
    assert source.fetch()[0].read_bytes() == server.content
    assert kept(cache) == [ARCHIVE]


# ----------------------------------------------------------------------------------------------------------- resume


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("then", ["none", "no_ranges"])
def test_a_transfer_that_was_cut_off_goes_on(then: str, server: Server, cache: Path) -> None:
    """The rest is asked for; a server without ranges sends everything again, which is right too."""
    server.faults = {"/x": ["cut", then]}
    assert server.source("/x").fetch()[0].read_bytes() == server.content
    assert server.requests == [("/x", None), ("/x", f"bytes={len(server.content) // 2}-")]
    assert kept(cache) == [ARCHIVE]


def test_killed_in_mid_download_resumes(server: Server, command: Command, cache: Path) -> None:
    """SIGKILL leaves nothing under the final name, holds no lock, and costs only what was not yet written."""
    server.faults = {"/x": ["stall", "none"]}
    arguments = ("-m", "cnnlab", "fetch", *server.overrides("/x"))
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None and not any(part.stat().st_size for part in cache.glob("*.part")):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (part,) = kept(cache)
    assert part.startswith(f"{ARCHIVE}.")
    assert part.endswith(".part")
    size = (cache / part).stat().st_size
    assert 0 < size <= len(server.content) // 2

    assert command(*arguments).returncode == 0
    assert server.requests == [("/x", None), ("/x", f"bytes={size}-")]
    assert (cache / ARCHIVE).read_bytes() == server.content
    assert_same(next(cache.glob("*.images")), TRAIN, TEST)


def leave_part(server: Server, cache: Path, content: bytes) -> None:
    """Leave this content as if a download from /x had been killed there."""
    server.faults = {"/x": ["cut", "missing"]}
    with contextlib.suppress(UserError):
        server.source("/x").fetch()[0]
    (part,) = cache.glob("*.part")
    part.write_bytes(content)
    server.faults, server.requests = {}, []


@pytest.mark.usefixtures("at_once")
def test_a_complete_part_is_not_downloaded_again(server: Server, cache: Path) -> None:
    """Killed between the last byte and the renaming: the server has nothing to add (416)."""
    leave_part(server, cache, server.content)
    assert server.source("/x").fetch()[0].read_bytes() == server.content
    assert server.requests == [("/x", f"bytes={len(server.content)}-")]
    assert kept(cache) == [ARCHIVE]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("length", ["shorter", "as_long", "longer"])
def test_a_part_of_another_file_costs_at_most_one_try(length: str, server: Server, cache: Path) -> None:
    """What the server's file was before it changed, or what a disk made of it, never ends in the archive."""
    num_bytes = len(server.content) + {"shorter": -1000, "as_long": 0, "longer": 1000}[length]
    leave_part(server, cache, b"\0" * num_bytes)
    with contextlib.suppress(UserError):
        server.source("/x").fetch()[0]
    assert server.source("/x").fetch()[0].read_bytes() == server.content
    assert kept(cache) == [ARCHIVE]


@pytest.mark.usefixtures("at_once")
def test_another_range_than_was_asked_for_costs_at_most_one_try(server: Server, cache: Path) -> None:
    server.faults = {"/x": ["cut", "other_range", "none"]}
    with contextlib.suppress(UserError):
        server.source("/x").fetch()[0]
    assert server.requests[1] == ("/x", f"bytes={len(server.content) // 2}-")
    assert server.source("/x").fetch()[0].read_bytes() == server.content
    assert kept(cache) == [ARCHIVE]


# ------------------------------------------------------------------------------------------------------- only https


def test_http_is_refused(server: Server, command: Command, cache: Path) -> None:
    address = f"http://localhost:{server.server_port}/x"
    digest = server.overrides()[0]
    result = command("-m", "cnnlab", "fetch", digest, f"data.sources=[{server.url('/x')},{address}]")
    assert_refused(result, address, "only https://")
    assert server.requests == []
    assert not cache.exists()


@pytest.mark.parametrize("address", ["ftp://localhost/x", "file:///etc/hostname", "//localhost/x", "localhost/x"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="only https://"):
        CIFAR10([address], "0" * 64, "cache")


@pytest.mark.usefixtures("at_once")
def test_a_redirect_is_followed_to_https_alone(server: Server, cache: Path) -> None:
    """Even to the same server; and the range that was asked for goes along."""
    server.faults = {"/moved": [server.url("/x")], "/x": ["cut", "none"]}
    assert server.source("/moved").fetch()[0].read_bytes() == server.content
    half = f"bytes={len(server.content) // 2}-"
    assert server.requests == [("/moved", None), ("/x", None), ("/moved", half), ("/x", half)]

    (cache / ARCHIVE).unlink()
    server.requests = []
    server.faults = {"/moved": [server.url("/x").replace("https://", "http://")]}
    with pytest.raises(UserError, match="which is not https"):
        server.source("/moved").fetch()[0]
    assert server.requests == [("/moved", None)]
    assert kept(cache) == []


@pytest.mark.usefixtures("at_once")
def test_a_server_that_cannot_prove_its_name_is_refused(
    server: Server, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither another host's certificate nor one of an unknown authority is good enough."""
    source = server.source("/x")
    source.sources = [source.sources[0].replace("localhost", "127.0.0.1")]
    with pytest.raises(UserError, match=r"certificate verify failed.*127\.0\.0\.1"):
        source.fetch()[0]
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "another.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "another.pem"))
    with pytest.raises(UserError, match="certificate verify failed"):
        server.source("/x").fetch()[0]
    assert server.requests == []
    assert kept(cache) == []


# ----------------------------------------------------------------------------------------------- archives by hand


def test_an_archive_that_cannot_be_locked_is_used(server: Server, cache: Path) -> None:
    """As in a folder that is read-only; nothing can be written there, so nothing is kept."""
    cache.mkdir(parents=True)
    (cache / ARCHIVE).write_bytes(server.content)
    (cache / f"{ARCHIVE}.lock").mkdir()
    (cache / f"{server.source('/x').prepared.name}.lock").mkdir()
    assert np.array_equal(server.source("/x").load().train.targets, TRAIN.labels)
    assert server.requests == []


def test_a_pipe_in_place_of_the_archive_is_refused(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    os.mkfifo(cache / ARCHIVE)
    with pytest.raises(UserError, match="cannot be read"):
        server.source("/x").load()


def test_a_folder_for_the_archive_that_cannot_be_made_is_named(server: Server, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.touch()
    with pytest.raises(UserError, match=f"The folder {cache} cannot be created"):
        server.source("/x").load()


def test_an_archive_put_there_by_hand_is_used_without_a_request(server: Server, command: Command, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ARCHIVE).write_bytes(server.content)
    result = command("-m", "cnnlab", "fetch", *server.overrides("/x"))
    assert result.returncode == 0, result.stderr
    assert server.requests == []
    assert_same(next(cache.glob("*.images")), TRAIN, TEST)


def test_a_wrong_archive_put_there_by_hand_is_refused_and_left_alone(
    server: Server, command: Command, cache: Path
) -> None:
    """The message names the file, both hashes, and what to type if it is meant."""
    cache.mkdir(parents=True)
    wrong = server.content[:-1]
    (cache / ARCHIVE).write_bytes(wrong)
    result = command("-m", "cnnlab", "fetch", *server.overrides("/x"))
    expected, found = (hashlib.sha256(content).hexdigest() for content in (server.content, wrong))
    assert_refused(result, str(cache / ARCHIVE), f"expected {expected}", f"data.sha256={found}")
    assert server.requests == []
    assert kept(cache) == [ARCHIVE]
    assert (cache / ARCHIVE).read_bytes() == wrong


# --------------------------------------------------------------------------------------------------- hostile archives


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


PAYLOADS = {
    "system": Payload(os.system, "touch executed"),
    "eval": Payload(eval, "open('executed', 'w').close()"),
    "numpy": Payload(np.savetxt, "executed", [0]),
    "path": Payload(os.mkdir, "executed"),
}


@pytest.mark.parametrize("file", ["batches.meta", "data_batch_1", "test_batch"])
@pytest.mark.parametrize("name", PAYLOADS)
def test_no_code_in_a_pickle_is_executed(name: str, file: str, tmp_path: Path) -> None:
    """Though pickle itself would: seen first."""
    payload = pickle.dumps({b"label_names": PAYLOADS[name], b"data": PAYLOADS[name]}, protocol=2)
    executed = tmp_path / "executed"
    pickle.loads(payload)
    assert executed.exists()
    executed.rename(tmp_path / "seen")
    archive = tmp_path / ARCHIVE
    archive.write_bytes(pack(TRAIN, TEST, **{file: payload}))
    with pytest.raises((pickle.UnpicklingError, UserError), match="has no place in a file of images"):
        CIFAR10.read(archive)
    assert not executed.exists()


def test_a_hostile_archive_with_the_hash_that_was_typed_executes_nothing(
    server: Server, command: Command, cache: Path, tmp_path: Path
) -> None:
    """Not even the user's own word for it makes us call what a pickle names; nothing is converted."""
    server.content = pack(TRAIN, TEST, data_batch_1=pickle.dumps({b"data": PAYLOADS["system"]}, protocol=2))
    result = command("-m", "cnnlab", "fetch", *server.overrides("/x"))
    assert result.returncode != 0
    assert "system has no place in a file of images" in result.stderr
    assert not (tmp_path / "executed").exists()
    assert kept(cache) == [ARCHIVE]


def test_files_of_an_archive_are_not_written_to_disk(server: Server, cache: Path, tmp_path: Path) -> None:
    server.content = pack(TRAIN, TEST, **{"../../../outside": b"written"})
    server.source("/x").load()
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == []
    assert not list(tmp_path.rglob("outside"))
    assert not (tmp_path.parent / "outside").exists()


def test_a_pickle_in_the_cache_is_not_executed(server: Server, cache: Path, tmp_path: Path, caplog: Any) -> None:
    server.source("/x").load()
    (file,) = cache.glob("*.images")
    hostile = io.BytesIO()
    for _ in range(6):
        np.save(hostile, np.array([PAYLOADS["system"]], dtype=object))
    digest = hashlib.sha256(file.name.encode() + b"\0" + hostile.getvalue()).hexdigest()  # by somebody who knows how
    file.write_bytes(f"{digest}\n".encode() + hostile.getvalue())
    assert np.array_equal(server.source("/x").load().train.targets, TRAIN.labels)
    assert "allow_pickle=False" in caplog.text
    assert not (tmp_path / "executed").exists()


# ------------------------------------------------------------------------------------------------------ real pictures


def decode(folder: Path) -> Part:
    """The pictures of one part in a random order, as in the official archive."""
    files = [(file, label) for label, name in enumerate(CLASSES) for file in sorted((folder / name).glob("*.jpg"))[::5]]
    order = np.random.default_rng(0).permutation(len(files))
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(lambda index: np.asarray(Image.open(files[index][0])), order)))
    return Part(pixels, np.array([files[index][1] for index in order]))


@pytest.mark.pictures
def test_the_real_pictures_are_fetched_and_trained_on(
    server: Server, command: Command, cache: Path, pictures: Path, tmp_path: Path
) -> None:
    """A fifth of them, packed as the archive is, arrive pixel by pixel, and a run trains without asking again."""
    train, test = decode(pictures / "train"), decode(pictures / "test")
    server.content = pack(train, test)
    overrides = server.overrides("/cifar-10-python.tar.gz")
    fetched = command("-m", "cnnlab", "fetch", *overrides)
    assert fetched.returncode == 0, fetched.stderr
    assert "10,000 training images of 32x32x3 in 10 classes" in fetched.stdout
    assert "2,000 test images of 32x32x3 in 10 classes" in fetched.stdout
    assert_same(next(cache.glob("*.images")), train, test)

    words = ("data=cifar10", "trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=20", *overrides)
    trained = command("train.py", *words)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    (file,) = tmp_path.glob("outputs/runs/*/summary.json")
    summary = json.loads(file.read_text())
    assert summary["status"] == "done"
    assert [summary["data"][key] for key in ("num_train", "num_held_out", "num_test")] == [9_000, 1_000, 2_000]
    assert f"fingerprint {summary['data']['fingerprint']}" in fetched.stdout
    assert len(server.requests) == 1
