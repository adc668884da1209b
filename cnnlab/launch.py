"""The jobs of a sweep: checked, done here in turn or where launcher=local, slurm or ray says, and compared in the end.

Wherever a job goes, it is the text of its configuration. Doing it takes the lock of the run, and goes on from the last
checkpoint: a job that is begun again, by a requeue or by a second command, is done once. Takes no torch before a job is
done here, but to count GPUs.
"""

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnnlab import signals
from cnnlab.check import check
from cnnlab.config import UserError, data_source, identity, run_path, targets
from cnnlab.job import LAST, Job, die_with_parent, in_words, python_path, record_failure
from cnnlab.processes import num_cores, place
from cnnlab.provenance import code_digest
from cnnlab.records import BusyError, RunDirectory, headline, log, write_text
from cnnlab.signals import Interrupted
from cnnlab.text import say


def sweep(config: DictConfig, configs: Sequence[DictConfig]) -> None:
    """Do the jobs, all of them checked before the first begins, and print and write what they have come to.

    config: of the sweep. configs: of its jobs, with their `hydra` nodes.

    Raises: UserError. Ends the process with status 1 if a run is not done in the end.
    """
    for one in configs:
        check(one)
        if "launcher" not in one and (starter := place(one.trainer).starter):
            raise UserError(f"{starter} starts the processes of one run. Use python train.py -m with launcher=....")
    if config.plan:
        from cnnlab.report.plan import print_plan

        print_plan(configs, Path(config.output_dir))
        return
    settings = config.get("launcher", {})
    ready, do = WAYS[settings.get("way", "in_turn")]
    ready()
    note(config)
    submits = not settings.get("dry_run")
    for one in configs:
        if config.rerun and submits:
            begin_anew(one)
        one.rerun = False  # a job that is begun again, by a requeue for example, goes on
    jobs = {job.path: job for job in map(Job.of, configs)}
    done = [path for path in jobs if RunDirectory(path).summary().get("status") == "done" and submits]
    for path in done:
        jobs[path].do()  # says so
    if to_do := [job for job in jobs.values() if job.path not in done]:
        do(settings, to_do, list(jobs.values()))
    for path in jobs:
        RunDirectory(path).end_rerun()
    if not report(list(jobs)):
        sys.exit(1)


def note(config: DictConfig) -> None:
    """The configuration of the sweep, where Hydra's own sweeper writes it."""
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "multirun.yaml", OmegaConf.to_yaml(config))


def begin_anew(config: DictConfig) -> None:
    """Keep the old run of a job under another name, if there is one that this command has not begun itself."""
    run = RunDirectory(run_path(config))
    today = {"code_digest": code_digest(targets(config)), "data_digest": data_source(config.data).digest()}
    begun = today | run.summary()
    if run.rerun_of == "sweep" and begun == begun | today:  # killed, and the same command again
        return
    try:
        with run.owned(config.on_busy):
            run.refuse_other(identity(config))
            if run.half_archived or (run.path / "summary.json").exists() or run.checkpoints.exists():
                say(f"The old run is kept as {run.put_aside()}.")
            run.begin_rerun("sweep")
    except BusyError as error:
        say(f"cnnlab: {error}. Use on_busy=wait to wait for it.", file=sys.stderr)
        sys.exit(1)


def report(paths: list[Path], trials: bool = False) -> bool:
    """Print the table and the answer, write the report; return whether all runs are done.

    paths: run directories. trials: of a search, which gives runs up and bears bad ones: one that is done is enough.
    """
    from cnnlab import search
    from cnnlab.report import page, table
    from cnnlab.report.runs import read
    from cnnlab.report.sweep import Sweep

    all_done = table.print_table(paths)
    made = Sweep(*read(path for path in paths if (path / "summary.json").exists()))
    if made.ranking:
        say(search.answer(paths) if trials else made.answer())
        say(f"Report: {os.path.relpath(page.write(made, page.default_folder(paths)))}")
    return all_done or bool(trials and made.ranking)


def in_turn(settings: Any, jobs: list[Job], sweep: Sequence[Job] = ()) -> None:
    """One after the other in this process; those that fail do not stop the others."""
    for job in jobs:
        status = job.do()
        if status not in (0, 1, 2):
            sys.exit(status)
        if number := signals.received():  # too late to interrupt this one
            sys.exit(Interrupted(number).exit_status)


def tell(job: Job, left: int) -> None:
    """A line for a job that has ended."""
    summary = RunDirectory(job.path).summary()
    status = summary.get("status", "not started")
    found = f", {headline(summary)}" if status == "done" else ""
    say(f"{job.path}: {status}{found}; {left} left")


# ------------------------------------------------------------------------------------------------------- this machine


class Worker:
    """A process that does one job after the other.

    Args:
        environment: variables that differ from this process's: the device that it sees, its number of threads.
    """

    def __init__(self, environment: dict[str, str]):
        self.environment = environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cnnlab.job"],
            env=os.environ | environment | {"PYTHONPATH": python_path()},
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
    with suppress(BusyError), run.owned("fail"), run.logged():
        if run.summary().get("status") == "running":
            record_failure(run, {}, error)
        else:
            log.error(f"{job.path}: {error}")


# -------------------------------------------------------------------------------------------------------------- Slurm


LOST = ("closed by peer", "reset by peer", "imed out", "imeout", "NCCL")  # in an error: another process is gone

# A job by the name that squeue gives it: 12, or 12_3. SLURM_JOB_ID alone can be the number of a whole array.
OWN_NAME = '"${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"'

# What the script does when a process was killed or has lost the others; if the script's node is lost, Slurm does it.
AGAIN = f'[ $? = 0 ] || [ "${{SLURM_RESTART_COUNT:-0}}" -ge 10 ] || scontrol requeue {OWN_NAME}'


class OnSlurm:
    """What every process of a Slurm job does.

    When its time is up, it has saved, and puts the job back into the queue. When another process of the job is gone, it
    ends with an error, and the script puts the job back (see AGAIN).
    """

    def __call__(self, job: Job) -> int:
        status = job.do()
        trainer = job.config.trainer
        if status and place(trainer).is_first:
            if signals.received() in (signal.SIGUSR1, signal.SIGUSR2):
                subprocess.run(f"scontrol requeue {OWN_NAME}", shell=True)  # what it refuses, it says
            error = RunDirectory(job.path).summary().get("error", {}).get("message", "")
            if status == 1 and trainer.devices * trainer.num_nodes > 1 and any(sign in error for sign in LOST):
                raise ConnectionError(error)
        return status

    def checkpoint(self, job: Job) -> Any:
        """submitit asks for it when the time is up before training has begun."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def slurm_ready() -> None:
    if not shutil.which("sbatch"):
        raise UserError("There is no sbatch on this machine. Type launcher=slurm where jobs are submitted to Slurm.")
    need("submitit")


def need(package: str) -> None:
    if not importlib.util.find_spec(package):
        raise UserError(f"This launcher needs {package}. Type pip install {package}.")


def on_slurm(settings: DictConfig, jobs: list[Job], sweep: Sequence[Job]) -> None:
    """Submit what is not in the queue yet, as one array for every size of job, and wait for all."""
    import submitit

    known = {} if settings.dry_run else queue(tries=1)
    submitted = {id: job for job in jobs if (id := RunDirectory(job.path).queued_as) in known}
    if submitted:
        print(f"{len(submitted)} of them are in the queue already", flush=True)
    arrays: dict[tuple[int, int, int], list[Job]] = {}
    for job in jobs:
        if job not in submitted.values():
            arrays.setdefault(size(settings, job), []).append(job)
    folder = jobs[0].path.parent / ".slurm"
    for (nodes, tasks, gpus), array in arrays.items():
        executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6)
        executor.update_parameters(**parameters(settings, nodes, tasks, gpus))
        if settings.dry_run:
            executor.parameters["map_count"] = len(array)
            print(executor._make_submission_file_text(executor._submitit_command_str, "ID"))
            continue
        try:
            entries = executor.map_array(OnSlurm(), array)
        except submitit.core.utils.FailedJobError as error:
            raise UserError("sbatch refuses these jobs, in the words above. Look at launcher=slurm's keys.") from error
        for job, entry in zip(array, entries, strict=True):
            RunDirectory(job.path).note_queued(entry.job_id)
            submitted[entry.job_id] = job
    if settings.dry_run:
        sys.exit(0)
    say(f"{len(submitted)} jobs in Slurm's queue; their output: {folder}")
    how = f"python -m cnnlab status {jobs[0].path.parent}"
    if not settings.wait:
        print(f"How they are: {how}. The same command without wait=false waits for them and reports.")
        sys.exit(0)
    try:
        begun = time.monotonic()
        while submitted:
            time.sleep(min(30, max(1, (time.monotonic() - begun) / 20)))  # Slurm's controller has others to answer
            known = queue(tries=60)  # the controller may be busy, or just starting again
            for id in [id for id in submitted if id not in known]:
                tell(submitted.pop(id), len(submitted))
    except KeyboardInterrupt:
        print(
            f"\n{len(submitted)} jobs go on in the queue. How they are: {how}. Typed again, the command waits for them."
        )
        sys.exit(130)


def queue(tries: int) -> dict[str, str]:
    """The user's jobs that Slurm knows, waiting or running: {"12_3": "PENDING"}."""
    words = ["squeue", "--me", "--noheader", "--array", "--format", "%i %T"]
    for left in reversed(range(tries)):
        result = subprocess.run(words, capture_output=True, text=True)
        if result.returncode == 0:
            return dict(line.split() for line in result.stdout.splitlines())
        time.sleep(5 * bool(left))
    said = " ".join(result.stderr.split())
    raise UserError(f"squeue fails: {said}. Jobs that are submitted go on; type the same command later.")


def size(settings: DictConfig, job: Job) -> tuple[int, int, int]:
    """Nodes, processes per node, GPUs per node."""
    trainer = job.config.trainer
    needed = 0 if trainer.accelerator == "cpu" else trainer.devices
    gpus = needed if settings.gpus_per_node is None else settings.gpus_per_node
    return trainer.num_nodes, trainer.devices, gpus


def parameters(settings: DictConfig, nodes: int, tasks: int, gpus: int) -> dict[str, Any]:
    """What submitit makes an sbatch script of."""
    given = {name: settings[name] for name in ("partition", "account", "qos", "constraint", "mem") if settings[name]}
    return given | {
        "job_name": "cnnlab",
        "time": settings.time,
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": settings.cpus_per_task,
        # srun does not take the cores over from sbatch. When a process is killed, the others wait for it under NCCL.
        "srun_args": [f"--cpus-per-task={settings.cpus_per_task}", "--kill-on-bad-exit=1"],
        "array_parallelism": settings.max_running,
        "signal_delay_s": settings.save_before,
        "stderr_to_stdout": True,
        "setup": [
            f"export PYTHONPATH={shlex.quote(python_path())} OMP_NUM_THREADS={settings.cpus_per_task}",
            *settings.setup,
        ],
        "teardown": [AGAIN],
        "additional_parameters": {"requeue": True} | dict(map(option, settings.additional)),
        **({"gpus_per_node": gpus} if gpus else {}),
    }


def option(word: str) -> tuple[str, str | bool]:
    """Of sbatch: reservation=night, or exclusive, which takes no value."""
    name, _, value = word.removeprefix("--").partition("=")
    return name, value or True


# ---------------------------------------------------------------------------------------------------------------- Ray


def on_ray(settings: DictConfig, jobs: list[Job], sweep: Sequence[Job]) -> None:
    """Ray decides where; it begins a job again if its process or its machine is lost, at most ten times."""
    import ray

    ours = {name: value for name, value in os.environ.items() if name.startswith("CNNLAB_")}
    environment = ours | {"PYTHONPATH": python_path()}
    ray.init(address=settings.address, log_to_driver=False, runtime_env={"env_vars": environment})
    task, waiting = ray.remote(max_retries=10)(in_folder), {}
    most = {kind: max(node["Resources"].get(kind, 0) for node in ray.nodes()) for kind in ("CPU", "GPU")}
    for job in jobs:
        trainer = job.config.trainer
        none = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not most["GPU"])
        gpus = settings.gpus if settings.gpus is not None else 0 if none else trainer.devices
        if settings.cpus > most["CPU"] or gpus > most["GPU"]:
            raise UserError(
                f"A run needs {settings.cpus} cores and {gpus} GPUs, and no machine of this Ray has more than "
                f"{most['CPU']:.0f} and {most['GPU']:.0f}. Type launcher.cpus= and launcher.gpus=."
            )
        waiting[task.options(num_cpus=settings.cpus, num_gpus=gpus).remote(os.getcwd(), job)] = job
    try:
        while waiting:
            for ended in ray.wait(list(waiting))[0]:
                job = waiting.pop(ended)
                try:
                    ray.get(ended)
                except ray.exceptions.RayError as error:
                    record_lost(job, ChildProcessError(f"Ray could not do it: {error}"))
                tell(job, len(waiting))
    finally:
        ray.shutdown()


def in_folder(folder: str, job: Job) -> int:
    os.chdir(folder)
    return job.do()


# What must be there, and what does the jobs.
WAYS: dict[str, tuple[Callable[[], None], Callable[[Any, list[Job], Sequence[Job]], None]]] = {
    "in_turn": (lambda: None, in_turn),
    "local": (lambda: None, locally),
    "slurm": (slurm_ready, on_slurm),
    "ray": (lambda: need("ray"), on_ray),
}
