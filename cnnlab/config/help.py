"""--help: every group with its options, and the arguments of what is chosen, as the option files describe them.

Does not import torch.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cnnlab.config.identity import chosen, configuration
from cnnlab.config.options import GROUPS, LISTED, OVERLAYS, comments_of_file, description, leaves, option_file, options
from cnnlab.config.values import as_typed, job_config

SHOWN = (*GROUPS, "trainer", "logger", "launcher", *OVERLAYS)
WIDEST = 100  # characters of a line

USAGE = "Usage: python train.py [GROUP=OPTION ...] [KEY=VALUE ...]      (or: cnnlab train ...)"
PURPOSE = (
    "Trains a network on small images. The same command resumes a run that was interrupted and returns one that is "
    "finished. With -m, it trains every combination of comma-separated values and reports which setting is best."
)
EXAMPLES = (
    ("python train.py model.batch_norm=true optim.lr=0.02", "one run"),
    ("python train.py -m optim=sgd,adam 'seed=range(3)'", "six runs: which is better?"),
    ("python train.py -m optim=sgd,adam plan=true", "what it would train"),
    ("python train.py experiment=best seed=1", "a recipe"),
    ("python train.py --help optim", "one group"),
)


def print_help(words: Sequence[str]) -> None:
    """words: of the command line. A group's name shows that group alone; overrides are applied before."""
    config = configuration([word for word in words if "=" in word])
    groups = [word for word in words if word in SHOWN]
    console = Console(width=None if os.isatty(1) else WIDEST, highlight=False)
    console.width = min(console.width, WIDEST)
    if not groups:
        console.print(USAGE, "", PURPOSE, "", sep="\n")
        console.print(_columns((Text(command), f"# {what}") for command, what in EXAMPLES))
    now = chosen(config)
    for group in groups or SHOWN:
        several = f": several at once as '{group}=[a,b]'" if group in LISTED else ""
        console.print(Text.assemble("\n", (f"{group}=", "bold"), f"OPTION{several}"))
        rows = [(option, description(f"{group}/{option}"), option in now.get(group, ())) for option in options(group)]
        console.print(_columns((f"{'*' * mark:1} {option}", text) for option, text, mark in rows))
        for option in options(group) if groups else ():
            _print_arguments(console, f"{group}={option}", list(_arguments(config, group, option)))
    if not groups:
        for group in GROUPS + ("trainer", "logger", "launcher"):
            for option in now.get(group, ()):
                _print_arguments(console, f"{group}={option}", list(_arguments(config, group, option)))
        _print_arguments(console, "the run itself", list(_own(config)))
        console.print("\n* is what is chosen. To see the arguments of other options, choose them: model=NAME --help.")


def _columns(rows: Any) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for first, second in rows:
        table.add_row(Text(str(first)), Text(second))
    return table


def _print_arguments(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    if rows:
        console.print(Text(f"\nArguments of {title}", "bold"))
        console.print(_columns((f"  {argument}", comment) for argument, comment in rows))


def _arguments(config: DictConfig, group: str, option: str) -> Iterator[tuple[str, str]]:
    """Of an option: KEY=VALUE, the value that it would have, and the comment on it."""
    if group in OVERLAYS:
        return
    name, prefix = f"{group}/{option}", f"{group}.{option}." if group in LISTED else f"{group}."
    comments, now = comments_of_file(name), dict(leaves(job_config(config)))
    for path, default in leaves(option_file(name)):
        if path[0] == "_" or path == "defaults" or str(default).startswith("data."):
            continue
        value = now.get(f"{prefix}{path}", default) if option in chosen(config).get(group, ()) else default
        yield f"{prefix}{path}={as_typed(value)}", comments.get(path, "")


def _own(config: DictConfig) -> Iterator[tuple[str, str]]:
    """What belongs to no group."""
    comments, now = comments_of_file("train"), dict(leaves(job_config(config)))
    for path, _ in leaves(option_file("train")):
        if path in now:
            yield f"{path}={as_typed(now[path])}", comments.get(path, "")
