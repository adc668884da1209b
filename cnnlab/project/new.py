"""cnnlab new NAME: a small repository that uses cnnlab. Its files are those of template/, which end in .in."""

import argparse
import importlib.metadata
import importlib.util
import json
import keyword
import secrets
import shutil
import sys
from pathlib import Path

from cnnlab import __version__
from cnnlab.config.options import PACKAGE, UserError
from cnnlab.text import say

TEMPLATE = Path(__file__).parent / "template"
NAME = "my_project"  # in the texts and paths of the template


def new(arguments: argparse.Namespace) -> None:
    """Create a project: a repository that uses cnnlab, with a few options of its own and their tests."""
    make(arguments.folder.absolute())
    say(f"Created {arguments.folder}. Next, in it: make demo (six runs and a report), make test. See README.md.")


def make(folder: Path) -> None:
    """Write the project with the name of its folder, which appears by rename.

    Raises: UserError if a package cannot have that name, or the folder exists.
    """
    name = folder.name
    check_name(name)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} already exists. Use another name, or move it away.")
    if not folder.parent.is_dir():
        raise UserError(f"{folder.parent} is not a folder. Create it first, or use another one.")
    partial = folder.with_name(f".{name}.{secrets.token_hex(4)}.partial")
    try:
        for file in sorted(TEMPLATE.rglob("*.in")):
            path = file.relative_to(TEMPLATE).with_suffix("").as_posix()
            target = partial / path.replace("dot_", ".").replace(NAME, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_text("utf-8").replace(NAME, name).replace("REQUIREMENT", requirement())
            target.write_text(text, encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_name(name: str) -> None:
    """Raises: UserError for a name that a package cannot have, or that is in use."""
    good = name.isascii() and name.isidentifier() and name == name.lower() and not keyword.iskeyword(name)
    if not good or name.startswith("_"):
        close = "".join(character if character.isalnum() else "_" for character in name.lower()).strip("_")
        advice = (
            f", for example {close}"
            if close.isascii() and close.isidentifier() and not keyword.iskeyword(close)
            else ""
        )
        raise UserError(
            f"{name} cannot be the name of a Python package. Use lower-case letters, digits and underscores{advice}."
        )
    if name in sys.stdlib_module_names or name in ("conf", "outputs", "tests", "train", PACKAGE.name):
        raise UserError(f"{name} is in use by Python, cnnlab or the files of a project. Use another name.")
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is not None and found.origin is not None:
        raise UserError(f"{name} would hide an installed package ({found.origin}). Use another name.")


def requirement() -> str:
    """The requirement by which another project installs this cnnlab: from the same source, or by its version.

    The source is the folder of a checkout, or what pip has recorded (PEP 610: a folder, a file, or a repository and its
    commit); pip records nothing for a package index.
    """
    name = PACKAGE.name
    if (PACKAGE.parent / "pyproject.toml").exists():
        return f"{name} @ {PACKAGE.parent.as_uri()}"
    try:
        recorded = json.loads(importlib.metadata.distribution(name).read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        recorded = {}
    if "vcs_info" in recorded:
        return f"{name} @ {recorded['vcs_info']['vcs']}+{recorded['url']}@{recorded['vcs_info']['commit_id']}"
    return f"{name} @ {recorded['url']}" if "url" in recorded else f"{name}~={__version__}"
