"""What is told about the jobs of a sweep."""

import importlib.util

from cnnlab.config.options import UserError
from cnnlab.launch.job import Job
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.told import headline
from cnnlab.text import say


def tell(job: Job, left: int) -> None:
    """A line for a job that has ended."""
    summary = RunDirectory(job.path).summary()
    status = summary.get("status", "not started")
    found = f", {headline(summary)}" if status == "done" else ""
    say(f"{job.path}: {status}{found}; {left} left")


def need(package: str) -> None:
    if not importlib.util.find_spec(package):
        raise UserError(f"This launcher needs {package}. Type pip install {package}.")
