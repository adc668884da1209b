"""What is told about the jobs of a sweep."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from cnnlab.config.options import UserError
from cnnlab.launch.job import Job
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.wording import duration, headline
from cnnlab.text import say


def tell(job: Job, left: int) -> None:
    """A line for a job that has ended."""
    summary = RunDirectory(job.path).summary()
    status = summary.get("status", "not started")
    found = f", {headline(summary)}" if status == "done" else ""
    say(f"{job.path}: {status}{found}; {left} left")


def differing(jobs: Sequence[Job]) -> dict[Path, str]:
    """What was typed for each job and not for all of them, by its run directory: "optim=adam seed=1"."""
    typed = {job.path: job.content["about"]["overrides"] for job in jobs}
    common = set.intersection(*map(set, typed.values())) if typed else set()
    return {path: " ".join(word for word in words if word not in common) for path, words in typed.items()}


def begin(job: Job, number: int, count: int, settings: str, seconds_left: float | None) -> None:
    """A line for a job that is about to be done here."""
    run = RunDirectory(job.path)
    epochs = len(run.rows())
    parts = [f"run {number} of {count}", settings]
    if run.summary().get("status") in ("running", "interrupted", "failed"):
        parts.append(f"resuming after epoch {epochs}" if epochs else "starting again")
    if seconds_left is not None:
        parts.append(f"about {duration(seconds_left)} left")
    say("\n" + ", ".join(filter(None, parts)))


def stopped(jobs: Sequence[Job]) -> None:
    """What is left of a sweep that is stopped, and how to go on."""
    done = sum(RunDirectory(job.path).summary().get("status") == "done" for job in jobs)
    say(f"{done} of {len(jobs)} runs are done. Run the same command again to resume the sweep.")


def need(package: str) -> None:
    if not importlib.util.find_spec(package):
        raise UserError(f"This launcher needs {package}. Type pip install {package}.")
