"""cnnlab rename NAME: a fork of cnnlab under another name.

Package, plugins, command and environment variables are renamed in all tracked files except LICENSE, whose notice has
to stay. Runs that were made under the old name are still found: the identity of a run depends neither on where classes
are defined nor on where data are cached.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from cnnlab.config.options import PACKAGE, UserError
from cnnlab.project.new import check_name
from cnnlab.text import say


def rename(arguments: argparse.Namespace) -> None:
    """Rename a fork of cnnlab, the checkout that this command belongs to, in all of its files."""
    renamed(PACKAGE.parent, arguments.name)
    say(f"{PACKAGE.name} is now {arguments.name}. Check git diff, install it (rm -r .venv; make test), and commit.")


def renamed(root: Path, name: str) -> None:
    """Rename the package of a checkout. root: its folder. name: the new name.

    Raises: UserError for a name that is invalid or in use, and for uncommitted changes.
    """
    check_name(name)
    old = PACKAGE.name
    try:
        if git(root, "status", "--porcelain"):
            raise UserError(f"{root} has uncommitted changes. Commit them first, so that git can undo this.")
        files = [root / path for path in git(root, "ls-files", "-z").split("\0")[:-1]]
        if root / old / "__init__.py" not in files:
            raise FileNotFoundError
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{root} is not a git repository of {old}. Use git clone, and run this there.") from error
    for file in files:
        if file.name != "LICENSE" and not file.is_symlink() and file.is_file():
            replace(file, {old: name, old.upper(): name.upper()})
    for path in sorted({path for file in files for path in (file, *file.parents)}, key=lambda path: -len(path.parts)):
        if path.is_relative_to(root) and path != root and old in path.name:
            path.rename(path.with_name(path.name.replace(old, name)))
    for folder in root.rglob("__pycache__"):  # of the renamed modules
        if ".venv" not in folder.parts:
            shutil.rmtree(folder, ignore_errors=True)
    if ruff := shutil.which("ruff", path=str(Path(sys.executable).parent)):  # the order of imports has changed
        for words in (("check", "--quiet", "--select", "I", "--fix"), ("format", "--quiet")):
            subprocess.run([ruff, *words, str(root)], check=False, cwd=root)


def replace(file: Path, words: dict[str, str]) -> None:
    """Replace words in a file, if it is a text file."""
    try:
        before = after = file.read_bytes().decode()
    except UnicodeDecodeError:
        return
    for old, new in words.items():
        after = after.replace(old, new)
    if after != before:
        file.write_bytes(after.encode())


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout
