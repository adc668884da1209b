"""The files of a run directory appear whole or not at all, and one process owns them."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from errno import EDQUOT, EINVAL, ENOLCK, EPERM

import numpy as np
import pytest
from conftest import ROOT

from cnnlab.report.runs import find
from cnnlab.runs import provenance
from cnnlab.runs.directory import BusyError, RunDirectory
from cnnlab.runs.files import atomic_path, write_text
from cnnlab.runs.log import log, logged
from cnnlab.runs.provenance import AFTERWARDS
from cnnlab.runs.readers import open_regular
from cnnlab.runs.wording import advice, reason


def test_what_a_thread_cannot_write_is_one_line(tmp_path, capsys):
    """TensorBoard's own thread, say, in a directory that was removed."""

    def fails() -> None:
        raise FileNotFoundError(2, "No such file or directory", "events")

    with logged(tmp_path):
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
    found = capsys.readouterr()
    assert found.out == "A thread ended: FileNotFoundError: [Errno 2] No such file or directory: 'events'\n"
    assert found.err == ""


def test_a_log_that_is_a_fifo_is_left_alone(tmp_path, capsys):
    """Opening it would wait for somebody who reads it."""
    os.mkfifo(tmp_path / "train.log")
    with logged(tmp_path):
        log.info("epoch 1")
    assert capsys.readouterr().out == "epoch 1\n"


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


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    with atomic_path(tmp_path / "model.onnx") as partial:
        partial.write_text("half")
        left = partial.with_name(f".model.onnx.{2**22 + 1}-0a.partial")  # more than there are processes
        left.write_text("half")
        with RunDirectory(tmp_path).owned():
            assert (partial.exists(), left.exists()) == (True, False)


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_umask_decides_who_may_read_a_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


WITHOUT = ROOT / "tests" / "without.py"


@pytest.mark.parametrize(("call", "error"), [("fsync", EINVAL), ("chmod", EPERM), ("flock", EINVAL)])
def test_file_systems_with_gaps_are_borne(tmp_path, call, error):
    code = (
        "import sys; from pathlib import Path; from cnnlab.runs.files import lock_file, write_text\n"
        "with lock_file(Path(sys.argv[1], 'lock')): write_text(Path(sys.argv[1], 'file'), 'text')"
    )
    words = [sys.executable, WITHOUT, call, str(error), "-c", code, tmp_path]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "file").read_text() == "text"


def test_what_was_not_written_is_not_taken_for_written(tmp_path):
    code = "from pathlib import Path; from cnnlab.runs.files import write_text; write_text(Path('file'), '')"
    words = [sys.executable, WITHOUT, "fsync", str(EDQUOT), "-c", code]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert f"[Errno {EDQUOT}]" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_text_is_utf8_in_any_locale(tmp_path):
    """C with UTF-8 mode off has ASCII for its encoding, as the locales of one byte have theirs."""
    code = """if True:
        import locale
        from pathlib import Path
        from cnnlab.console import outlive_terminal
        from cnnlab.runs.directory import RunDirectory
        from cnnlab.runs.files import write_text
        from cnnlab.runs.log import log, logged
        assert locale.getencoding() == "ANSI_X3.4-1968"
        outlive_terminal()
        write_text(Path("text"), "caf\\xe9 \\u732b \\udce9")
        with logged(Path()):
            log.info("\\u732b \\udce9")
        """
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == "猫 \\udce9\n".encode()
    assert (tmp_path / "text").read_bytes().decode() == "café 猫 \\udce9"
    assert (tmp_path / "train.log").read_bytes().decode().endswith("猫 \\udce9\n")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)


def test_predictions_may_have_a_larger_label_than_the_true_ones(tmp_path):
    run = RunDirectory(tmp_path)
    predicted, labels = np.array([299, 3, 256]), np.array([2, 3, 0])
    run.write_predictions(labels, predicted, np.ones(3))
    run.write_summary(INTERRUPTED | {"data": {"classes": [str(number) for number in range(300)]}})
    assert [values.tolist() for values in run.predictions()[:2]] == [predicted.tolist(), labels.tolist()]


INTERRUPTED = {"run": "run", "choices": {"optim": "sgd"}, "changes": {}, "seed": 0, "status": "interrupted"}


def test_metrics_and_summary_round_trip(tmp_path):
    run = RunDirectory(tmp_path)
    rows = [{"epoch": 1, "train/loss": 0.1 + 0.2}, {"epoch": 2, "train/loss": 1e-17, "test/acc": 0.5}]
    run.write_metrics(rows)
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


def test_archive_keeps_every_old_run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    for number in (1, 2):
        with run.owned():
            run.write_summary(INTERRUPTED | {"seed": number})
            run.archive()
    assert [RunDirectory(tmp_path / f"run.old{number}").summary()["seed"] for number in (1, 2)] == [1, 2]
    assert run.summary() == {}


@pytest.mark.parametrize("moved_before", range(6))
def test_killed_while_it_is_archived_a_run_is_in_one_piece_in_the_end(tmp_path, moved_before):
    """Killed after any of its renames, of which the last gives the archive its name."""
    run = RunDirectory(tmp_path / "run")
    run.write_summary({"number": 1})
    (run.path / ".lock").touch()
    for name in ("a.png", "checkpoints", "z.png"):
        (run.path / name).mkdir()
    script = f"""if True:
        import os, pathlib
        from cnnlab.runs.directory import RunDirectory
        rename, left = pathlib.Path.rename, {moved_before}
        def killed(path, target):
            global left
            if not left:
                os.kill(os.getpid(), 9)
            left -= 1
            rename(path, target)
        pathlib.Path.rename = killed
        RunDirectory(pathlib.Path({str(run.path)!r})).archive()"""
    killed = subprocess.run([sys.executable, "-c", script])
    assert killed.returncode == (-9 if moved_before < 5 else 0)
    assert run.half_archived == (moved_before < 5)
    if run.half_archived:
        assert not list(find([tmp_path])) or moved_before == 0  # no report takes half a run
        run.archive()
    assert sorted(path.name for path in run.path.iterdir()) == [".lock"]
    [aside] = tmp_path.glob("run.old*")
    assert sorted(path.name for path in aside.iterdir()) == ["a.png", "checkpoints", "summary.json", "z.png"]


def test_changes_of_the_source_have_new_files_too(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    for folder in ("package", "conf/logger", "notes"):
        (tmp_path / folder).mkdir(parents=True)
    old, new, data = (tmp_path / "package" / name for name in ("old.py", "new.py", "data.bin"))
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "package")
    assert provenance.source_changes() == ""
    old.write_text("x = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    assert provenance.source_changes() == ""
    old.write_text("x = 2\n")
    new.write_text("y = 3\n")
    data.write_text("z")
    for private in ("secrets.yaml", "notes/key.py", "conf/logger/mine.yaml"):
        (tmp_path / private).write_text("token: abc\n")
    patch = provenance.source_changes()
    assert "+x = 2" in patch
    assert "+y = 3" in patch
    assert "data.bin" not in patch
    assert "token" not in patch
    assert patch.startswith("Not included: 3 other changed or new files.\n")
    git("stash", "-q", "--include-untracked")
    subprocess.run(["git", "-C", tmp_path, "apply"], input=patch, text=True, check=True)
    assert (old.read_text(), new.read_text()) == ("x = 2\n", "y = 3\n")


DRIVER = """
import subprocess, sys
from pathlib import Path
from cnnlab.runs.directory import RunDirectory
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
from cnnlab.runs.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).owned(sys.argv[2]):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def test_one_process_owns_it_without_flock_too(tmp_path):
    """As on some network mounts; what a killed process leaves behind is in nobody's way."""

    def hold(on_busy, seconds):
        words = [
            sys.executable,
            WITHOUT,
            "flock",
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
    code = (
        "import sys, cnnlab.launch.job, cnnlab.train.run; print(*(m for m in sys.modules if m.startswith('cnnlab.')))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {f"{name.removeprefix('cnnlab.').replace('.', '/')}.py" for name in result.stdout.split()}
    assert "train/records.py" in imported
    assert [name for name in imported if name.startswith(AFTERWARDS) and not name.startswith("report/")] == []
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
    with logged(tmp_path):
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


def test_the_traceback_of_a_worker_is_left_to_the_log():
    caught = "Caught RuntimeError in worker 0.\nTraceback (most recent call last):\n  File x\n    ^^^\n"
    error = RuntimeError(f"{caught}RuntimeError: unable to allocate shared memory(shm): No space left\n: more\n")
    assert reason(error) == "RuntimeError: RuntimeError: unable to allocate shared memory(shm): No space left"
    assert "use data.num_workers=0" in advice(error)
    assert reason(ValueError("a\nb")) == "ValueError: a\nb"
    assert advice(ValueError("a")) == ""


def test_data_files_that_the_code_names_are_in_its_digest(tmp_path, monkeypatch):
    package = tmp_path / "lookup"
    (package / "data").mkdir(parents=True)
    (package / "networks.py").write_text('TABLE = Path(__file__).parent / "data/table.v1.json"\n')
    monkeypatch.syspath_prepend(tmp_path)

    def digest() -> str:
        return provenance.code_digest.__wrapped__(frozenset({"lookup.networks.Lookup"}))

    files = [package / "data" / name for name in ("table.v1.json", "notes.txt", "table.json")]
    known = [digest()]
    for text in ("1", "2"):
        for file in files:
            file.write_text(text)
            known.append(digest())
    assert [before != after for before, after in itertools.pairwise(known)] == [True, False, False] * 2
    monkeypatch.setattr(provenance, "LARGEST", 0)
    assert digest() == known[0]
