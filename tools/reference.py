"""Writes docs/reference: every option from its file, every command from its parser, the classes from their docstrings.

    python -m tools.reference

`make docs` runs it before it builds the site. The folder is not kept in git. Does not import torch.
"""

import argparse
import re
from pathlib import Path

import yaml

from cnnlab.cli import parser
from cnnlab.config.options import CONF, default_option
from cnnlab.config.values import as_typed

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"

GROUPS = {  # in the order of the page, with what a group is for
    "data": "The images and their labels.",
    "norm": "Normalization, fitted to the training images.",
    "aug": "Augmentation. Several at once: `'aug=[crop_flip,cutmix]'`. [What each one looks like](../augmentation.md).",
    "model": "The network.",
    "loss": "The loss.",
    "metrics": "What is measured besides the loss. Several at once: `'metrics=[acc,f1]'`.",
    "optim": "The optimizer.",
    "sched": "The learning rate schedule.",
    "module": "The LightningModule: what a training step does.",
    "trainer": "Lightning's Trainer: where a run computes, in which precision, for how long.",
    "callbacks": "Lightning's callbacks. Several at once: `'callbacks=[ema,early_stopping]'`.",
    "logger": "Where metrics go besides `metrics.csv`. Several at once: `'logger=[tensorboard,csv]'`.",
    "launcher": "What starts the runs of a sweep; without one they run one after the other.",
    "hydra/sweeper": "Which runs a sweep (`-m`) has.",
    "experiment": "Sets of choices with a name.",
    "debug": "Short runs that look for mistakes.",
}
DOCUMENTED = ("data.images", "config.shape", "augment.base", "normalize", "networks", "losses", "metrics", "callbacks")
OPTIONAL = ("python", "testing")


def head(path: Path) -> str:
    """The comment that an option file begins with, as Markdown; commands in it as a block of code."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not re.match(r"# @package|#.*\[changes nothing\]$", line):
            line = line.removeprefix("#").removeprefix(" ")
            lines.append(line if line.startswith("    ") else line.replace("<", "&lt;"))
    return "\n".join(lines).strip()


def values(path: Path) -> list[tuple[str, str, str, str]]:
    """The values of an option file: path, default, comment, and what it must satisfy, each as text."""
    text = path.read_text(encoding="utf-8")
    lines = [*text.splitlines(), ""]
    rows: list[tuple[str, str, str, str]] = []

    def walk(node: yaml.MappingNode, prefix: str) -> None:
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if key.value in ("defaults", "hydra", "_target_", "_partial_"):
                continue
            if isinstance(value, yaml.MappingNode) and value.value:
                walk(value, f"{name}.")
                continue
            block = isinstance(value, yaml.SequenceNode) and not value.flow_style
            line = lines[key.end_mark.line if block else value.end_mark.line]
            comment = line[(key.end_mark if block else value.end_mark).column :].partition("#")[2]
            comment = comment.replace("[changes nothing]", "").strip()
            limit = re.search(r"\[((?:[^][]|\[[^][]*\])*)\]$", comment)
            if limit and not re.search(rf"\b{key.value}\b", limit[1]):
                limit = None
            shown = "(a list)" if block else text[value.start_mark.index : value.end_mark.index]
            rows.append(
                (name, shown, comment[: limit.start()].strip() if limit else comment, limit[1] if limit else "")
            )

    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        walk(root, "")
    return rows


def inherited(path: Path) -> list[tuple[str, str, str, str]]:
    """The values of an option file, with those of the options of its group that it builds on."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    rows: dict[str, tuple[str, str, str, str]] = {}
    for parent in content.get("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            rows |= {row[0]: row for row in inherited(path.with_name(f"{parent}.yaml"))}
    return list((rows | {row[0]: row for row in values(path)}).values())


def choices(path: Path) -> str:
    """What an option of the groups that change others chooses, and what it sweeps over, as one line of Markdown."""
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    chosen = [
        f"{key.removeprefix('override ').lstrip('/').partition('@')[0]}={as_typed(value)}"
        for entry in content.get("defaults", [])
        if isinstance(entry, dict)
        for key, value in entry.items()
    ]
    swept = [f"{key}={value}" for key, value in content.get("hydra", {}).get("sweeper", {}).get("params", {}).items()]
    said = [f"Chooses `{' '.join(chosen)}`."] if chosen else []
    return " ".join([*said, *([f"Sweeps over `{' '.join(swept)}`."] if swept else [])])


def cell(text: str, code: bool = False) -> str:
    if not text:
        return ""
    text = text.replace("|", "\\|")
    return f"`{text}`" if code else text


def table(rows: list[tuple[str, str, str, str]], prefix: str) -> list[str]:
    lines = ["| key | default | meaning | must satisfy |", "| --- | --- | --- | --- |"]
    for name, default, comment, limit in rows:
        full = cell(prefix + name, code=True)
        lines.append(f"| {full} | {cell(default, code=True)} | {cell(comment)} | {cell(limit, code=True)} |")
    return [*lines, ""]


def options() -> str:
    """The page of all options."""
    lines = [
        "# Options",
        "",
        "`group=option` chooses an option, `group.key=value` changes one of its values. With `-m`, a list of either is",
        "a sweep. `python train.py --help` shows the same in a terminal, with the options of your own project.",
        "A condition in the last column may name other values of the option, facts about the data (`data.height`) and",
        "values of the run (`run.val_fraction`).",
        "",
        "## Values of a run",
        "",
        "These belong to no group.",
        "",
        *table(values(CONF / "train.yaml"), ""),
    ]
    for group, about in GROUPS.items():
        default = default_option(group) if group not in ("hydra/sweeper",) else "grid"
        chosen = f" Default: `{default}`." if default != "None" else ""
        lines += [f"## {group}", "", f"{about}{chosen}", ""]
        for path in sorted(CONF.glob(f"{group}/*.yaml")):
            target = re.search(r"^_target_: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            lines += [f"### {group}={path.stem}", "", *head(path).splitlines(), ""]
            if more := choices(path):
                lines += [more, ""]
            if target:
                lines += [f"Class: `{target[1]}`", ""]
            listed = f"{group}.{path.stem}." if group in ("aug", "metrics", "callbacks", "logger") else f"{group}."
            prefix = {"hydra/sweeper": "hydra.sweeper.", "experiment": "", "debug": ""}.get(group, listed)
            if rows := inherited(path):
                lines += table(rows, prefix)
    return "\n".join(lines)


def verbs() -> dict[str, argparse.ArgumentParser]:
    """What `cnnlab` can do besides training, with the parser of each."""
    return dict(next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)).choices)


def commands() -> str:
    """The page of all commands."""
    lines = [
        "# Commands",
        "",
        "`cnnlab VERB` and `python -m cnnlab VERB` are the same. `cnnlab train` is `python train.py`:",
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
    """The page of the classes that options are made of, or are subclasses of; filled when the site is built."""
    lines = [
        "# Classes",
        "",
        "What options are made of, or are subclasses of, from the docstrings in the source.",
        "",
    ]
    for name in (*DOCUMENTED, *(name for name in OPTIONAL if (ROOT / "cnnlab" / f"{name}.py").exists())):
        lines += [f"## cnnlab.{name}", "", f"::: cnnlab.{name}", ""]
    return "\n".join(lines)


def write(folder: Path = FOLDER) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in (("options", options()), ("commands", commands()), ("classes", classes())):
        (folder / f"{name}.md").write_text(text.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
