"""launcher=local: a process for every device of this machine, or several."""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait

from omegaconf import DictConfig

from cnnlab.config.processes import num_cores
from cnnlab.launch.children import die_with_parent, in_words, python_path
from cnnlab.launch.job import LAST, Job, record_failure
from cnnlab.launch.job_states import stopped, tell
from cnnlab.runs import signals
from cnnlab.runs.directory import BusyError, RunDirectory
from cnnlab.runs.log import log, logged
from cnnlab.runs.signals import Interrupted


class Worker:
    """A process that does one job after the other.

    Args:
        environment: variables that differ from this process's: the device that it sees, its number of threads.
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

    def give(self, job: Job) -> None:
        print(json.dumps([str(job.path), job.text]), file=self.jobs, flush=True)

    def ended(self) -> ChildProcessError:
        """Wait for its end, and say how it came."""
        status = self.process.wait()
        return ChildProcessError(f"its process ended {in_words(status)}")


def share(settings: DictConfig, at_once: int, processes: int) -> int:
    """Threads of each process when so many runs of so many processes are done at once."""
    typed = os.environ.get("OMP_NUM_THREADS", "")
    return settings.threads or (int(typed) if typed.isdecimal() else max(1, num_cores() // (at_once * processes)))


def locally(settings: DictConfig, jobs: list[Job], sweep: Sequence[Job]) -> None:
    """A process for every device, or several; a signal is passed on, and once all have saved, it is obeyed.

    sweep: all of its jobs, those that are done too: the number of threads, and with it the last bits of the sums, is
    the same when the sweep is resumed.
    """
    trainers = [job.config.trainer for job in jobs]
    processes = max(job.config.trainer.devices for job in sweep)
    devices = [{}] if all(one.accelerator == "cpu" for one in trainers) else visible_gpus(processes)
    most = len(devices) * settings.jobs_per_device
    num, threads = min(most, len(jobs)), share(settings, min(most, len(sweep)), processes)
    print(f"{len(jobs)} runs, {num} at once, {threads} threads for each process", flush=True)
    waiting, doing = deque(jobs), dict[Worker, Job]()
    with signals.passed_on(lambda: [worker.process for worker in doing]):
        for place in range(num):
            shares = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            worker = Worker(devices[place % len(devices)] | shares)
            if signals.received():
                worker.jobs.close()
                break
            doing[worker] = waiting.popleft()
            worker.give(doing[worker])
        while doing:
            ready = wait([worker.answers.fileno() for worker in doing])
            for worker in [worker for worker in doing if worker.answers.fileno() in ready]:
                job, answer = doing.pop(worker), worker.answers.readline()
                alive = answer and LAST not in answer
                if not answer and not signals.received():
                    record_lost(job, worker.ended())
                tell(job, len(waiting) + len(doing))
                if waiting and not signals.received():
                    worker = worker if alive else Worker(worker.environment)
                    doing[worker] = waiting.popleft()
                    worker.give(doing[worker])
                elif alive:
                    worker.jobs.close()
                    worker.process.wait()
    if number := signals.received():
        stopped(sweep)
        sys.exit(Interrupted(number).exit_status)


def visible_gpus(size: int) -> list[dict[str, str]]:
    """What runs are to have in their environments so that each sees as many GPUs as it needs, and no other run's."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    groups = [names[start : start + size] for start in range(0, len(names) - size + 1, size)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups] or [{}]


def record_lost(job: Job, error: ChildProcessError) -> None:
    """The process that did a job has died, and cannot say so; unless another one does the job already."""
    run = RunDirectory(job.path)
    with suppress(BusyError), run.owned("fail"), logged(run.path):
        if run.summary().get("status") == "running":
            record_failure(run, {}, error)
        else:
            log.error(f"{job.path}: {error}")
