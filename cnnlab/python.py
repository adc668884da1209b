"""What `import cnnlab` offers: compose, train, load, runs, report. Imports torch only when it is needed.

These functions do what train.py and `cnnlab VERB` do, in a program or a notebook: with the same configurations and
run directories, and the same checks, which raise UserError here. A run is given by its path, the name of its directory,
the beginning of its hash, "latest" or "best" (see cnnlab.runs.named), or as the Result that `train` has returned.
"""

from __future__ import annotations

import html
import os
import re
import shlex
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cnnlab.config.check import check_single
from cnnlab.config.errors import explain
from cnnlab.config.identity import configuration
from cnnlab.config.objects import forget_sources
from cnnlab.config.options import UserError as UserError
from cnnlab.config.options import folders, leaves, use_folders
from cnnlab.config.overrides import check_overrides
from cnnlab.config.values import as_typed, job_config
from cnnlab.launch.job import Job
from cnnlab.report.runs import Run, read
from cnnlab.runs.directory import BusyError, RunDirectory
from cnnlab.runs.named import HERE, find, named
from cnnlab.runs.provenance import code_digest
from cnnlab.runs.readers import BrokenFileError
from cnnlab.runs.wording import headline

if TYPE_CHECKING:
    import pandas

    from cnnlab.use.trained import Trained

Words: TypeAlias = str | Sequence[str]
Name: TypeAlias = str | os.PathLike[str]


class RunFailedError(Exception):
    """A run has failed, or another process has it and on_busy=fail. See train.log in its directory."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        path: the run directory.
        metrics: at the best epoch, "test/acc", and at the last one, "last/test/acc".
        summary: the content of summary.json.
    """

    path: Path
    metrics: dict[str, float]
    summary: dict[str, Any] = field(repr=False)

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def _repr_html_(self) -> str:
        epoch = f"epoch {self.summary['best_epoch']} of {self.summary['epochs_done']}"
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{value:.4f}</td></tr>"
            for name, value in self.metrics.items()
            if not name.startswith("last/")
        )
        return f"<p>{html.escape(headline(self.summary))}, {epoch}: <code>{html.escape(str(self.path))}</code></p>" + (
            f"<table>{rows}</table>"
        )


def compose(overrides: Words = (), config_dir: Name | None = None) -> DictConfig:
    """The configuration that `python train.py OVERRIDES` would have, checked.

    overrides: one string, as on the command line, or a list of overrides. config_dir: a folder of option files, which
        this process uses from now on; by default that of the project (see cnnlab.config.options).

    Raises: UserError.
    """
    try:
        words = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    except ValueError as error:
        raise UserError(f"{overrides} cannot be split into words: {error}.") from error
    forget_sources()
    code_digest.cache_clear()  # the code may have been edited
    try:
        if config_dir is not None:
            use_folders([os.fspath(config_dir)])
        folders()
        check_overrides(words)
        config = configuration(words)
        check_single(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    return config


def train(config: DictConfig | Words = ()) -> Result:
    """Train a run to its end, or return it if it is finished; an interrupted one is resumed.

    config: the result of `compose`, whose values may have been changed since, or overrides.

    Raises: UserError; RunFailedError; KeyboardInterrupt if a signal has stopped the run after saving (in a notebook,
        "interrupt the kernel"): the same call resumes it.
    """
    try:
        words = overrides_of(config) if isinstance(config, DictConfig) else config
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    config = compose(words)
    if config.plan:
        raise UserError("plan=true shows what would be trained, on the command line. Use plan=false here.")
    job = Job.of(config)
    try:
        status = job.attempt()
    except BusyError as error:
        raise RunFailedError(f"{error}. Use on_busy=wait to wait for it.") from error
    summary = RunDirectory(job.path).summary()
    if status == 0:
        return Result(job.path, summary["metrics"], summary)
    failure = summary.get("error", {})
    if status not in (1, 2):
        raise KeyboardInterrupt(failure.get("message", ""))
    if status == 2:
        raise UserError("The processes of the run have refused its configuration; see their messages.")
    raise RunFailedError(f"{failure.get('type')}: {failure.get('message')}; see {job.path}/train.log")


def overrides_of(config: DictConfig) -> list[str]:
    """The overrides that reproduce a composed configuration, including values that were changed since."""
    words = list(config.hydra.overrides.task)
    before, after = dict(leaves(job_config(configuration(words)))), dict(leaves(job_config(config)))
    changed = {path: value for path, value in after.items() if path not in before or before[path] != value}
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in changed]
    added = [f"{'+' * (path not in before)}{path}={_as_override(value)}" for path, value in changed.items()]
    return [*kept, *added, *(f"~{path}" for path in before if path not in after)]


def _as_override(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_as_override, value))}]"
    if isinstance(value, str):
        return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + "\\'" * bool(found[2]), value) + "'"
    return as_typed(value)


def load(run: Name, among: Name = HERE, epoch: str = "best") -> Trained:
    """The model of a run, on the GPU if there is one: see cnnlab.use.trained.Trained.

    among: the folder with the runs, if `run` is not a path. epoch: "best" or "last".

    Raises: UserError if there is no such run or it has no checkpoint; CheckpointError if that is damaged.
    """
    from cnnlab.use.trained import open_run

    if epoch not in ("best", "last"):
        raise UserError(f"epoch={epoch} is not available. Use best or last.")
    return open_run(named(run, Path(among)), epoch)[0]


def runs(folder: Name | Iterable[Name] = HERE, epochs: bool = False) -> pandas.DataFrame:
    """The runs below a folder: one row per run, or one per epoch of each run.

    Columns: run, status and seed; the options and values in which runs may differ, such as `optim` and `optim.lr`;
    metrics, at the best epoch or by epoch; path, for `report` and `load`.

    Warns of directories that cannot be read. Raises: UserError if there is no run, or if pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("cnnlab.runs needs pandas. Use pip install pandas.") from error
    found, left_out = _read(folder)
    if left_out:
        text = f"Left out, as they cannot be read: {_described(left_out)}."
        warnings.warn(text, stacklevel=3)  # at the call of `cnnlab.runs`, which calls this function
    names = list(dict.fromkeys(name for run in found for name in run.settings))
    rows = []
    for run in found:
        row: dict[str, Any] = {"run": run.path.name, "status": run.outcome, "seed": run.seed} | _settings(run, names)
        path = {"path": str(run.path)}
        if epochs:
            rows += [row | one | path for one in run.rows]
        else:
            totals = ("best_epoch", "epochs_done", "train_seconds", "images_per_second", "num_weights")
            rows.append(row | run.summary.get("metrics", {}) | {name: run.summary.get(name) for name in totals} | path)
    table = pandas.DataFrame(rows)
    if epochs and "epoch" in table:
        table["epoch"] = table["epoch"].astype(int)
    return table


def _read(folder: Name | Iterable[Name]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """As `read`. Raises: UserError if there is no run that can be read."""
    places = [folder] if isinstance(folder, str | os.PathLike) else list(folder)
    found, left_out = read(find(named(place) for place in places))
    if not found:
        where = ", ".join(map(str, places)) or "an empty list"
        broken = f" These cannot be read: {_described(left_out)}." if left_out else ""
        raise UserError(f"There is no run in {where}.{broken} Use another folder.")
    return found, left_out


def _described(left_out: Sequence[tuple[Path, str]]) -> str:
    return "; ".join(f"{path}: {reason}" for path, reason in left_out)


def _settings(run: Run, names: Sequence[str]) -> dict[str, Any]:
    """The values of a run by name; lists as on the command line, None if the run has no such value."""
    known = run.summary["changes"] | run.summary["choices"]
    if any(name not in known for name in names):
        with suppress(FileNotFoundError, BrokenFileError):
            known = dict(leaves(RunDirectory(run.path).config())) | known
    values = {name: known.get(name) for name in names}
    return {name: as_typed(value) if isinstance(value, list) else value for name, value in values.items()}


@dataclass(frozen=True)
class Report:
    """A report, which a notebook shows. path: report.html, a self-contained page."""

    path: Path

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text("utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def report(runs: Name | Iterable[Name] | pandas.DataFrame = HERE, out: Name | None = None) -> Report:
    """Write the report of runs: which setting is best, and how certain that is.

    runs: a folder, a run or several, or rows of the table from `runs`. out: the folder to write to; by default, one
        beside the runs.
    """
    from cnnlab.report import page
    from cnnlab.report.sweep import Sweep

    places: Name | Iterable[Name] = runs if isinstance(runs, str | os.PathLike) else getattr(runs, "path", runs)
    found, left_out = _read(places)
    sweep = Sweep(found, left_out)
    return Report(page.write(sweep, Path(out)) if out else page.write_beside(sweep, [run.path for run in found]))
