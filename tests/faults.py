"""Runs train.py in processes that kill themselves with SIGKILL at a given point, as if someone had typed kill -9.

`python faults.py` imports everything once and forks a process for every line on its standard input, so that hundreds of
runs take seconds each: {"arguments": [...], "fault": ["step", 7], "log": FILE}. It answers with {"status": ...,
"counts": {...}}: the exit status, negative for a signal, and how often each point was passed.

Points: "step" (a training step), "validation" (a step of an evaluation), "write" (a checkpoint, when half of it is
written), "rename" (before a file gets its name, any file), "renamed" (after it), "NAME" (before that file gets its
name). A fault is a point and the number of times that it is passed before the process dies.
"""

import json
import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
POINTS = ("step", "validation", "write", "rename", "renamed")


def install(fault: list | None, counts: Counter) -> None:
    """Count the points, and die at one of them."""
    import cnnlab.callbacks
    from cnnlab.classifier import Classifier

    def passed(point: str) -> bool:
        counts[point] += 1
        return fault is not None and fault[0] == point and counts[point] == fault[1]

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(function, point: str):
        def wrapped(*arguments):
            if passed(point):
                die()
            return function(*arguments)

        return wrapped

    Classifier.training_step = counted(Classifier.training_step, "step")
    Classifier.validation_step = Classifier.test_step = counted(Classifier.validation_step, "validation")
    write_bytes, replace = Path.write_bytes, Path.replace

    def half_written(path: Path, content) -> int:
        if passed("write"):
            write_bytes(path, content[: len(content) // 2])
            die()
        return write_bytes(path, content)

    def renamed(path: Path, target) -> Path:
        if passed("rename") or passed(Path(target).name):
            die()
        result = replace(path, target)
        if passed("renamed"):
            die()
        return result

    Path.write_bytes, Path.replace = half_written, renamed
    if fault == ["forget", 0]:  # the negative control: random states are not restored
        cnnlab.callbacks.restore_random_states = lambda states: None


def run(request: dict) -> dict:
    """Fork a process that does what `python train.py ARGUMENTS` does; wait for its end."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        counts: Counter = Counter()
        install(request.get("fault"), counts)
        sys.argv = [str(ROOT / "train.py"), *request["arguments"]]
        status = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            sys.stdout.flush()
            os.write(writer, json.dumps(counts).encode())
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, "counts": json.loads(told or b"{}")}


def main() -> None:
    sys.path.insert(0, str(ROOT))
    import cnnlab.data.shapes
    import cnnlab.run  # noqa: F401
    import train  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
