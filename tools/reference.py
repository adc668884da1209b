"""Writes docs/reference: options from their files, commands from their parsers, classes from their docstrings.

    python -m tools.reference

`make docs` runs it before it builds the site. The folder is not in git. Does not import torch.
"""

import re
from pathlib import Path

import yaml

from cnnlab.cli import verbs
from cnnlab.config.options import (
    CONF,
    LISTED,
    OVERLAYS,
    comments_of_file,
    default_option,
    leaves,
    limits_of_file,
    option_file,
)
from cnnlab.config.values import as_typed

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"

GROUPS = {  # in the order of the page
    "data": "The images and their labels.",
    "norm": "Normalization, fitted to the training images.",
    "aug": "Augmentation. Several at once: `'aug=[crop_flip,cutmix]'`. [What each one looks like](../augmentation.md).",
    "model": "The network.",
    "loss": "The loss.",
    "metrics": "Metrics besides the loss. Several at once: `'metrics=[acc,f1]'`.",
    "optim": "The optimizer.",
    "sched": "The learning rate schedule.",
    "module": "The LightningModule, which defines the training step.",
    "trainer": "Lightning's Trainer: device, precision, number of epochs.",
    "callbacks": "Lightning's callbacks. Several at once: `'callbacks=[ema,early_stopping]'`.",
    "logger": "Where metrics go besides `metrics.csv`. Several at once: `'logger=[tensorboard,csv]'`.",
    "launcher": "What starts the runs of a sweep. Without one, they run one after the other.",
    "hydra/sweeper": "Which runs a sweep (`-m`) consists of.",
    "experiment": "Named configurations: options of several groups, and values.",
    "debug": "Short runs for finding mistakes.",
}
DOCUMENTED = (
    *("data.images", "config.shape", "augment.base", "normalize", "networks", "losses", "metrics", "callbacks"),
    *("python", "testing"),
)
WIDEST = 60  # characters of a default value; longer lists are not shown


def head(path: Path) -> str:
    """The comment at the top of an option file, as Markdown; commands in it become a block of code."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not re.match(r"# @package|#.*\[changes nothing\]$", line):
            line = line.removeprefix("#").removeprefix(" ")
            lines.append(line if line.startswith("    ") else line.replace("<", "&lt;"))
    return "\n".join(lines).strip()


def choices(path: Path) -> str:
    """The options that an experiment chooses in other groups, and what it sweeps over, as one line of Markdown."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    chosen = [
        f"{key.removeprefix('override ').lstrip('/').partition('@')[0]}={as_typed(value)}"
        for entry in content.get("defaults", [])
        if isinstance(entry, dict)
        for key, value in entry.items()
    ]
    swept = [f"{key}={value}" for key, value in content.get("hydra", {}).get("sweeper", {}).get("params", {}).items()]
    parts = (f"Chooses `{' '.join(chosen)}`." if chosen else "", f"Sweeps over `{' '.join(swept)}`." if swept else "")
    return " ".join(filter(None, parts))


def table(name: str, prefix: str) -> list[str]:
    """The values of an option file, with those that it inherits, as a table in Markdown."""
    comments, conditions = comments_of_file(name), limits_of_file(name)
    lines = ["| key | default | meaning | condition |", "| --- | --- | --- | --- |"]
    for path, default in leaves(option_file(name)):
        if path.rpartition(".")[2] in ("_target_", "_partial_"):
            continue
        value, condition = as_typed(default), conditions.get(path)
        comment = comments.get(path, "").removesuffix(f"[{condition}]").strip()
        cells = [f"`{prefix}{path}`", f"`{value}`" if len(value) <= WIDEST else "(a list)", comment]
        cells.append(f"`{condition}`" if condition else "")
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return [*lines, ""] if len(lines) > 2 else []


def options() -> str:
    """The page of all options."""
    lines = [
        "# Options",
        "",
        "`group=option` chooses an option, `group.key=value` changes one of its values. With `-m`, a comma-separated",
        "list of either is a sweep. `python train.py --help` shows the same in a terminal, with the options of your",
        "own project. Conditions may refer to other values of the option, to facts about the data (`data.height`) and",
        "to values of the run (`run.val_fraction`). *The lab report* is the student's report on CIFAR-10 that cnnlab",
        "began with; see [the study](../study/README.md).",
        "",
        "## Values of a run",
        "",
        "These do not belong to a group.",
        "",
        *table("train", ""),
    ]
    for group, about in GROUPS.items():
        default = default_option(group) if group != "hydra/sweeper" else "grid"
        lines += [f"## {group}", "", about + (f" Default: `{default}`." if default != "None" else ""), ""]
        for path in sorted(CONF.glob(f"{group}/*.yaml")):
            target = re.search(r"^_target_: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            paragraphs = (head(path), choices(path), f"Class: `{target[1]}`" if target else "")
            lines += [f"### {group}={path.stem}", ""]
            lines += [line for text in paragraphs if text for line in (*text.splitlines(), "")]
            prefix = f"{group.replace('/', '.')}.{path.stem}." if group in LISTED else f"{group.replace('/', '.')}."
            lines += table(f"{group}/{path.stem}", "" if group in OVERLAYS else prefix)
    return "\n".join(lines)


def commands() -> str:
    """The page of all commands."""
    lines = [
        "# Commands",
        "",
        "`cnnlab VERB` and `python -m cnnlab VERB` are the same; `cnnlab train` is `python train.py`:",
        "",
        "    cnnlab train [-m] [group=option ...] [key=value ...]",
        "",
    ]
    for name, verb in verbs().items():
        usage = re.sub(r"\s+", " ", verb.format_usage().removeprefix("usage: python -m "))
        lines += [f"## {name}", "", verb.description or "", "", f"    {usage.strip()}", ""]
        for action in verb._actions:
            if action.dest != "help":
                word = ", ".join(action.option_strings) or str(action.metavar or action.dest)
                lines.append(f"- `{word}`: {(action.help or '') % {'default': action.default}}")
        lines.append("")
    return "\n".join(lines)


def classes() -> str:
    """The page of classes; mkdocstrings fills it when the site is built."""
    lines = ["# Classes", "", "The classes that options name or are subclasses of, from their docstrings.", ""]
    for name in DOCUMENTED:
        lines += [f"## cnnlab.{name}", "", f"::: cnnlab.{name}", ""]
    return "\n".join(lines)


def write(folder: Path = FOLDER) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in (("options", options()), ("commands", commands()), ("classes", classes())):
        (folder / f"{name}.md").write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
