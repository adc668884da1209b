"""python -m cnnlab VERB: what there is to do besides training."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cnnlab import __version__
from cnnlab.config.mistakes import refuse
from cnnlab.config.options import UserError, folders, use_folders
from cnnlab.console import outlive_terminal
from cnnlab.project.new import new
from cnnlab.project.rename import rename
from cnnlab.runs.directory import CheckpointError
from cnnlab.runs.named import HERE
from cnnlab.use.verbs import anatomy, compare, evaluate, export, fetch, ls, predict, report, show, status

OVERRIDES: dict[str, Any] = {"nargs": "*", "metavar": "group=option or key=value", "help": "as for train.py"}
RUN: dict[str, Any] = {
    "metavar": "RUN",
    "help": "a run directory, its name or the beginning of its hash, as python -m cnnlab ls shows them; latest; best",
}
RUNS: dict[str, Any] = {
    "type": Path,
    "default": HERE,
    "metavar": "FOLDER",
    "help": "where RUN is looked for, if it is no path (default %(default)s)",
}
FOLDER: dict[str, Any] = {"nargs": "?", "type": Path, "default": HERE, "help": "default: %(default)s"}
VERBS: tuple[tuple[Callable[[argparse.Namespace], None], dict[str, dict[str, Any]]], ...] = (
    (
        ls,
        {
            "folder": FOLDER,
            "--by": {
                "metavar": "METRIC",
                "nargs": "?",
                "const": "",
                "help": "best first by this one: val/loss, ...; without one, by what each run was selected by",
            },
            "--num": {"type": int, "default": 50, "help": "how many (default %(default)s)"},
        },
    ),
    (status, {"folder": FOLDER}),
    (new, {"folder": {"type": Path, "metavar": "NAME", "help": "its folder, whose name is that of its package"}}),
    (rename, {"name": {"metavar": "NAME", "help": "of the package"}}),
    (fetch, {"overrides": OVERRIDES}),
    (anatomy, {"overrides": OVERRIDES}),
    (
        show,
        {
            "overrides": OVERRIDES | {"help": "as for train.py; or a run"},
            "--runs": RUNS,
            "--num": {"type": int, "default": 40, "help": "number of training images (default %(default)s)"},
            "--out": {"metavar": "FILE", "help": "where to write their picture, a PNG file"},
            "--picture": {"type": Path, "metavar": "FILE", "help": "what a run is shown; default: a test image"},
        },
    ),
    (
        report,
        {
            "folders": {"nargs": "+", "type": Path, "metavar": "FOLDER", "help": "runs, or folders of some"},
            "--out": {"type": Path, "metavar": "FOLDER", "help": "where to write it; default: beside the runs"},
            "--latex": {"action": "store_true", "help": "also write report.tex, to be included in a paper"},
        },
    ),
    (
        compare,
        {
            "first": {"help": "a run, a folder of runs, or settings: aug=cutmix,optim=sgd"},
            "second": {"help": "the same"},
            "--runs": {"type": Path, "default": HERE, "help": "where settings and names are looked for"},
            "--out": {"type": Path, "default": Path("compare.png"), "help": "curves (default %(default)s)"},
        },
    ),
    (
        evaluate,
        {
            "run": RUN,
            "--runs": RUNS,
            "overrides": OVERRIDES
            | {"help": "other data or statistics: data=..., data.root=..., norm=..., test_flips=, test_shifts="},
            "--out": {"type": Path, "metavar": "FOLDER", "help": "default: a folder in the run directory"},
        },
    ),
    (
        predict,
        {
            "run": RUN,
            "--runs": RUNS,
            "paths": {"nargs": "+", "type": Path, "metavar": "PATH", "help": "pictures, or folders of them"},
            "--top": {"type": int, "default": 3, "help": "labels for each (default %(default)s)"},
            "--format": {"choices": ("table", "csv", "json"), "default": "table", "help": "default: %(default)s"},
        },
    ),
    (
        export,
        {
            "run": RUN,
            "--runs": RUNS,
            "--format": {"choices": ("onnx", "torch"), "default": "onnx", "help": "default: %(default)s"},
            "--out": {"type": Path, "metavar": "FILE", "help": "default: model.onnx or model.pt2 in the run directory"},
        },
    ),
)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m cnnlab", description="What there is to do besides training.")
    parser.add_argument("--config-dir", action="append", default=[], metavar="FOLDER", help="with options of your own")
    parser.add_argument("--version", action="version", version=f"cnnlab {__version__}")
    parser.set_defaults(function=lambda _: parser.print_help())
    verbs = parser.add_subparsers(metavar="VERB")
    for function, arguments in VERBS:
        verb = verbs.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        verb.set_defaults(function=function)
        for name, settings in arguments.items():
            verb.add_argument(name, **settings)
    return parser


def main() -> None:
    if sys.argv[1:2] == ["train"]:
        from cnnlab.main import main as train

        del sys.argv[1]
        train()
        return
    outlive_terminal()
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own cannot be imported here
    arguments = parser().parse_args()
    try:
        if arguments.config_dir:
            use_folders(arguments.config_dir)
        folders()
        arguments.function(arguments)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(refuse(error))
    except CheckpointError as error:
        sys.exit(refuse(UserError(f"{error}. Train the run anew: rerun=true.")))
    except OSError as error:
        if error.errno is None:
            raise
        sys.exit(refuse(UserError(f"{error.filename} cannot be read or written ({error.strerror}).")))
