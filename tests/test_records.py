"""The files of a run directory appear whole or not at all, and one process owns them."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from errno import ENOLCK
from pathlib import Path

import pytest
from conftest import ROOT

from cnnlab import records
from cnnlab.records import AFTERWARDS, BusyError, RunDirectory, atomic_path, log, write_text


def test_a_file_appears_when_its_writing_succeeded(tmp_path):
    target = tmp_path / "file"
    write_text(target, "old")

    def fail_half_way() -> None:
        with atomic_path(target) as partial:
            partial.write_text("half")
            assert target.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def keep_writing(path):
    for number in range(10**9):
        write_text(path, f"{number} " * 100_000)


def test_killed_while_writing_leaves_a_whole_file(tmp_path):
    target = tmp_path / "file"
    for wait in (0.01, 0.03, 0.07):
        writer = multiprocessing.get_context("fork").Process(target=keep_writing, args=(target,))
        writer.start()
        while not target.exists():
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        words = target.read_text().split()
        assert len(words) == 100_000
        assert len(set(words)) == 1


INTERRUPTED = {"run": "run", "choices": {"optim": "sgd"}, "changes": {}, "seed": 0, "status": "interrupted"}


def test_metrics_and_summary_round_trip(tmp_path):
    run = RunDirectory(tmp_path)
    rows = [{"epoch": 1, "train/loss": 0.1 + 0.2}, {"epoch": 2, "train/loss": 1e-17, "test/acc": 0.5}]
    run.write_metrics(rows, ("epoch", "train/loss", "test/acc"))
    assert run.metrics() == rows
    assert run.summary() == {}
    run.write_summary(INTERRUPTED)
    assert run.summary() == json.loads((tmp_path / "summary.json").read_text()) == INTERRUPTED


def test_a_directory_without_a_summary_is_forgotten_and_nothing_else_is_removed(tmp_path):
    run = RunDirectory(tmp_path / "outputs" / "run")
    with run.owned():
        run.forget()
    assert not (tmp_path / "outputs").exists()
    run.write_summary({})
    run.forget()
    assert (run.path / "summary.json").exists()
    other = RunDirectory(tmp_path / "other")
    other.path.mkdir()
    (other.path / "thesis.tex").write_text("")
    other.forget()
    assert (other.path / "thesis.tex").exists()


def test_put_aside_keeps_every_old_run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    for number in (1, 2):
        with run.owned():
            run.write_summary(INTERRUPTED | {"seed": number})
            run.put_aside()
    assert [RunDirectory(tmp_path / f"run.old{number}").summary()["seed"] for number in (1, 2)] == [1, 2]
    assert run.summary() == {}


def test_killed_as_it_is_put_aside_a_run_has_still_its_summary(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    run.write_summary({"number": 1})
    for name in ("a.png", "checkpoints", "z.png"):
        (run.path / name).mkdir()
    moved = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: (moved.append(path.name), rename(path, target)))
    run.put_aside()
    assert len(moved) == 4
    assert moved[-1] == "summary.json"


def test_changes_of_the_source_have_new_files_too(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    (tmp_path / "package").mkdir()
    old, new, data = (tmp_path / "package" / name for name in ("old.py", "new.py", "data.bin"))
    monkeypatch.setattr(records, "__file__", str(old))
    assert records.source_changes() == ""
    old.write_text("x = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    assert records.source_changes() == ""
    old.write_text("x = 2\n")
    new.write_text("y = 3\n")
    data.write_text("z")
    patch = records.source_changes()
    assert "+x = 2" in patch
    assert "+y = 3" in patch
    assert "data.bin" not in patch
    git("stash", "-q", "--include-untracked")
    subprocess.run(["git", "-C", tmp_path, "apply"], input=patch, text=True, check=True)
    assert (old.read_text(), new.read_text()) == ("x = 2\n", "y = 3\n")


DRIVER = """
import subprocess, sys
from pathlib import Path
from cnnlab.records import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
with run.owned():
    words = [sys.executable, "-c", "input()"]
    child = subprocess.Popen(words, pass_fds=run.lock_descriptors, preexec_fn=lambda: None, stdin=subprocess.PIPE)
    print(child.pid, flush=True)
    input()
"""


def test_the_processes_of_a_killed_driver_hold_the_directory_till_they_end(tmp_path):
    words = [sys.executable, "-c", DRIVER, tmp_path]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        child = int(driver.stdout.readline())
        os.kill(child, signal.SIGSTOP)  # it is busy
        driver.kill()
    with pytest.raises(BusyError), RunDirectory(tmp_path).owned("fail"):
        pass
    os.kill(child, signal.SIGKILL)
    with RunDirectory(tmp_path).owned("wait"):
        pass


HOLD = """
import sys, time
from pathlib import Path
from cnnlab.records import RunDirectory
with RunDirectory(Path(sys.argv[1])).owned(sys.argv[2]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def test_one_process_owns_it_without_flock_too(tmp_path):
    """As on some network mounts; what a killed process leaves behind is in nobody's way."""

    def hold(on_busy, seconds):
        words = [
            sys.executable,
            ROOT / "tests" / "without_flock.py",
            str(ENOLCK),
            "-c",
            HOLD,
            tmp_path,
            on_busy,
            seconds,
        ]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = hold("fail", "60")
    assert first.stdout.readline() == "held\n"
    assert f"BusyError: {tmp_path} is in use by process {first.pid}" in hold("fail", "0").communicate(timeout=60)[1]
    waiting = hold("wait", "0")
    assert "waiting for it" in waiting.stdout.readline()
    first.kill()
    first.communicate()
    assert waiting.communicate(timeout=60)[0] == "held\n"
    assert waiting.returncode == 0


def test_the_digest_is_of_what_training_imports():
    code = "import sys, cnnlab.job, cnnlab.run; print(*(name for name in sys.modules if name.startswith('cnnlab.')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {f"{name.removeprefix('cnnlab.').replace('.', '/')}.py" for name in result.stdout.split()}
    assert "classifier.py" in imported
    assert imported.isdisjoint(AFTERWARDS)
    assert all((ROOT / "cnnlab" / name).exists() for name in AFTERWARDS)


def hold(path, held, release):
    with RunDirectory(path).owned():
        held.set()
        release.wait(30)


def test_a_second_process_waits_and_says_so(tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path, held, release))
    holder.start()
    held.wait(30)
    release_later = context.Process(target=lambda: (time.sleep(0.3), release.set()))
    release_later.start()
    with RunDirectory(tmp_path).owned():
        assert release.is_set()
    assert "in use by process" in capsys.readouterr().out
    holder.join()


def test_messages_go_to_the_terminal_and_to_the_log_tracebacks_to_the_log_alone(tmp_path, capsys):
    before = list(log.handlers)
    with RunDirectory(tmp_path).logged():
        log.info("hello")
        try:
            raise RuntimeError("broken")
        except RuntimeError as error:
            log.error("failed: %s", error, exc_info=True)
    log.info("after")
    assert capsys.readouterr().out == "hello\nfailed: broken\n"
    written = (tmp_path / "train.log").read_text()
    assert "Traceback" in written
    assert "after" not in written
    assert log.handlers == before
