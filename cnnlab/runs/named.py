"""Finds the runs below a folder, and the run that a name stands for. Does not import torch."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cnnlab.config.options import UserError
from cnnlab.runs.directory import RunDirectory

HERE = Path("outputs")  # the default folder of runs
SHOWN = 5  # candidates that are listed if a name is ambiguous


def find(folders: Iterable[Path]) -> Iterator[Path]:
    """The run directories among these folders and below them, sorted and without duplicates; no archived ones.

    Links to folders are followed.
    """
    seen = set[Path]()
    for folder in folders:
        candidates = [folder] if (folder / "summary.json").exists() else sorted(_below(folder))
        for path in candidates:
            if path.resolve() not in seen and not re.search(r"\.old[0-9]+$", path.name):
                seen.add(path.resolve())
                yield path


def _below(folder: Path) -> Iterator[Path]:
    """The folders below one that hold a summary.json; every real folder once, as links may form a loop."""
    visited = set[str]()
    for parent, names, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in visited:
            names.clear()
            continue
        visited.add(real)
        if "summary.json" in files:
            yield Path(parent)


def named(name: str | os.PathLike[str], among: Path = HERE) -> Path:
    """The run directory that a name stands for.

    name: a path; or, for a run below `among`, its directory's name or at least four characters of its hash; `latest`,
        the run that was written to last; or `best`, the finished run with the best value of the selection metric.

    Raises: UserError if there is no such run, or if there are several.
    """
    path, text = Path(name), os.fspath(name)
    if path.is_dir():
        return path
    runs = list(find([among]))
    if text == "latest" and runs:
        written = ("summary.json", "metrics.csv")
        return max(runs, key=lambda run: max(file.stat().st_mtime for name in written if (file := run / name).exists()))
    if text == "best" and runs:
        return _best(runs, among)
    found = [run for run in runs if run.name == path.name == text]
    if not found and re.fullmatch("[0-9a-f]{4,64}", text):
        found = [run for run in runs if run.name[-8:].startswith(text[:8])]
    if len(found) > 1:
        raise UserError(f"{text} names {len(found)} runs: {listed(found)}. Use the path of one of them.")
    if not found:
        where = f"no run in {among} has that name or hash" if among.is_dir() else f"there is no folder {among}"
        raise UserError(
            f"{text} names no run: it is not a folder, and {where}. Use a path, a name or a hash (at least four "
            f"characters) that 'cnnlab ls' shows; or latest, or best."
        )
    return found[0]


def names_a_run(text: str, among: Path = HERE) -> bool:
    """Whether a word is a name for `named` rather than an override: names of runs contain equals signs too."""
    return "=" not in text or Path(text).is_dir() or any(run.name == text for run in find([among]))


def _best(runs: Sequence[Path], among: Path) -> Path:
    """The best of the finished runs. Raises: UserError if there is none, or if they cannot be compared."""
    done: list[tuple[Path, dict[str, Any]]] = [
        (run, summary) for run in runs if (summary := RunDirectory(run).summary()).get("status") == "done"
    ]
    if not done:
        raise UserError(f"best: no run in {among} is done. Use latest, or the name of a run.")
    alike = {(one["selected_on"], one["select_mode"], one["data"].get("fingerprint")) for _, one in done}
    if len(alike) > 1:
        raise UserError(
            f"best: the runs in {among} were selected by different metrics, or on different data "
            f"({listed(sorted({one['choices'].get('data', '?') + ' by ' + one['selected_on'] for _, one in done}))}). "
            f"Use --runs FOLDER for a folder whose runs can be compared, or the name of a run."
        )
    sign = -1 if done[0][1]["select_mode"] == "max" else 1
    return min(done, key=lambda one: (sign * one[1]["metrics"][one[1]["selected_on"]], one[0].name))[0]


def listed(items: Sequence[object]) -> str:
    """The first few: a, b, ..."""
    return ", ".join(map(str, items[:SHOWN])) + ", ..." * (len(items) > SHOWN)


def handle(path: Path) -> str:
    """The shortest name of a run on the command line: the hash in its directory's name, or the whole name."""
    found = re.search("-([0-9a-f]{8})$", path.name)
    return found[1] if found else path.name
