"""A cache is a convenience: what it holds is verified, and what it cannot hold is made."""

import ctypes
import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_config import composed

from cnnlab.config.check import check
from cnnlab.config.options import UserError
from cnnlab.runs import cache

root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can act for another user; CI is root")


def entry(path: Path, content: bytes = b"made") -> tuple[bytes, bool]:
    """What the cache gives for a path, and whether it was made for that."""
    made = []
    value = cache.cached(
        path, lambda: made.append(1) or content, lambda value, file: file.write(value), lambda f: f.read()
    )
    return value, bool(made)


def test_made_once_and_read_afterwards(tmp_path):
    path = tmp_path / "new" / "entry"
    assert entry(path) == (b"made", True)
    assert entry(path, b"other") == (b"made", False)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "fifo":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    else:
        poisoned = content.replace(b"made", b"evil")
        path.write_bytes({"cut": content[:-1], "empty": b"", "text": b"hello", "poisoned": poisoned}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "text", "poisoned", "fifo", "folder"])
def test_what_is_not_what_was_written_is_named_set_aside_and_made_anew(tmp_path, caplog, how):
    path = tmp_path / "entry"
    entry(path)
    damage(path, how)
    assert entry(path) == (b"made", True)
    assert f"{path} " in caplog.text
    assert "is made again" in caplog.text
    assert (tmp_path / "entry.damaged").exists()
    assert entry(path) == (b"made", False)


def test_an_entry_is_bound_to_its_name(tmp_path):
    """A link in place of one file to another of the same user has the right owner, and a right digest of its own."""
    entry(tmp_path / "first", b"first")
    os.link(tmp_path / "first", tmp_path / "second")
    assert entry(tmp_path / "second", b"second") == (b"second", True)


def test_what_its_reader_refuses_is_made_anew(tmp_path):
    def read(file):
        if (content := file.read()) == b"of an older version":
            raise ValueError("unknown version")
        return content

    entry(tmp_path / "entry", b"of an older version")
    got = cache.cached(tmp_path / "entry", lambda: b"new", lambda value, file: file.write(value), read)
    assert got == b"new"


def test_an_entry_that_others_can_write_is_not_used(tmp_path):
    entry(tmp_path / "entry")
    assert (tmp_path / "entry").stat().st_mode & 0o022 == 0
    (tmp_path / "entry").chmod(0o664)
    assert entry(tmp_path / "entry", b"anew") == (b"anew", True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach and write to."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def as_user(uid: int, do: Callable[[], object]) -> object:
    """The result of a function in a process of another user."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def work() -> None:
        os.setgid(uid)
        os.setuid(uid)
        sender.send(do())

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
    return receiver.recv()


@root_only
def test_of_another_user_nothing_is_used_and_everybody_has_an_entry(open_folder):
    path = open_folder / "entry"
    assert as_user(20_001, lambda: entry(path, b"poisoned")) == (b"poisoned", True)
    assert as_user(20_002, lambda: entry(path)) == (b"made", True)
    assert as_user(20_002, lambda: entry(path)) == (b"made", False)
    assert as_user(20_001, lambda: entry(path)) == (b"poisoned", False)
    as_user(20_001, lambda: entry(open_folder / "20003-entry", b"forged"))
    assert as_user(20_003, lambda: entry(path)) == (b"made", True)


@root_only
def test_a_filled_cache_of_root_needs_no_right_to_write(open_folder, caplog):
    entry(open_folder / "cache" / "entry")
    assert as_user(20_001, lambda: (entry(open_folder / "cache" / "entry"), caplog.text)) == ((b"made", False), "")


def squashed(uid: int) -> None:
    """From now on files belong to another user when we make them, as on a network drive with root_squash."""
    ctypes.CDLL(None).setfsuid(uid)


@root_only
def test_a_file_system_that_gives_our_files_another_owner_keeps_them(open_folder):
    path = open_folder / "entry"

    def twice() -> list[tuple[bytes, bool]]:
        squashed(20_001)
        return [entry(path), entry(path, b"other")]

    assert as_user(0, twice) == [(b"made", True), (b"made", False)]
    assert path.stat().st_uid == 20_001
    assert entry(path, b"ours") == (b"ours", True)  # of another user, where owners are what they are


def test_where_others_can_write_every_file_nothing_is_kept(tmp_path, caplog, monkeypatch):
    anybodys = os.stat_result((0o100777, 0, 0, 1, os.getuid(), 0, 0, 0, 0, 0))
    monkeypatch.setattr(cache, "_status_of_new_file", lambda folder: anybodys)
    assert [entry(tmp_path / "entry") for _ in range(2)] == [(b"made", True)] * 2
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}
    assert "Other users can write every file" in caplog.text


@root_only
def test_what_cannot_be_cached_is_computed_and_used(open_folder, caplog):
    entry(open_folder / "cache" / "entry")
    assert as_user(20_001, lambda: entry(open_folder / "cache" / "other")) == (b"made", True)
    assert as_user(20_001, lambda: entry(open_folder / "cache" / "deeper" / "other")) == (b"made", True)
    (open_folder / "file").touch()
    assert entry(open_folder / "file" / "entry") == (b"made", True)
    assert "cannot be written to" in caplog.text


@root_only
@pytest.mark.parametrize("data", ["shapes", "cifar10", "image_folder data.root=/a"])
def test_without_a_home_every_data_set_is_refused_in_one_paragraph(open_folder, monkeypatch, data):
    """As in a container that runs as a user whom nobody knows."""

    def refused() -> str:
        try:
            check(composed(f"data={data.split()[0]}", *data.split()[1:]))
        except UserError as error:
            return str(error)
        return "not refused"

    monkeypatch.delenv("CNNLAB_CACHE")
    monkeypatch.delenv("HOME")
    assert "cannot be expanded" in as_user(54_321, refused)
    monkeypatch.setenv("HOME", "/")
    assert "The folder /.cache/cnnlab cannot be created (Permission denied). Set cache_dir=" in as_user(54_321, refused)
    monkeypatch.setenv("CNNLAB_CACHE", "")
    assert "cache_dir is empty" in refused()
    monkeypatch.setenv("CNNLAB_CACHE", str(open_folder))
    assert "cache" not in as_user(54_321, refused)


def test_a_full_disk_costs_the_entry_only(caplog):
    full = Path("/dev/full")

    def write(value: bytes, file) -> None:
        with open(full, "wb", buffering=0) as disk:
            disk.write(value)

    path = Path("cache", "entry").absolute()
    with caplog.at_level(logging.WARNING):
        assert cache.cached(path, lambda: b"made", write, lambda file: file.read()) == b"made"
    assert "No space left on device" in caplog.text
    assert [name for name in os.listdir(path.parent) if "lock" not in name] == []


def keep_writing(path: Path) -> None:
    cache.cached(path, lambda: b"x", lambda value, file: (file.write(value), file.flush(), time.sleep(60)), None)


def test_what_a_killed_writer_leaves_is_removed_by_the_next(tmp_path):
    writer = multiprocessing.get_context("fork").Process(target=keep_writing, args=(tmp_path / "entry",))
    writer.start()
    while not list(tmp_path.glob(".entry.*.partial")):
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert entry(tmp_path / "entry") == (b"made", True)
    assert {path.name for path in tmp_path.iterdir()} <= {"entry", "entry.lock"}
