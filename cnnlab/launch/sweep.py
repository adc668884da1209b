"""The jobs of a sweep: checked, done here in turn or by launcher=local, slurm or ray, and compared at the end.

Wherever a job runs, it is the text of its configuration. Doing it takes the lock of the run and resumes from the last
checkpoint: a job that is started again, by a requeue or by a second command, is done once. Does not import torch
unless jobs are done on this machine.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from cnnlab.config.check import check
from cnnlab.config.identity import identity, run_path, targets
from cnnlab.config.objects import data_source
from cnnlab.config.options import UserError
from cnnlab.config.processes import place
from cnnlab.console import announce
from cnnlab.launch.job import Job
from cnnlab.launch.job_states import differing, report_begin, report_stopped, require
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
    """Check all jobs, do them, and report the results.

    config: of the sweep. configs: of its jobs, with their `hydra` nodes.

    Raises: UserError. Ends the process with status 1 if a run is not done at the end.
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
    way = WAYS[settings.get("way", "in_turn")]
    way.ready()
    submits = not settings.get("dry_run")
    for one in configs:
        one.rerun = False  # a job that is started again, by a requeue for example, resumes
    jobs = {job.path: job for job in map(Job.of, configs)}
    if way.here:
        rehearse([job for job in jobs.values() if config.rerun or not is_done(job)], differing(jobs.values()))
    write_multirun(config)
    for one in configs if config.rerun and submits else ():
        archive_old(one)
    done = [path for path, job in jobs.items() if is_done(job) and submits]
    for path in done:
        jobs[path].do()  # prints its result
    if to_do := [job for job in jobs.values() if job.path not in done]:
        way.do(settings, to_do, list(jobs.values()))
    for path in jobs:
        RunDirectory(path).end_rerun()
    if not report(list(jobs)):
        sys.exit(1)


def is_done(job: Job) -> bool:
    return RunDirectory(job.path).summary().get("status") == "done"


def rehearse(jobs: Sequence[Job], settings: Mapping[Path, str]) -> None:
    """Assemble a run of every setting, so that one of which the parts do not fit is refused before others have trained.

    settings: what distinguishes each job of the sweep, by its run directory.

    Raises: UserError.
    """
    first = {job.content["about"]["setting"]: job for job in reversed(jobs)}
    if len(first) < 2:  # the run itself refuses before it trains
        return
    announce(f"Checking {len(first)} settings")
    for job in reversed(first.values()):
        try:
            job.assemble()
        except UserError as error:
            raise UserError(f"The run with {settings[job.path]}: {error}") from error
        except Exception:
            # Anything may fail here: a download, memory, a project's own class. It fails again when the run's turn
            # comes, which records it with its traceback; that one run fails is no reason not to train the others.
            continue


def write_multirun(config: DictConfig) -> None:
    """Write the configuration of the sweep where Hydra's own sweeper does."""
    folder = Path(config.hydra.sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "multirun.yaml", OmegaConf.to_yaml(config))


def archive_old(config: DictConfig) -> None:
    """Archive the old run of a job, unless this same command has already started it again."""
    run = RunDirectory(run_path(config))
    current = {"code_digest": code_digest(targets(config)), "data_digest": data_source(config.data).digest()}
    old = current | run.summary()
    if run.rerun_of == "sweep" and old == old | current:  # killed, and the same command again
        return
    try:
        with run.owned(config.on_busy):
            run.refuse_other(identity(config))
            if run.half_archived or (run.path / "summary.json").exists() or run.checkpoints.exists():
                say(f"The old run is kept as {run.archive()}.")
            run.begin_rerun("sweep")
    except BusyError as error:
        say(f"cnnlab: {error}. Use on_busy=wait to wait for it.", file=sys.stderr)
        sys.exit(1)


def report(paths: list[Path], trials: bool = False) -> bool:
    """Print the table and the answer, write the report; return whether all runs are done.

    paths: run directories. trials: they are those of a search, of which some may be pruned or fail: one must be done.
    """
    from cnnlab.report import listing, page
    from cnnlab.report.answer import answer, protocol
    from cnnlab.report.runs import read
    from cnnlab.report.sweep import Sweep

    all_done = listing.print_table(paths)
    found = Sweep(*read(path for path in paths if (path / "summary.json").exists()))
    if found.ranking:
        say(f"{protocol(found)} {answer(found)}".lstrip())
        say(f"Report: {os.path.relpath(page.write_beside(found, paths))}")
    return all_done or bool(trials and found.ranking)


def in_turn(settings: Any, jobs: list[Job], sweep: Sequence[Job] = ()) -> None:
    """Do the jobs one after the other in this process; those that fail do not stop the others."""
    everything = list(sweep) or jobs
    numbers = {job.path: number for number, job in enumerate(everything, 1)}
    settings, began = differing(everything), time.monotonic()
    for ended, job in enumerate(jobs):
        if len(everything) > 1:
            left = (time.monotonic() - began) / ended * (len(jobs) - ended) if ended else None
            report_begin(job, numbers[job.path], len(everything), settings[job.path], left)
        status = job.do()
        if status in (0, 1, 2) and (number := signals.received()):  # too late to interrupt this job
            status = Interrupted(number).exit_status
        if status not in (0, 1, 2):
            report_stopped(everything)
            sys.exit(status)


class Way(NamedTuple):
    """ready: a check of what it needs. do: does the jobs. here: whether on this machine."""

    ready: Callable[[], None]
    do: Callable[[Any, list[Job], Sequence[Job]], None]
    here: bool


WAYS = {  # by launcher.way
    "in_turn": Way(lambda: None, in_turn, here=True),
    "local": Way(lambda: None, locally, here=True),
    "slurm": Way(slurm_ready, on_slurm, here=False),
    "ray": Way(lambda: require("ray"), on_ray, here=False),
}
