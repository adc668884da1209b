"""Progress messages about the jobs of a sweep."""

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cnnlab.config.options import UserError
from cnnlab.launch.job import Job
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.wording import duration, headline
from cnnlab.text import say


def report_ended(job: Job, left: int, settings: Mapping[Path, str], seconds_left: float = 0) -> None:
    """Print a line about a job that has ended: "done 3/12, optim=adam seed=0, test accuracy 34.20%, about 20 s left".

    left: number of jobs that have not ended. settings: what distinguishes each job of the sweep (see `differing`).
    """
    summary = RunDirectory(job.path).summary()
    status = summary.get("status", "not started")
    parts = [f"{status} {len(settings) - left}/{len(settings)}", settings[job.path]]
    parts.append(headline(summary) if status == "done" else str(job.path))
    if left and seconds_left:
        parts.append(f"about {duration(seconds_left)} left")
    say(", ".join(filter(None, parts)))


def differing(jobs: Collection[Job]) -> dict[Path, str]:
    """The overrides of each job that not all jobs have, by its run directory: "optim=adam seed=1"."""
    overrides = {job.path: job.content["about"]["overrides"] for job in jobs}
    common = set.intersection(*map(set, overrides.values())) if overrides else set()
    return {path: " ".join(word for word in words if word not in common) for path, words in overrides.items()}


def report_begin(job: Job, number: int, count: int, settings: str, seconds_left: float | None) -> None:
    """Print a line about a job that is about to start in this process."""
    run = RunDirectory(job.path)
    epochs = len(run.rows())
    parts = [f"run {number} of {count}", settings]
    if run.summary().get("status") in ("running", "interrupted", "failed"):
        parts.append(f"resuming after epoch {epochs}" if epochs else "starting again")
    if seconds_left is not None:
        parts.append(f"about {duration(seconds_left)} left")
    say("\n" + ", ".join(filter(None, parts)))


def report_stopped(jobs: Sequence[Job]) -> None:
    """Print what is done of a sweep that is stopped, and how to resume it."""
    done = sum(RunDirectory(job.path).summary().get("status") == "done" for job in jobs)
    say(f"{done} of {len(jobs)} runs are done. Run the same command again to resume the sweep.")


def require(package: str) -> None:
    if not importlib.util.find_spec(package):
        raise UserError(f"This needs the package {package}, which is not installed. Use pip install {package}.")
