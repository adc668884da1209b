"""python -m cnnlab VERB: what there is to do besides training."""

import argparse
import os
import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from cnnlab.config import (
    CONF,
    UserError,
    check,
    check_value,
    data_source,
    defaults_of,
    instantiate,
    leaves,
    plain,
    refuse,
)


def configuration(overrides: list[str]) -> DictConfig:
    """The configuration that train.py would have for these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides, return_hydra_config=True)


def fetch(arguments: argparse.Namespace) -> None:
    """Download or decode a data set now, for jobs that run without network later."""
    config = configuration(arguments.overrides)
    defaults = defaults_of(config)
    for path, value in leaves({"data": plain(config.data)}):
        check_value(path, value, defaults.get(path))
    source = instantiate(config.data)
    source.check()
    data = source.load()
    for part, images in (("training", data.train), ("test", data.test)):
        num, channels, height, width = images.pixels.shape
        print(f"{num:,} {part} images of {height}x{width}x{channels} in {len(images.classes)} classes")
    print(f"fingerprint {data.fingerprint}")


def anatomy(arguments: argparse.Namespace) -> None:
    """A network layer by layer: sizes, weights, multiply-adds, receptive fields."""
    config = configuration(arguments.overrides)
    check(config)
    from cnnlab.anatomy import layers

    source = data_source(config.data)
    image_size = source.image_size
    for node in config.aug.values():
        image_size = instantiate(node).output_size(image_size)
    network = instantiate(config.model, num_classes=source.num_classes, in_channels=3, image_size=image_size)
    parts = layers(network, in_channels=3, image_size=image_size)

    table = Table(title=f"{config.model._target_}, images of {image_size} pixels", title_justify="left")
    for name in ("layer", "kind", "output"):
        table.add_column(name)
    for name in ("weights", "multiply-adds", "receptive field", "stride", "fully connected"):
        table.add_column(name, justify="right")
    for layer in parts:
        size = " x ".join(map(str, layer.output))
        counts = (f"{layer.weights:,}", f"{layer.multiply_adds:,}", str(layer.receptive_field), str(layer.stride))
        table.add_row(layer.name, layer.kind, size, *counts, f"{layer.fully_connected:,}")
    table.add_section()
    sums = (sum(getattr(layer, name) for layer in parts) for name in ("weights", "multiply_adds", "fully_connected"))
    weights, multiply_adds, dense = (f"{value:,}" for value in sums)
    table.add_row("all", "", "", weights, multiply_adds, "", "", dense)
    Console(width=None if os.isatty(1) else 120).print(table)
    print("fully connected: weights, without biases, of a fully connected layer between the same sizes")


def show(arguments: argparse.Namespace) -> None:
    """Draw training images as stored and, below, as the network sees them."""
    config = configuration(arguments.overrides)
    check(config)
    from cnnlab.data.images import load_once
    from cnnlab.report import pictures
    from cnnlab.run import make_data

    options = "+".join(sorted(config.aug)) or "none"
    path = Path(arguments.out or Path(config.output_dir, "show", f"{data_source(config.data).name}-{options}.png"))
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.sheet(path, *make_data(config, load_once(data_source(config.data))).samples(arguments.num))
    print(path)


def report(arguments: argparse.Namespace) -> None:
    """Write the report of runs: which setting is best, and how sure that is."""
    from cnnlab.report import page
    from cnnlab.report.runs import find, read
    from cnnlab.report.sweep import Sweep

    if missing := [str(folder) for folder in arguments.folders if not folder.is_dir()]:
        raise UserError(f"{missing[0]} is no folder. Type one that holds runs, for example outputs/runs.")
    paths = list(find(arguments.folders))
    if not paths:
        raise UserError(f"There is no run in {arguments.folders[0]}. Type a folder that holds some, as outputs/runs.")
    sweep = Sweep(*read(paths))
    print(sweep.answer())
    print(page.write(sweep, arguments.out or page.default_folder(paths), latex=arguments.latex))


def compare(arguments: argparse.Namespace) -> None:
    """Say in three lines whether one setting is better than another, and draw their curves."""
    from cnnlab.report import compare, pictures

    first, second = (compare.chosen(what, arguments.runs) for what in (arguments.first, arguments.second))
    print("\n".join(compare.compare(first, second)))
    labels = compare.names(first, second)
    print(f"Curves: {arguments.out}")
    pictures.comparison(arguments.out, dict(zip(labels, (first, second), strict=True)))


def ls(arguments: argparse.Namespace) -> None:
    """List runs, newest first or by a metric."""
    from cnnlab.report.table import print_list

    print_list(arguments.folder, arguments.by, arguments.num)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m cnnlab", description="What there is to do besides training.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for function in (ls, fetch, anatomy, show, report, compare):
        verb = verbs.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        verb.set_defaults(function=function)
        if function in (fetch, anatomy, show):
            verb.add_argument("overrides", nargs="*", metavar="group=option or key=value", help="as for train.py")
        if function is ls:
            verb.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="default: %(default)s")
            verb.add_argument("--by", metavar="METRIC", help="best first by this one: test/acc, val/loss, ...")
            verb.add_argument("--num", type=int, default=50, help="how many (default %(default)s)")
        elif function is show:
            verb.add_argument("--num", type=int, default=40, help="number of images (default %(default)s)")
            verb.add_argument("--out", metavar="FILE", help="where to write the picture, a PNG file")
        elif function is report:
            verb.add_argument(
                "folders", nargs="+", type=Path, metavar="FOLDER", help="run directories, or what holds some"
            )
            verb.add_argument("--out", type=Path, metavar="FOLDER", help="where to write it; default: beside the runs")
            verb.add_argument("--latex", action="store_true", help="also write table.tex")
        elif function is compare:
            for name in ("first", "second"):
                verb.add_argument(name, help="a run directory, a folder of runs, or settings: aug=cutmix,optim=sgd")
            verb.add_argument("--runs", type=Path, default=Path("outputs"), help="where settings are looked for")
            verb.add_argument(
                "--out", type=Path, default=Path("compare.png"), metavar="FILE", help="curves (default %(default)s)"
            )
    return parser


def main() -> None:
    arguments = parser().parse_args()
    try:
        arguments.function(arguments)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(refuse(error))
    except PermissionError as error:
        sys.exit(refuse(UserError(f"{error.filename} cannot be written ({error.strerror}). Type another folder.")))
