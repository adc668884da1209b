"""--help: every group with its options, and the arguments of the chosen ones, from the comments of their files.

Each of them has one line, which ends where the terminal does; the help on a group or an option has the whole text.
"""

import re
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
    changes_nothing,
    comments_of_file,
    description,
    head,
    leaves,
    option_file,
    options,
)
from cnnlab.config.values import as_typed, job_config
from cnnlab.terminal import terminal_width

SHOWN = (*GROUPS, "trainer", "logger", "launcher", *OVERLAYS)
WIDEST = 100  # characters of a line
SHORT, LONG = 36, 54  # of a key and its value, if they have one line or several

USAGE = "Usage: python train.py [GROUP=OPTION ...] [KEY=VALUE ...]  (or: cnnlab train)"
PURPOSE = (
    "Trains a network on small images. The same command resumes a run that was interrupted and returns one that is "
    "finished. With -m, it trains every combination of comma-separated values and reports which setting is best."
)
EXAMPLES = (
    ("python train.py model.batch_norm=true optim.lr=0.02", "one run"),
    ("python train.py -m optim=sgd,adam 'seed=range(3)'", "six runs, compared"),
    ("python train.py -m optim=sgd,adam plan=true", "what it would train"),
    ("python train.py experiment=best seed=1", "a recipe"),
    ("python train.py --help optim", "a group, or an option"),
)
MORE = "* marks what is chosen. --help GROUP and --help OPTION show the whole text, and --help run the keys of the run."


def print_help(words: Sequence[str]) -> None:
    """Print the help page. words: of the command line: overrides, which are applied, and what to show alone."""
    names = [word for word in words if "=" not in word and word[:1] not in ("-", "~")]
    having = {name: [group for group in SHOWN if name in options(group)] for name in names}
    if unknown := [name for name in names if name not in (*SHOWN, "run") and not having[name]]:
        known = ", ".join((*SHOWN, "run"))
        raise UserError(
            f"--help {unknown[0]}: there is no group or option {unknown[0]}. Use an option or one of {known}."
        )
    config = configuration([word for word in words if "=" in word])
    console = Console(width=terminal_width(WIDEST), highlight=False)
    console.width = min(console.width, WIDEST)
    cut = 0 if names else console.width
    if not names:
        console.print(USAGE, "", PURPOSE, "", sep="\n")
        console.print(_columns((command, f"# {what}") for command, what in EXAMPLES))
    now = chosen(config)
    for group in names or SHOWN:
        if group in SHOWN:
            several = f": several at once as '{group}=[a,b]'" if group in LISTED else ""
            console.print(Text.assemble("\n", (f"{group}=", "bold"), f"OPTION{several}"))
            marks = {option: "*" if option in now.get(group, ()) else " " for option in options(group)}
            rows = ((f"{mark} {option}", description(f"{group}/{option}")) for option, mark in marks.items())
            console.print(_columns(rows, cut))
    for name in names:
        for group in having[name]:
            text = re.sub(r"(?m)^(\S.*)\n(?=\S)", r"\1 ", "\n".join(head(f"{group}/{name}")))
            console.print(Text.assemble("\n", (f"{group}={name}", "bold"), f"\n{text}"))
            _print_arguments(console, config, group, name)
        for option in options(name) if name in SHOWN else ():
            _print_arguments(console, config, name, option)
    if not names:
        for group in (*GROUPS, "trainer", "logger", "launcher"):
            for option in now.get(group, ()):
                _print_arguments(console, config, group, option, cut)
    if not names or "run" in names:
        _print_arguments(console, config, cut=cut)
    if not names:
        console.print("", MORE, sep="\n")


def _columns(rows: Iterable[tuple[str, str]], cut: int = 0) -> Table:
    """cut: the length of a line, if every row is one."""
    texts = [(Text(first), Text(second)) for first, second in rows]
    width = min(max(len(first) for first, _ in texts), SHORT if cut else LONG)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=bool(cut), overflow="ellipsis" if cut else "fold", width=width)
    table.add_column(no_wrap=bool(cut), overflow="ellipsis", max_width=cut - width - 2 if cut else None)
    for row in texts:
        table.add_row(*row)
    return table


def _print_arguments(console: Console, config: DictConfig, group: str = "", option: str = "", cut: int = 0) -> None:
    """Print the arguments of an option, or those that belong to no group: KEY=VALUE and its comment."""
    if group in OVERLAYS:
        return
    name, prefix = f"{group}/{option}" if group else "train", f"{group}." if group else ""
    prefix += f"{option}." if group in LISTED else ""
    comments, now, rows, unnamed = comments_of_file(name), dict(leaves(job_config(config))), [], changes_nothing(name)
    is_chosen = not group or option in chosen(config).get(group, ())
    for path, default in leaves(option_file(name)):
        if path[0] != "_" and not str(default).startswith("data.") and (group or path in now):
            value = now.get(f"{prefix}{path}", default) if is_chosen else default
            note = " [changes nothing]" * bool({path.partition(".")[0], ""} & unnamed)
            rows.append((f"  {prefix}{path}={as_typed(value)}", comments.get(path, "") + note))
    if rows:
        title = f"{group}={option}" if group else "the run itself"
        console.print(Text(f"\nArguments of {title}", "bold"))
        console.print(_columns(rows, cut))
