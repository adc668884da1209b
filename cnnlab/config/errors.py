"""Error messages for wrong input: one paragraph each."""

import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from cnnlab.config.options import GROUPS, LISTED, UserError, leaves, option_file, options
from cnnlab.config.values import job_config
from cnnlab.text import say

HELP = "python train.py --help lists all options and keys."
OTHER_NAMES = {  # the names in other programs
    "dataset": "data",
    "network": "model",
    "optimizer": "optim",
    "scheduler": "sched",
    "learning_rate": "optim.lr",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "ckpt_path": "weights",
    "hparams_search": "hydra/sweeper",
    "task_name": "name",
    "gpus": "trainer.devices",
}

IN_OUR_WORDS = {  # what Hydra says, and what we say instead
    r"An item is already at '(.*?)'": "+{0}: {0} has a value already. Use {0}=VALUE; or ++{0}=VALUE in a sweep over "
    "options that do not all have it.",
    r"Multiple values for (\w+)\.": "+{0}: an option of {0} is chosen already. Use {0}=OPTION, without the plus.",
    r"Could not delete from config. '(.*?)' does not exist": "~{0}: there is no {0} to remove. " + HELP,
    r"The value of '(.*?)' is (.*) and not (.*)\.": "~{0}={2}: its value is {1}. Use ~{0}.",
}


@contextmanager
def refusing() -> Iterator[None]:
    """Within the block, wrong input that we or Hydra find ends the process with one paragraph and status 2."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(refuse(error))


def refuse(error: Exception) -> int:
    """Print the paragraph for wrong input; return the exit status 2."""
    say(f"cnnlab: {explain(error).replace(chr(10), ' ')}", file=sys.stderr)
    return 2


def explain(error: Exception) -> str:
    """One paragraph for an error that we or Hydra raised: what was given, what is allowed, what to use."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        if re.search(r"\(.*\bnull\b", error.override):
            return f"{error.override}: null is not allowed in parentheses. Use the list alone, key=null,1.0."
        if error.override.endswith(","):
            return f"{error.override} ends with a comma. Write lists of values without spaces: key=a,b."
        for opening, closing in ("()", "[]", "{}"):
            if error.override.count(opening) > error.override.count(closing):
                return f"{error.override}: a closing {closing} is missing. Quote what has brackets: 'key=...'."
        return (
            f"{error.override} cannot be parsed. Use key=value; quote lists, 'key=[a,b]', and put characters other "
            f"than letters, digits and ./:_- in two pairs of quotes, 'data.root=\"my images\"'."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        file = error.missing_cfg_file
        group, _, option = file.rpartition("/") if file.startswith("hydra/") else file.partition("/")
        known = sorted({*(error.options or ()), *options(group)})
        offers = _unknown(f"{group}={option}", f"The group {group} offers", known, f"{group}=")
        return offers + _by_name(group)
    if found := re.search(r"Sweep parameters '(.*)' requires --multirun", str(error)):  # seed=range(3)
        return f"{found[1]} has several values. Use python train.py -m to train a run for each."
    if found := re.search(r"Ambiguous value for argument '(.*?)'", str(error)):
        key, _, values = found[1].partition("=")
        several = f", or '{key}=[{values}]' for all of them in one run" if key in LISTED else ""
        if key not in (*GROUPS, "trainer", "logger"):
            several = f", or '{key}=[{values}]' for a list"
        return f"{found[1]} has several values. Use python train.py -m to train a run for each{several}."
    cause = error.__cause__
    if (
        isinstance(cause, ConfigAttributeError | ConfigKeyError)
        and cause.full_key
        and isinstance(cause.parent_node, DictConfig)
    ):
        return _unknown_key(cause.full_key, cause.parent_node)
    for theirs, ours in IN_OUR_WORDS.items():
        if found := re.search(theirs, str(error)):
            return ours.format(*found.groups())
    text = re.sub(r"\s*(full_key|object_type|reference_type).*|\s+", " ", f"{error} {cause or ''}").strip()
    return f"{text} ({HELP})"


def _unknown_key(key: str, node: DictConfig) -> str:
    """The paragraph for a key that a node of the configuration does not have."""
    parent, _, name = key.rpartition(".")
    if not parent and (below := [path for path, _ in leaves(job_config(node)) if path.endswith(f".{key}")]):  # lr=0.1
        return f"{key}: there is no '{key}' here. Did you mean {' or '.join(below)}?"
    if not parent and key in OTHER_NAMES:
        resuming = " To resume a run, use the same command again." * (key == "ckpt_path")
        return f"{key}: there is no '{key}' here. Did you mean {OTHER_NAMES[key]}?{resuming}"
    if parent in LISTED and name in options(parent):
        return f"{key}: {parent}={name} is not chosen. Use '{parent}=[{','.join([*map(str, node), name])}]' as well."
    keys = [str(key) for key in node if key not in ("_target_", "_partial_", "hydra")]
    text = _unknown(key, f"{parent or 'The configuration'} has", keys, f"{parent}." if parent else "")
    offered = options(parent) if parent in (*GROUPS, "trainer") else ()
    if having := [option for option in offered if name in option_file(f"{parent}/{option}")]:
        text += f" It belongs to {parent}={','.join(having)}; in a sweep over {parent}, use ++{key}=VALUE."
    elif "_target_" in node:
        text += f" If it is another argument of {node['_target_']}, use +{key}=VALUE."
    return text


def _by_name(group: str) -> str:
    """Advertises the options of a group that take the name of something else: those with a value that must be given."""
    found = []
    for option in options(group):
        needed = [key for key, value in option_file(f"{group}/{option}").items() if value == "???"]
        found += [f"{group}={option} {group}.{key}=VALUE" for key in needed[:1]]
    return f" Others by name: {', '.join(found)}." if found else ""


def _unknown(given: str, offers: str, options: Sequence[str], prefix: str) -> str:
    wrong = re.split(r"[.=]", given)[-1]
    alike = {re.sub(r"[-_]", "", option).lower(): option for option in options}
    close = difflib.get_close_matches(re.sub(r"[-_]", "", wrong).lower(), alike, n=1)
    advice = f"Did you mean {prefix}{alike[close[0]]}?" if close else HELP
    return f"{given}: there is no '{wrong}'. {offers} {', '.join(options) or 'no values'}. {advice}"
