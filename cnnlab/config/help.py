"""--help: every group with its options, and the arguments of the chosen ones, from the comments of their files."""

from collections.abc import Iterable, Sequence

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cnnlab.config.identity import chosen, configuration
from cnnlab.config.options import (
    GROUPS,
    LISTED,
    OVERLAYS,
    UserError,
    comments_of_file,
    description,
    leaves,
    option_file,
    options,
)
from cnnlab.config.values import as_typed, job_config
from cnnlab.terminal import terminal_width

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
    """Print the help page. words: of the command line: overrides, which are applied, and groups to show alone."""
    groups = [word for word in words if "=" not in word and word[:1] not in ("-", "~")]
    if unknown := [group for group in groups if group not in SHOWN]:
        raise UserError(f"--help {unknown[0]}: there is no group {unknown[0]}. Use one of {', '.join(SHOWN)}.")
    config = configuration([word for word in words if "=" in word])
    console = Console(width=terminal_width(WIDEST), highlight=False)
    console.width = min(console.width, WIDEST)
    if not groups:
        console.print(USAGE, "", PURPOSE, "", sep="\n")
        console.print(_columns((command, f"# {what}") for command, what in EXAMPLES))
    now = chosen(config)
    for group in groups or SHOWN:
        several = f": several at once as '{group}=[a,b]'" if group in LISTED else ""
        console.print(Text.assemble("\n", (f"{group}=", "bold"), f"OPTION{several}"))
        rows = [(option, description(f"{group}/{option}"), option in now.get(group, ())) for option in options(group)]
        console.print(_columns((f"{'*' * mark:1} {option}", text) for option, text, mark in rows))
        for option in options(group) if groups else ():
            _print_arguments(console, config, group, option)
    if not groups:
        for group in (*GROUPS, "trainer", "logger", "launcher"):
            for option in now.get(group, ()):
                _print_arguments(console, config, group, option)
        _print_arguments(console, config)
        console.print("\n* marks what is chosen. To see the arguments of another option, choose it: model=NAME --help.")


def _columns(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for first, second in rows:
        table.add_row(Text(first), Text(second))
    return table


def _print_arguments(console: Console, config: DictConfig, group: str = "", option: str = "") -> None:
    """Print the arguments of an option, or those that belong to no group: KEY=VALUE and its comment."""
    if group in OVERLAYS:
        return
    name, prefix = f"{group}/{option}" if group else "train", f"{group}." if group else ""
    prefix += f"{option}." if group in LISTED else ""
    comments, now, rows = comments_of_file(name), dict(leaves(job_config(config))), []
    is_chosen = not group or option in chosen(config).get(group, ())
    for path, default in leaves(option_file(name)):
        if path[0] != "_" and not str(default).startswith("data.") and (group or path in now):
            value = now.get(f"{prefix}{path}", default) if is_chosen else default
            rows.append((f"  {prefix}{path}={as_typed(value)}", comments.get(path, "")))
    if rows:
        title = f"{group}={option}" if group else "the run itself"
        console.print(Text(f"\nArguments of {title}", "bold"))
        console.print(_columns(rows))
