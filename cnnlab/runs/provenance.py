"""Which code made a result: digests of sources, versions of packages, the commit. Does not import torch."""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
INSTALLED = {"site-packages", "dist-packages"}  # where pip and Debian install packages

LARGEST = 16_000_000  # bytes of a data file; a larger one, such as weights, is not read for every command
AFTERWARDS = (  # code that starts runs or uses finished ones, and cannot change a result
    *("project/", "report/", "use/", "__main__.py", "cli.py", "main.py", "python.py", "terminal.py"),
    *("testing.py", "config/overrides.py"),
    *(f"launch/{name}.py" for name in ("job_states", "local", "ray", "slurm", "sweep")),
)


@functools.cache
def code_digest(targets: frozenset[str] = frozenset()) -> str:
    """SHA-256 over the source files that can change a result, and the versions of installed packages.

    targets: the classes and functions of a run, by their import paths. For those of a project, its whole package
        counts, with data files in it that its sources name, and whatever else of the project it imports.
    """
    sha = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        if not name.startswith(AFTERWARDS):
            sha.update(name.encode() + b"\0" + file.read_bytes())
    found: dict[str, bytes] = {}
    for target in sorted(targets):
        _collect(target.partition(".")[0], found)
    for name in sorted(found):
        sha.update(name.encode() + b"\0" + found[name])
    return sha.hexdigest()


def _collect(package: str, found: dict[str, bytes]) -> None:
    """Add the sources of a package and of what it imports from the project, or its version; imports nothing."""
    if package in found or package in sys.stdlib_module_names or package == PACKAGE.name:
        return
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:  # reported when it is used
        return
    places = [Path(place) for place in spec.submodule_search_locations or [spec.origin or ""]]
    if INSTALLED & set(places[0].parts):
        found[package] = _version(package).encode()
        return
    files = [file for place in places for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    sources = [file.read_bytes() for file in files if file.is_file()]
    words = set(re.findall(rb"[\w-]+(?:\.[\w-]+)+", b"\0".join(sources)))  # "table.json"
    data = [file for place in places for file in sorted(place.rglob("*.*")) if os.fsencode(file.name) in words]
    small = [file for file in data if file.is_file() and file not in files and file.stat().st_size <= LARGEST]
    found[package] = b"\0".join((*sources, *(file.read_bytes() for file in small)))
    for source in sources:
        for name in _imported(source):
            _collect(name, found)


def _version(package: str) -> str:
    """The version of the distribution of that name, or of those that contain the package, which is slower to find."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, [])
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def _imported(source: bytes) -> Iterator[str]:
    """The packages that a source file imports, anywhere in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@functools.cache
def git_state() -> dict[str, Any]:
    """The commit of the source code, and whether there are uncommitted changes; empty outside a repository."""
    try:
        return {"commit": _git("rev-parse", "HEAD").strip(), "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {}


def source_changes() -> str:
    """The uncommitted changes to the code, as `git diff` writes them; empty if there are none.

    The code is this package, conf/, hydra_plugins/ and train.py, with untracked files, but without the options of
    loggers and launchers, which may contain keys and accounts. Other changed files may be private, too: a first line,
    which `git apply` skips, gives only their number.
    """
    code = (PACKAGE.name, "conf", "hydra_plugins", "train.py", ":(exclude)conf/logger", ":(exclude)conf/launcher")
    counting = ("status", "--porcelain", "-z", "--untracked-files=all", "--no-renames", "--")
    try:
        new = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *code).split("\0")[:-1]
        names = [name for name in new if name.endswith((".py", ".yaml"))]
        added = (_git("diff", "--no-index", "/dev/null", name, statuses=(0, 1)) for name in names)
        patch = "".join((_git("diff", "HEAD", "--", *code), *added))
        num = _git(*counting, ".").count("\0") - _git(*counting, *code).count("\0")
        left_out = f"Not included: {num} other changed or new files.\n"
        return left_out + patch if patch and num else patch
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str, statuses: tuple[int, ...] = (0,)) -> str:
    """The output of git in the folder of the source code. Raises: CalledProcessError for another exit status."""
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if result.returncode not in statuses:
        raise subprocess.CalledProcessError(result.returncode, command)
    return result.stdout
