"""`cnnlab VERB`: everything besides training."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from cnnlab import __version__
from cnnlab.config.errors import refuse, refusing
from cnnlab.config.options import UserError, folders, use_folders
from cnnlab.config.overrides import flags_last, own_folders
from cnnlab.console import outlive_terminal
from cnnlab.project.new import new
from cnnlab.project.rename import rename
from cnnlab.runs.directory import CheckpointError
from cnnlab.runs.named import HERE
from cnnlab.use.board import board
from cnnlab.use.verbs import SHEET, anatomy, compare, evaluate, export, fetch, ls, predict, report, show, status

TAKE_OVERRIDES = ("train", "fetch", "anatomy", "show", "evaluate")
RUN = "a run directory, its name or the beginning of its hash, as 'cnnlab ls' shows them; latest; best"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One paragraph, as for other mistakes, instead of the usage and argparse's text."""
        if found := re.match("argument VERB: invalid choice: '(.*?)' \\(choose from (.*)\\)", message):
            verbs = found[2].replace("'", "").split(", ")
            close = "".join(f" Did you mean {verb}?" for verb in difflib.get_close_matches(found[1], verbs, n=1))
            message = f"there is no {found[1]}.{close} Use one of {', '.join(verbs)}."
        else:
            message = f"{message}. {self.prog} --help shows how to use it."
        sys.exit(refuse(UserError(message)))


def parser() -> argparse.ArgumentParser:
    parser = Parser("cnnlab", description="Training, and everything around it.")
    own: dict[str, Any] = {"metavar": "FOLDER", "help": "folder of your own option files"}  # see `own_folders`
    parser.add_argument("--config-dir", **own)
    parser.add_argument("--version", action="version", version=f"cnnlab {__version__}")
    parser.set_defaults(function=lambda _: parser.print_help())
    verbs = parser.add_subparsers(metavar="VERB")
    verbs.add_parser("train", help="Train one run, or with -m a sweep, as python train.py does: cnnlab train --help")

    def add(function: Callable[[argparse.Namespace], None]) -> Callable[..., argparse.Action]:
        """Add a verb; the returned function adds an argument to it."""
        verb = verbs.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        verb.set_defaults(function=function)
        verb.add_argument("--config-dir", **own)
        return verb.add_argument

    overrides: dict[str, Any] = {"nargs": "*", "metavar": "group=option or key=value", "help": "as for train.py"}
    runs: dict[str, Any] = {"type": Path, "default": HERE, "metavar": "FOLDER"}
    runs["help"] = "where to look for RUN, if it is not a path (default %(default)s)"
    folder: dict[str, Any] = {"nargs": "?", "type": Path, "default": HERE, "help": "default: %(default)s"}

    argument = add(ls)
    argument("folder", **folder)
    by = "sort by this metric, best first: val/loss, ...; without a value, by what each run was selected by"
    argument("--by", metavar="METRIC", nargs="?", const="", help=by)
    argument("--num", type=int, default=50, help="maximum number of runs (default %(default)s)")
    add(status)("folder", **folder)
    argument = add(board)
    argument("folder", **folder)
    argument("--port", type=int, help="default: 6006, or the next free one")
    argument("--host", default="localhost", help="0.0.0.0: reachable from other machines (default %(default)s)")
    add(new)("folder", type=Path, metavar="NAME", help="its folder, whose name becomes the name of the package")
    add(rename)("name", metavar="NAME", help="new package name")
    add(fetch)("overrides", **overrides)
    add(anatomy)("overrides", **overrides)

    argument = add(show)
    argument("overrides", **overrides | {"help": "as for train.py; or a run"})
    argument("--runs", **runs)
    argument("--num", type=int, help=f"number of training images (default {SHEET})")
    argument("--out", metavar="FILE", help="the figure of training images to write, a PNG file")
    argument("--picture", type=Path, metavar="FILE", help="image file to run the model on; default: a test image")

    argument = add(report)
    argument("folders", nargs="+", type=Path, metavar="FOLDER", help="runs, or folders of runs")
    argument("--out", type=Path, metavar="FOLDER", help="where to write it; default: beside the runs")
    argument("--latex", action="store_true", help="also write report.tex, for a paper")

    argument = add(compare)
    argument("first", help="a run, a folder of runs, or settings: aug=cutmix,optim=sgd")
    argument("second", help="the same")
    argument("--runs", type=Path, default=HERE, help="where to look for settings and names (default %(default)s)")
    argument("--out", type=Path, default=Path("compare.png"), help="curves (default %(default)s)")

    argument = add(evaluate)
    argument("run", metavar="RUN", help=RUN)
    argument("--runs", **runs)
    other = "other data or statistics: data=..., data.root=..., norm=..., test_flips=, test_shifts="
    argument("overrides", **overrides | {"help": other})
    argument("--out", type=Path, metavar="FOLDER", help="default: a folder in the run directory")

    argument = add(predict)
    argument("run", metavar="RUN", help=RUN)
    argument("--runs", **runs)
    argument("paths", nargs="+", type=Path, metavar="PATH", help="images, or folders of images")
    argument("--top", type=int, help="number of most probable classes to list (multiclass runs only; default 3)")
    argument("--format", choices=("table", "csv", "json"), default="table", help="default: %(default)s")

    argument = add(export)
    argument("run", metavar="RUN", help=RUN)
    argument("--runs", **runs)
    argument("--format", choices=("onnx", "torch"), default="onnx", help="default: %(default)s")
    argument("--out", type=Path, metavar="FILE", help="default: model.onnx or model.pt2 in the run directory")
    return parser


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The commands of `cnnlab`, with their parsers."""
    return dict(next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)).choices)


def complete() -> None:
    """Print what may follow in COMP_LINE, which bash completes: a verb; or, by Hydra, groups, options and keys."""
    program, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    verb, space, line = line.lstrip().partition(" ")
    os.environ["COMP_LINE"] = f"{program} {line}"
    if not space:
        print(*verbs())
    if not space or verb not in TAKE_OVERRIDES:
        sys.exit()
    sys.argv.insert(1, "train")


def main() -> None:
    if sys.argv[1:2] == ["-sc"]:
        complete()
    own = own_folders(words := sys.argv[1:])
    if words[:1] in (["help"], ["-h"]):
        words[0] = "--help"
    if words[:1] == ["--help"] and words[1:]:  # of a verb, or of a group or an option of `train`
        words = [words[1], "--help"] if words[1] in verbs() else ["train", "--help", *words[1:]]
    if words[:1] == ["train"]:
        from cnnlab.main import main as train

        sys.argv[1:] = [*(f"--config-dir={folder}" for folder in own), *words[1:]]
        train()
        return
    outlive_terminal()
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend cannot be imported here
    if words[:1] and words[0] in TAKE_OVERRIDES:
        words = [words[0], *flags_last(words[1:])]  # argparse takes overrides only if they are together
    arguments = parser().parse_args(words)
    try:
        with refusing():
            if own:
                use_folders(own)
            folders()
            arguments.function(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except CheckpointError as error:
        sys.exit(refuse(UserError(f"{error}. Train the run again with rerun=true.")))
    except OSError as error:
        if error.errno is None:
            raise
        sys.exit(refuse(UserError(f"{error.filename} cannot be read or written ({error.strerror}).")))
