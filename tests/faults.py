"""Runs train.py in processes to which something happens at a given point: for the most part, they kill themselves with
SIGKILL, as if someone had typed kill -9.

`python faults.py` imports everything once and forks a process for every line on its standard input, so that hundreds of
runs take seconds each: {"arguments": [...], "faults": [["step", 7, "SIGKILL"]], "log": FILE}. It answers with
{"status": ..., "counts": {...}}: the exit status, negative for a signal, and how often each point was passed. With
"module", `python -m MODULE ARGUMENTS` is run instead of train.py; with "errors", standard error has a file of its own,
and the environment is whole; "timeout" kills the process after that many seconds.

Points: "step" (a training step), "validation" (a step of an evaluation), "write" (a checkpoint, when half of it is
written), "rename" (before a file gets its name, any file), "renamed" (after it), "NAME" (before that file gets its
name). A fault is a point, the number of times that it is passed before something happens, and what happens: a signal
("late SIGTERM": a second later; "racing SIGKILL": while earlier checkpoints may still be on their way to the disk),
"exit" (sys.exit), "memory" (torch is out of it), "gpu" (a CUDA error, after which every step of this process fails),
"nan" (the weights are no numbers any more), "hang up" (the terminal is closed, or the reader of the pipe ends; see
`print_to`), "remove" (the current folder, with all runs in it). From the start, at no point: "forget" (random states
are not restored), "nohup" (SIGHUP is ignored), "graph" (a CUDA graph is thought to be possible, and its replay is the
recorded function, called again on what was recorded: all but the recording itself is real), "no graph" (the same, and
the recording fails).
"""

import fcntl
import importlib
import json
import os
import pty
import runpy
import select
import shutil
import signal
import sys
import termios
import time
import traceback
from collections import Counter
from pathlib import Path
from threading import Event, Thread

ROOT = Path(__file__).parent.parent
POINTS = ("step", "validation", "write", "rename", "renamed")


def install(faults: list[list], counts: Counter) -> None:
    """Count the points, and let things happen at some of them."""
    import torch

    import cnnlab.train.graph
    import cnnlab.train.graphable
    from cnnlab.train.checkpoint import CheckpointFiles
    from cnnlab.train.classifier import Classifier

    networks: list = []
    files: list = []
    lost: list = []

    def happens(point: str) -> str:
        counts[point] += 1
        return next((what for where, number, what in faults if (where, number) == (point, counts[point])), "")

    def let_happen(what: str) -> None:
        what = what.removeprefix("racing ")
        if what.startswith("late "):
            time.sleep(1.1)
            what = what.removeprefix("late ")
        if what.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, what))
        elif what == "exit":
            sys.exit(3)
        elif what == "hang up":
            hang_up.set()
            reading.join()
        elif what == "remove":
            shutil.rmtree(os.getcwd())
        elif what == "nan":
            for weights in networks[-1].parameters():
                weights.data.fill_(float("nan"))
        elif what == "memory":
            raise torch.OutOfMemoryError("so much is not there")
        elif what == "gpu":
            lost.append(True)

    def passed(point: str) -> bool:
        what = happens(point)
        let_happen(what)
        return bool(what)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(function, point: str):
        def wrapped(*arguments):
            networks.append(arguments[0])
            what = happens(point)
            if what and files and not what.startswith("racing "):
                files[-1].wait()
            let_happen(what)
            if lost:
                raise torch.AcceleratorError("CUDA error: device-side assert triggered")
            return function(*arguments)

        return wrapped

    save_checkpoint = CheckpointFiles.save_checkpoint

    def saved(self, *arguments, **named):
        files.append(self)
        save_checkpoint(self, *arguments, **named)

    CheckpointFiles.save_checkpoint = saved
    for kind in (Classifier, cnnlab.train.graph.GraphedSteps):
        replayable = hasattr(kind.training_step, "replayable")
        kind.training_step = counted(kind.training_step, "step")
        if replayable:
            kind.training_step.replayable = True
    Classifier.validation_step = counted(Classifier.validation_step, "validation")
    write_bytes, replace = Path.write_bytes, Path.replace

    def half_written(path: Path, content) -> int:
        if happens("write"):
            write_bytes(path, content[: len(content) // 2])
            die()
        return write_bytes(path, content)

    def renamed(path: Path, target) -> Path:
        passed("rename")
        passed(Path(target).name)
        result = replace(path, target)
        passed("renamed")
        return result

    Path.write_bytes, Path.replace = half_written, renamed
    if any(what == "forget" for _, _, what in faults):  # the negative control
        cnnlab.train.epoch_state.restore_random_states = lambda states: None
    if any(what == "nohup" for _, _, what in faults):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if graph := [what for _, _, what in faults if "graph" in what]:
        cnnlab.train.graphable.unsupported = lambda *of_the_run: ""
        cnnlab.train.graph.capture = called_again if graph == ["graph"] else not_recorded


def called_again(work):
    """What stands in for a recording: it reads and writes the same memory every time, or fails."""
    import torch

    classifier = work.func.__self__
    optimizer = classifier.trainer.optimizers[0]

    def memory() -> list[int]:
        tensors = (
            *classifier.network.state_dict().values(),
            *(values for state in optimizer.state.values() for values in state.values() if hasattr(values, "data_ptr")),
            *classifier.step_buffers.values(),
        )
        return [values.data_ptr() for values in tensors]

    recorded = memory()

    class Recordable(torch.overrides.TorchFunctionMode):
        """Refuses what waits for a device or copies to it, which a recording cannot hold."""

        def __torch_function__(self, function, types, arguments=(), named=None):
            refused = ("tensor", "__setitem__", "item", "tolist", "__bool__", "__int__", "__float__", "nonzero")
            assert function.__name__ not in refused, function.__name__
            return function(*arguments, **(named or {}))

    def replay() -> None:
        assert memory() == recorded
        with Recordable():
            work()

    return replay


def not_recorded(work):
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


hang_up, reading = Event(), Thread()


def print_to(kind: str) -> None:
    """Give this process a terminal or a pipe of its own to print to, whose other end is in a thread here."""
    global reading
    there, here = pty.openpty() if kind == "terminal" else os.pipe()
    if kind == "terminal":
        os.setsid()
        fcntl.ioctl(here, termios.TIOCSCTTY, 0)
    for number in (1, 2):
        os.dup2(here, number)
    os.close(here)

    def read() -> None:
        while not hang_up.is_set():
            if select.select([there], [], [], 0.05)[0]:
                os.read(there, 4096)
        os.close(there)

    reading = Thread(target=read, daemon=True)
    reading.start()


def run(request: dict) -> dict:
    """Fork a process that does what `python train.py ARGUMENTS` does; wait for its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(os.open(request["errors"], os.O_WRONLY | os.O_CREAT) if "errors" in request else log, 2)
        if "errors" in request:
            os.environ.clear()  # the environment is whole
        os.environ.update(request.get("environment", {}))
        os.chdir(request.get("folder", "."))
        signal.alarm(request.get("timeout", 0))
        if request.get("terminal"):
            print_to(request["terminal"])
        counts: Counter = Counter()
        if "faults" in request:
            install(request["faults"], counts)
        sys.argv = [str(ROOT / "train.py"), *request["arguments"]]
        status = 0
        try:
            if "module" in request:
                runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(writer, json.dumps(counts).encode())
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, "counts": json.loads(told or b"{}")}


def main() -> None:
    for name in ("cnnlab.data.shapes", "cnnlab.train.run", "train"):  # every forked run has them
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
