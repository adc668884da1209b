"""One job: train, and record how it ended; in this process, or in processes of its own.

A run on several devices gets processes of its own, in a sweep too: the process of the command holds the run's lock and
waits. `python -m cnnlab.launch.job RUN` is the first of them; Lightning starts the others with the same command. They
read the resolved configuration from the run directory. Does not import torch before training.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnnlab.config import processes
from cnnlab.config.errors import refuse
from cnnlab.config.identity import changes, chosen, described, identity, run_path, targets
from cnnlab.config.objects import checked_config, data_source
from cnnlab.config.options import UserError, folders, use_folders
from cnnlab.config.processes import ABOUT, RANKS
from cnnlab.config.values import job_config
from cnnlab.console import announce, leave_notebook, outlive_terminal
from cnnlab.launch.children import describe_exit, die_with_parent, python_path
from cnnlab.runs import signals
from cnnlab.runs.directory import BusyError, RunDirectory
from cnnlab.runs.files import now
from cnnlab.runs.log import log, logged
from cnnlab.runs.provenance import code_digest
from cnnlab.runs.signals import Interrupted, Pruned
from cnnlab.runs.wording import advice, reason, recall
from cnnlab.text import say

LAST = "last"  # added to a worker's answer if it will do no further job
_gpu_lost = False  # after a CUDA error, the GPU no longer works in this process


@dataclass(frozen=True)
class Job:
    """A job that can be done by another process, on another machine.

    Attributes:
        path: the run directory.
        text: JSON: `config`, the resolved configuration without its `hydra` node; `about`, what the summary begins
            with; `files`, the files of .hydra/; `folders`, those of the project's own options.
    """

    path: Path
    text: str

    @classmethod
    def of(cls, config: DictConfig, path: Path | None = None) -> Job:
        """config: as composed, with its `hydra` node. path: the run directory, if Hydra has created it."""
        path, resolved = path or run_path(config), job_config(config)
        overrides = list(config.hydra.overrides.task)
        about = {
            "run": path.name,
            "choices": described(chosen(config)),
            "changes": changes(config),
            "overrides": overrides,
            "seed": config.seed,
            "identity": identity(config),
            "setting": identity(config, without="seed"),
        }
        files = {
            "config.yaml": OmegaConf.to_yaml(OmegaConf.create(resolved)),
            "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(config, "hydra")),
            "overrides.yaml": OmegaConf.to_yaml(OmegaConf.create(overrides)),
        }
        own = [str(folder) for folder in folders()[:-1]]
        return cls(path, json.dumps({"config": resolved, "about": about, "files": files, "folders": own}))

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        return json.loads(self.text)

    @functools.cached_property
    def config(self) -> DictConfig:
        """The resolved configuration without its `hydra` node."""
        if self.content["folders"]:
            use_folders(self.content["folders"])
        return checked_config(self.content["config"])

    def assemble(self) -> None:
        """Read the data and make all parts of the run, but do not train. Raises: UserError if they do not fit."""
        from cnnlab.data.images import load_once
        from cnnlab.train import parts, trainer

        made = parts.assemble(self.config, load_once(data_source(self.config.data)))
        trainer.check_parts(self.config, made, trainer.make_callbacks(self.config, RunDirectory(self.path)))

    def do(self) -> int:
        """Return the finished run if there is one, otherwise train it here.

        Returns the exit status: 0 done, 1 failed, 2 refused, 143 or 130 interrupted.
        """
        try:
            return self.attempt()
        except UserError as error:
            return refuse(error)
        except BusyError as error:
            say(f"cnnlab: {error}. Use on_busy=wait to wait for it.", file=sys.stderr)
            return 1

    def attempt(self) -> int:
        """As `do`. Raises: UserError instead of printing it; BusyError."""
        config, run = self.config, RunDirectory(self.path)
        if not processes.place(config.trainer).is_first:
            if config.rerun or run.summary().get("status") != "done":
                with suppress(Interrupted):
                    train_here(config, run, {})
            return 0
        with run.owned(config.on_busy):
            try:
                status = open_or_return(self, run)
            except UserError:
                run.end_rerun()  # the error may advise rerun=true
                run.forget()
                raise
            if config.rerun and status in (0, 1):
                run.end_rerun()
            return status


def open_or_return(job: Job, run: RunDirectory) -> int:
    """Return a finished run, resume an interrupted one, or start a new one. Returns the exit status.

    Raises: UserError.
    """
    config, about = job.config, job.content["about"]
    digest, code = data_source(config.data).digest(), code_digest(targets(config))
    run.archive_damaged_summary()
    run.refuse_other(about["identity"])
    summary = run.summary()
    resumed = bool(
        run.rerun_of
        and summary.get("status") in ("running", "interrupted")
        and (summary.get("code_digest"), summary.get("data_digest")) == (code, digest)
    )
    if run.half_archived or (config.rerun and not resumed and (summary or run.checkpoints.exists())):
        say(f"The old run is kept as {run.archive()}.")
    elif summary.get("status") == "done":
        say(recall(run.path, summary, code, digest))
        return 0
    elif summary and summary.get("data_digest") != digest:
        raise UserError(f"The data have changed since {run.path} was interrupted. Use rerun=true to train it again.")
    if config.rerun:
        run.begin_rerun("run")
    about = about | {"started": now(), "code_digest": code, "data_digest": digest}
    with logged(run.path):
        try:
            run.write_hydra(job.content["files"])
            if _gpu_lost or (config.trainer.devices != 1 and not processes.place(config.trainer).starter):
                return in_processes(run, about)
        except OSError as error:  # a full disk
            return record_failure(run, about, error)
    return train_and_record(config, run, about)


def train_and_record(config: DictConfig, run: RunDirectory, about: dict[str, Any]) -> int:
    """Train in this process."""
    with logged(run.path), signals.raised():
        before = run.summary()
        try:
            train_here(config, run, about)
        except UserError as error:
            if before:
                run.write_summary(before)
            elif opened := run.summary():
                run.write_summary(opened | failed(error))
            raise
        except Interrupted as stop:
            return record_stop(run, about, stop)
        except (Exception, SystemExit) as error:  # record anything, so that the other jobs of the sweep run
            earlier = signals.received()
            with signals.noted():
                status = record_failure(run, about, error)
            number = signals.received() or earlier
            return Interrupted(number).exit_status if number else status
    return 0


def record_stop(run: RunDirectory, about: dict[str, Any], stop: Interrupted) -> int:
    summary = run.summary()
    if summary.get("status") != "done":  # the signal may have come just after the end
        reason = {"type": type(stop).__name__, "message": str(stop)}
        run.write_summary(about | summary | {"status": "interrupted", "error": reason})
        if isinstance(stop, Pruned):
            log.info(f"{stop}.")
        else:
            log.info(f"{stop}{'; saved' * stop.saved}. The same command resumes the run.")
    return stop.exit_status


def record_failure(run: RunDirectory, about: dict[str, Any], error: BaseException) -> int:
    if run.is_lost:
        log.error(f"{run.path}, or the working directory, was removed during the run. Run the same command again.")
        return 1
    global _gpu_lost
    _gpu_lost = _gpu_lost or type(error).__name__ == "AcceleratorError"
    log.error(f"failed: {reason(error)}; {advice(error) or f'see {run.path}/train.log'}", exc_info=error)
    with suppress(OSError):  # a full disk
        run.write_summary(about | run.summary() | failed(error))
    return 1


def failed(error: BaseException) -> dict[str, Any]:
    """What the summary of a failed run contains about the failure."""
    return {"status": "failed", "error": {"type": type(error).__name__, "message": str(error)}}


def train_here(config: DictConfig, run: RunDirectory, about: dict[str, Any]) -> None:
    """Read the data, where most errors happen, then import torch and train."""
    from cnnlab.data.images import load_once

    processes.place(config.trainer).settle()
    leave_notebook()
    source = data_source(config.data)
    announce(f"Loading the images of {type(source).__name__}, importing torch")
    if (prepared := getattr(source, "prepared", None)) and prepared.exists():  # import torch meanwhile
        Thread(target=importlib.import_module, args=("cnnlab.train.run",)).start()
    data = load_once(source)
    from cnnlab.train.run import train_run

    train_run(config, run, data, about)


def in_processes(run: RunDirectory, about: dict[str, Any]) -> int:
    """Train in processes of the run's own and wait for them; they get the signals, too."""
    inherited = {name: value for name, value in os.environ.items() if name not in RANKS}
    environment = inherited | {ABOUT: json.dumps(about)} | python_path()
    child = subprocess.Popen(
        [sys.executable, "-m", "cnnlab.launch.job", str(run.path)],
        env=environment,
        pass_fds=run.lock_descriptors,  # the run stays locked until the last process has saved
        preexec_fn=lambda: die_with_parent(signal.SIGTERM),
    )
    with signals.passed_on(lambda: [child]):
        status = child.wait()
    if status == 2:
        run.forget()
    if status < 0 and signals.received() == -status:  # before it could handle signals
        return record_stop(run, about, Interrupted(-status, saved=False))
    if status not in (0, 1, 2, 130, 143):
        return record_failure(run, about, ChildProcessError(f"the run's first process ended {describe_exit(status)}"))
    return status


def serve() -> None:
    """Do the jobs that arrive as lines of JSON, answer each with its exit status, and discard what they print."""
    with os.fdopen(os.dup(1), "w") as answers, open(os.devnull, "w", encoding="utf-8") as devnull:
        os.dup2(devnull.fileno(), 1)
        with suppress(KeyboardInterrupt):
            for line in sys.stdin:
                path, text = json.loads(line)
                status = Job(Path(path), text).do()
                print(status, LAST if _gpu_lost else "", file=answers, flush=True)
                if _gpu_lost:
                    return


def main() -> None:
    """Train as one of the processes of the run that the command line names; without a run, `serve`."""
    outlive_terminal()
    if len(sys.argv) == 1:
        serve()
        return
    run = RunDirectory(Path(sys.argv[1]))
    config = checked_config(run.config())
    if not processes.place(config.trainer).is_first:
        die_with_parent(signal.SIGKILL)
        with suppress(Interrupted):
            train_here(config, run, {})
        return
    try:
        sys.exit(train_and_record(config, run, json.loads(os.environ[ABOUT])))
    except UserError as error:
        sys.exit(refuse(error))


if __name__ == "__main__":
    main()
