"""launcher=local: one or several processes for every device of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait

from omegaconf import DictConfig

from cnnlab.config.processes import num_cores
from cnnlab.launch.children import describe_exit, die_with_parent, python_path
from cnnlab.launch.job import LAST, Job, record_failure
from cnnlab.launch.job_states import differing, report_ended, report_stopped
from cnnlab.runs import signals
from cnnlab.runs.directory import BusyError, RunDirectory
from cnnlab.runs.log import log, logged
from cnnlab.runs.signals import Interrupted


class Worker:
    """A process that does one job after the other.

    Args:
        environment: variables to change: the visible device, the number of threads.
    """

    def __init__(self, environment: dict[str, str]):
        self.environment = environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cnnlab.launch.job"],
            env=os.environ | environment | python_path(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
            text=True,
        )
        assert self.process.stdin
        assert self.process.stdout
        self.jobs, self.answers = self.process.stdin, self.process.stdout

    def assign(self, job: Job) -> Worker:
        """The worker that does the job: this one, or another one if this process has ended."""
        try:
            print(json.dumps([str(job.path), job.text]), file=self.jobs, flush=True)
        except BrokenPipeError:
            return Worker(self.environment).assign(job)
        return self

    def ended(self) -> ChildProcessError:
        """Wait for the end of the process; return what it ended with."""
        return ChildProcessError(f"its process ended {describe_exit(self.process.wait())}")


def num_threads(settings: DictConfig, at_once: int, processes: int) -> int:
    """Threads of each process, if this many runs of this many processes are done at once."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return settings.threads or (int(given) if given.isdecimal() else max(1, num_cores() // (at_once * processes)))


def locally(settings: DictConfig, jobs: list[Job], sweep: Sequence[Job]) -> None:
    """Do the jobs in processes of their own; after a signal, which they get too, wait until all have saved, and end.

    sweep: all of its jobs, finished ones too, so that a resumed sweep uses the same number of threads, on which the
        rounding of sums depends.
    """
    trainers = [job.config.trainer for job in jobs]
    processes = max(job.config.trainer.devices for job in sweep)
    devices = [{}] if all(one.accelerator == "cpu" for one in trainers) else visible_gpus(processes)
    most = len(devices) * settings.jobs_per_device
    num, threads = min(most, len(jobs)), num_threads(settings, min(most, len(sweep)), processes)
    print(f"{num} at a time, {threads} thread{'s' * (threads > 1)} each", flush=True)
    waiting, running = deque(jobs), dict[Worker, Job]()
    names, began = differing(sweep), time.monotonic()
    with signals.passed_on(lambda: [worker.process for worker in running]):
        for place in range(num):
            shares = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            worker = Worker(devices[place % len(devices)] | shares)
            if signals.received():
                worker.jobs.close()
                break
            job = waiting.popleft()
            running[worker.assign(job)] = job
        while running:
            ready = wait([worker.answers.fileno() for worker in running])
            for worker in [worker for worker in running if worker.answers.fileno() in ready]:
                job, answer = running.pop(worker), worker.answers.readline()
                alive = answer and LAST not in answer
                if not answer and not signals.received():
                    record_lost(job, worker.ended())
                left = len(waiting) + len(running)
                report_ended(job, left, names, (time.monotonic() - began) / (len(jobs) - left) * left)
                if waiting and not signals.received():
                    worker = worker if alive else Worker(worker.environment)
                    job = waiting.popleft()
                    running[worker.assign(job)] = job
                elif alive:
                    worker.jobs.close()
                    worker.process.wait()
    if number := signals.received():
        report_stopped(sweep)
        sys.exit(Interrupted(number).exit_status)


def visible_gpus(size: int) -> list[dict[str, str]]:
    """The environment variables with which every run sees as many GPUs as it needs, and no other run's."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    groups = [names[start : start + size] for start in range(0, len(names) - size + 1, size)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups] or [{}]


def record_lost(job: Job, error: ChildProcessError) -> None:
    """Record that the process of a job has died, unless another process has taken over the run."""
    run = RunDirectory(job.path)
    with suppress(BusyError), run.owned("fail"), logged(run.path):
        if run.summary().get("status") == "running":
            record_failure(run, {}, error)
        else:
            log.error(f"{job.path}: {error}")
