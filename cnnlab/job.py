"""One job: train, and record how it ended; in this process, or in processes of its own. Takes no torch before training.

A run on several devices gets processes of its own, in a sweep too: what was typed stays in a process that holds the
run's lock and waits. `python -m cnnlab.job RUN` is the first of them; Lightning starts the others by the same words.
They read the configuration from the run directory, as it was composed.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.conf import HydraConf
from omegaconf import DictConfig, OmegaConf

from cnnlab.config import UserError, check_targets, data_source, plain, refuse
from cnnlab.records import RunDirectory, log
from cnnlab.signals import STOPPING, Interrupted

ABOUT = "CNNLAB_ABOUT"  # the environment variable in which the processes of a run find what its summary says of it
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def is_first_process() -> bool:
    """Whether this process opens the run: the first of those that Lightning, torchrun or Slurm start for it."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def needs_processes(config: DictConfig) -> bool:
    """Whether several processes are asked for, and nobody has started them yet."""
    started = "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return config.trainer.devices != 1 and not started


def run_job(config: DictConfig, run: RunDirectory, about: dict[str, Any], settings: HydraConf) -> int:
    """Train; return the exit status: 0 done, 1 failed, 2 refused by its processes, 143 or 130 interrupted.

    Raises: UserError.
    """
    with run.logged():
        try:
            run.write_config(config, settings)
            if needs_processes(config):
                return in_processes(run, about)
        except OSError as error:  # a full disk
            return record_failure(run, about, error)
    return train_and_record(config, run, about)


def train_and_record(config: DictConfig, run: RunDirectory, about: dict[str, Any]) -> int:
    """Train in this process."""
    with run.logged():
        before = run.summary()
        try:
            train(config, run, about)
        except UserError:
            if before:
                run.write_summary(before)
            raise
        except Interrupted as stop:
            reason = {"type": type(stop).__name__, "message": str(stop)}
            run.write_summary(about | run.summary() | {"status": "interrupted", "error": reason})
            log.info(f"{stop}; saved. The same command goes on from here.")
            return stop.exit_status
        except (Exception, SystemExit) as error:  # whatever it is, it is recorded, and the other jobs of the sweep run
            return record_failure(run, about, error)
    return 0


def record_failure(run: RunDirectory, about: dict[str, Any], error: BaseException) -> int:
    log.error(f"failed: {type(error).__name__}: {error}; see {run.path}/train.log", exc_info=error)
    failed = {"status": "failed", "error": {"type": type(error).__name__, "message": str(error)}}
    with suppress(OSError):  # a full disk
        run.write_summary(about | run.summary() | failed)
    return 1


def train(config: DictConfig, run: RunDirectory, about: dict[str, Any]) -> None:
    """Read the data, which is where most goes wrong, then import torch and train."""
    from cnnlab.data.images import load_once

    data = load_once(data_source(config.data))
    from cnnlab.run import train

    train(config, run, data, about)


def in_processes(run: RunDirectory, about: dict[str, Any]) -> int:
    """Train in processes of the run's own, and wait for them; signals are passed on."""
    # -m looks into the current folder, which may be any: the processes are to find this package, not an installed one
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {ABOUT: json.dumps(about), "PYTHONPATH": path}
    child = subprocess.Popen(
        [sys.executable, "-m", "cnnlab.job", str(run.path)],
        env=environment,
        preexec_fn=lambda: die_with_parent(signal.SIGTERM),
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in STOPPING}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status not in (0, 1, 2, 130, 143):
        ended = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return record_failure(run, about, ChildProcessError(f"the run's first process ended {ended}"))
    return status


def die_with_parent(number: int) -> None:
    """Ask Linux to send this process a signal when the one that has started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def main() -> None:
    """What one of the processes does."""
    run = RunDirectory(Path(sys.argv[1]))
    config = OmegaConf.load(run.path / ".hydra" / "config.yaml")
    assert isinstance(config, DictConfig)
    check_targets(plain(config))
    if not is_first_process():
        die_with_parent(signal.SIGKILL)
        with suppress(Interrupted):
            train(config, run, {})
        return
    try:
        sys.exit(train_and_record(config, run, json.loads(os.environ[ABOUT])))
    except UserError as error:
        sys.exit(refuse(error))


if __name__ == "__main__":
    main()
