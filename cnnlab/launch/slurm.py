"""launcher=slurm: job arrays, by submitit."""

import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from cnnlab.config.options import UserError
from cnnlab.config.processes import place
from cnnlab.launch.children import python_path
from cnnlab.launch.job import Job
from cnnlab.launch.job_states import differing, report_ended, require
from cnnlab.runs import signals
from cnnlab.runs.directory import RunDirectory
from cnnlab.text import say

LOST = ("closed by peer", "reset by peer", "imed out", "imeout", "NCCL")  # in an error message: another process died
# The name of a job in squeue: 12, or 12_3. SLURM_JOB_ID alone can be the number of a whole array.
OWN_NAME = '"${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"'
# Requeues the job when a process was killed or has lost the others; if the script's node fails, Slurm requeues it.
AGAIN = f'[ $? = 0 ] || [ "${{SLURM_RESTART_COUNT:-0}}" -ge 10 ] || scontrol requeue {OWN_NAME}'
SOON = 20  # seconds after which it is worth a message that no job has started


class SlurmTask:
    """What every process of a Slurm job runs.

    When the time is up, the run has been saved, and the first process requeues the job. When another process of the job
    has died, it ends with an error, and the script requeues the job (see AGAIN).
    """

    def __call__(self, job: Job) -> int:
        status = job.do()
        trainer = job.config.trainer
        if status and place(trainer).is_first:
            if signals.received() in (signal.SIGUSR1, signal.SIGUSR2):
                subprocess.run(f"scontrol requeue {OWN_NAME}", shell=True)  # it prints its own errors
            error = RunDirectory(job.path).summary().get("error", {}).get("message", "")
            if status == 1 and trainer.devices * trainer.num_nodes > 1 and any(sign in error for sign in LOST):
                raise ConnectionError(error)
        return status

    def checkpoint(self, job: Job) -> Any:
        """Called by submitit if the time is up before training has started."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def slurm_ready() -> None:
    for program in ("sbatch", "srun"):
        if not shutil.which(program):
            raise UserError(
                f"There is no {program} on this machine. Use launcher=slurm where jobs are submitted to Slurm."
            )
    require("submitit")


def on_slurm(settings: DictConfig, jobs: list[Job], sweep: Sequence[Job]) -> None:
    """Submit the jobs that are not queued yet, as one array for every size of job, and wait for all."""
    import submitit

    folder = jobs[0].path.parent / ".slurm"
    if wrong := {"%", "\\"} & set(str(folder.absolute())):
        raise UserError(f"{folder} contains {wrong.pop()}, which Slurm would replace. Use another output_dir.")
    known = {} if settings.dry_run else queue(tries=1)
    submitted = {id: job for job in jobs if (id := RunDirectory(job.path).queued_as) in known}
    if submitted:
        print(f"{len(submitted)} of them are already in the queue", flush=True)
    arrays: dict[tuple[int, int, int], list[Job]] = {}
    for job in jobs:
        if job not in submitted.values():
            arrays.setdefault(size(settings, job), []).append(job)
    for (nodes, tasks, gpus), array in arrays.items():
        executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6)
        executor.update_parameters(**parameters(settings, nodes, tasks, gpus))
        if settings.dry_run:
            executor.parameters["map_count"] = len(array)
            print(executor._make_submission_file_text(executor._submitit_command_str, "ID"))
            continue
        try:
            entries = executor.map_array(SlurmTask(), array)
        except submitit.core.utils.FailedJobError as error:
            raise UserError("sbatch rejects these jobs, see above. Check the options of launcher=slurm.") from error
        for job, entry in zip(array, entries, strict=True):
            RunDirectory(job.path).note_queued(entry.job_id)
            submitted[entry.job_id] = job
    if settings.dry_run:
        sys.exit(0)
    say(f"{len(submitted)} jobs in Slurm's queue; their output: {folder}")
    how = f"cnnlab status {jobs[0].path.parent}"
    if not settings.wait:
        for job in sweep:  # a rerun is complete when it is submitted
            RunDirectory(job.path).end_rerun()
        print(f"To see their status: {how}. The same command without wait=false waits for them and writes the report.")
        sys.exit(0)
    try:
        start, told, names = time.monotonic(), False, differing(sweep)
        while submitted:
            time.sleep(min(30, max(1, (time.monotonic() - start) / 20)))  # not to overload Slurm's controller
            known = queue(tries=60)  # the controller may be busy or restarting
            for id in [id for id in submitted if id not in known]:
                report_ended(submitted.pop(id), len(submitted), names)
            reasons = sorted({known[id] for id in submitted})
            if not told and time.monotonic() - start > SOON:
                told = True
                if reasons and all(reason.startswith("PENDING") for reason in reasons):
                    say(
                        f"No job has started yet: {', '.join(reasons)}. If no node has what launcher.cpus_per_task, "
                        "mem and gpus_per_node ask for, none will; 'sinfo --Node --long' lists the nodes."
                    )
    except KeyboardInterrupt:
        print(f"\n{len(submitted)} jobs continue. To see their status: {how}. The same command waits for them again.")
        sys.exit(130)


def queue(tries: int) -> dict[str, str]:
    """The user's jobs that are waiting or running, with Slurm's reason: {"12_3": "PENDING (Resources)"}."""
    words = ["squeue", "--me", "--noheader", "--array", "--format", "%i %T (%r)"]
    for left in reversed(range(tries)):
        result = subprocess.run(words, capture_output=True, text=True)
        if result.returncode == 0:
            return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
        time.sleep(5 * bool(left))
    message = " ".join(result.stderr.split())
    raise UserError(f"squeue fails: {message}. Submitted jobs continue; run the same command again later.")


def size(settings: DictConfig, job: Job) -> tuple[int, int, int]:
    """Nodes, processes per node, GPUs per node."""
    trainer = job.config.trainer
    needed = 0 if trainer.accelerator == "cpu" else trainer.devices
    gpus = needed if settings.gpus_per_node is None else settings.gpus_per_node
    return trainer.num_nodes, trainer.devices, gpus


def parameters(settings: DictConfig, nodes: int, tasks: int, gpus: int) -> dict[str, Any]:
    """The parameters from which submitit writes an sbatch script."""
    given = {name: settings[name] for name in ("partition", "account", "qos", "constraint", "mem") if settings[name]}
    variables = python_path() | {"OMP_NUM_THREADS": str(settings.cpus_per_task)}
    return given | {
        "job_name": "cnnlab",
        "time": settings.time,
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": settings.cpus_per_task,
        # srun does not inherit the cores from sbatch. When a process is killed, the others would wait for it in NCCL.
        "srun_args": [f"--cpus-per-task={settings.cpus_per_task}", "--kill-on-bad-exit=1"],
        "array_parallelism": settings.max_running,
        "signal_delay_s": settings.save_before,
        "stderr_to_stdout": True,
        "setup": [
            "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
            *settings.setup,
        ],
        "teardown": [AGAIN],
        "additional_parameters": {"requeue": True} | dict(map(option, settings.additional)),
        **({"gpus_per_node": gpus} if gpus else {}),
    }


def option(word: str) -> tuple[str, str | bool]:
    """An option of sbatch: reservation=night, or exclusive, which takes no value."""
    name, _, value = word.removeprefix("--").partition("=")
    return name, value or True
