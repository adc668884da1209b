"""python -m cnnlab VERB: what there is to do besides training."""

import argparse
import sys

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cnnlab.config import CONF, UserError, check_value, chosen, instantiate, leaves, option_defaults, plain, refuse


def configuration(overrides: list[str]) -> DictConfig:
    """The configuration that train.py would have for these overrides."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides, return_hydra_config=True)


def fetch(arguments: argparse.Namespace) -> None:
    """Download or decode a data set now, for jobs that run without network later."""
    config = configuration(arguments.overrides)
    defaults = option_defaults(chosen(config))
    for path, value in leaves({"data": plain(config.data)}):
        check_value(path, value, defaults.get(path))
    source = instantiate(config.data)
    source.check()
    data = source.load()
    for part, images in (("training", data.train), ("test", data.test)):
        num, channels, height, width = images.pixels.shape
        print(f"{num:,} {part} images of {height}x{width}x{channels} in {len(images.classes)} classes")
    print(f"fingerprint {data.fingerprint}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m cnnlab", description="What there is to do besides training.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for function in (fetch,):
        verb = verbs.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        verb.add_argument("overrides", nargs="*", metavar="group=option or key=value", help="as for train.py")
        verb.set_defaults(function=function)
    return parser


def main() -> None:
    arguments = parser().parse_args()
    try:
        arguments.function(arguments)
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(refuse(error))
