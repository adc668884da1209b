"""Mistakes of the user: one paragraph each."""

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


@contextmanager
def refusing() -> Iterator[None]:
    """Within the block, a mistake that we or Hydra find ends the process with one paragraph and status 2."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(refuse(error))


def refuse(error: Exception) -> int:
    """Print the one paragraph for a user's mistake; return the exit status 2."""
    say(f"cnnlab: {explain(error).replace(chr(10), ' ')}", file=sys.stderr)
    return 2


def explain(error: Exception) -> str:
    """One paragraph for a mistake that we or Hydra found: what was given, what is allowed, what to type."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        if re.search(r"\(.*\bnull\b", error.override):
            return f"{error.override}: null cannot stand in parentheses. Type the list alone, key=null,1.0."
        return (
            f"{error.override} cannot be read. Type key=value; lists in quotes, 'key=[a,b]'; "
            f"other than letters, digits and ./:_- in two pairs of quotes, 'key=\"(my pictures)\"'."
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        said = _unknown(f"{group}={option}", f"The group {group} offers", error.options or options(group), f"{group}=")
        return said + by_name(group)
    if found := re.search(r"Ambiguous value for argument '(.*?)'", str(error)):
        key, _, values = found[1].partition("=")
        several = f", or '{key}=[{values}]' for all of them in one run" if key in LISTED else ""
        several = several if key in (*GROUPS, "trainer", "logger") else f", or '{key}=[{values}]' for a list"
        return f"{found[1]} has several values. Use python train.py -m to train a run for each{several}."
    cause = error.__cause__
    if (
        isinstance(cause, ConfigAttributeError | ConfigKeyError)
        and cause.full_key
        and isinstance(cause.parent_node, DictConfig)
    ):
        parent = cause.full_key.rpartition(".")[0]
        keys = [str(key) for key in cause.parent_node if key not in ("_target_", "_partial_", "hydra")]
        prefix = f"{parent}." if parent else ""
        knobs = () if parent else (path for path, _ in leaves(job_config(cause.parent_node)))
        if below := [path for path in knobs if path.endswith(f".{cause.full_key}")]:  # lr=0.1
            return f"{cause.full_key}: there is no '{cause.full_key}' here. Did you mean {' or '.join(below)}?"
        said, key = _unknown(cause.full_key, f"{parent or 'The configuration'} has", keys, prefix), cause.full_key
        offered = options(parent) if parent in (*GROUPS, "trainer") else ()
        if having := [name for name in offered if key.rpartition(".")[2] in option_file(f"{parent}/{name}")]:
            said += f" It is one of {parent}={','.join(having)}; in a sweep over {parent}, use ++{key}=VALUE."
        return said
    text = re.sub(r"\s*(full_key|object_type|reference_type).*|\s+", " ", f"{error} {cause or ''}").strip()
    return f"{text} (python train.py --help shows what can be typed.)"


def by_name(group: str) -> str:
    """The options of a group that bring in others by their names: those with one value that must be given."""
    typed = []
    for name in options(group):
        asked = [key for key, value in option_file(f"{group}/{name}").items() if value == "???"]
        typed += [f"{group}={name} {group}.{key}=..." for key in asked[:1]]
    return f" Others by name: {', '.join(typed)}." if typed else ""


def _unknown(given: str, offers: str, options: Sequence[str], prefix: str) -> str:
    wrong = re.split(r"[.=]", given)[-1]
    close = difflib.get_close_matches(wrong, options, n=1)
    advice = f"Did you mean {prefix}{close[0]}?" if close else "python train.py --help shows what can be typed."
    return f"{given}: there is no '{wrong}'. {offers} {', '.join(options)}. {advice}"
