"""The jobs of a sweep: checked, done here in turn or where launcher=local, slurm or ray says, and compared in the end.

Wherever a job goes, it is the text of its configuration. Doing it takes the lock of the run, and goes on from the last
checkpoint: a job that is begun again, by a requeue or by a second command, is done once. Takes no torch before a job is
done here, but to count GPUs.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cnnlab.config.check import check
from cnnlab.config.identity import identity, run_path, targets
from cnnlab.config.objects import data_source
from cnnlab.config.options import UserError
from cnnlab.config.processes import place
from cnnlab.launch.job import Job
from cnnlab.launch.job_states import begin, differing, need, stopped
from cnnlab.launch.local import locally
from cnnlab.launch.ray import on_ray
from cnnlab.launch.slurm import on_slurm, slurm_ready
from cnnlab.runs import signals
from cnnlab.runs.directory import BusyError, RunDirectory
from cnnlab.runs.files import write_text
from cnnlab.runs.provenance import code_digest
from cnnlab.runs.signals import Interrupted
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
    from cnnlab.report import page, table
    from cnnlab.report.answer import answer
    from cnnlab.report.runs import read
    from cnnlab.report.sweep import Sweep

    all_done = table.print_table(paths)
    made = Sweep(*read(path for path in paths if (path / "summary.json").exists()))
    if made.ranking:
        say(answer(made))
        say(f"Report: {os.path.relpath(page.write_beside(made, paths))}")
    return all_done or bool(trials and made.ranking)


def in_turn(settings: Any, jobs: list[Job], sweep: Sequence[Job] = ()) -> None:
    """One after the other in this process; those that fail do not stop the others."""
    everything = list(sweep) or jobs
    numbers = {job.path: number for number, job in enumerate(everything, 1)}
    settings, began = differing(everything), time.monotonic()
    for ended, job in enumerate(jobs):
        if len(everything) > 1:
            left = (time.monotonic() - began) / ended * (len(jobs) - ended) if ended else None
            begin(job, numbers[job.path], len(everything), settings[job.path], left)
        status = job.do()
        number = signals.received()  # it may have come too late to interrupt this one
        if status not in (0, 1, 2) or number:
            stopped(everything)
            sys.exit(status if status not in (0, 1, 2) else Interrupted(number).exit_status)


# What must be there, and what does the jobs.
WAYS: dict[str, tuple[Callable[[], None], Callable[[Any, list[Job], Sequence[Job]], None]]] = {
    "in_turn": (lambda: None, in_turn),
    "local": (lambda: None, locally),
    "slurm": (slurm_ready, on_slurm),
    "ray": (lambda: need("ray"), on_ray),
}
