"""Checks a command line before Hydra reads it, whose own errors are tracebacks. Does not import torch."""

import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException

from cnnlab.config.errors import OTHER_NAMES
from cnnlab.config.identity import NOT_OWN
from cnnlab.config.options import (
    GROUPS,
    LISTED,
    UserError,
    default_option,
    files,
    leaves,
    option_file,
    options,
    refuse_folder,
)
from cnnlab.text import say

NEEDED = (*GROUPS, "trainer", "logger")
OPTIONAL = ("experiment", "debug", "launcher")
LONGEST = 100  # characters in the name of an option
FLAGS = (  # of Hydra
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
)
ONE_OF = {short: flag for flag in ("--multirun", "--run", "--cfg", "--info") for short in (flag, flag[1:3])}


def flags_last(words: Sequence[str]) -> list[str]:
    """The words of a command line in the order that Hydra needs: flags and their values after all overrides."""
    flags, others = list[str](), list[str]()
    for before, word in pairwise(("", *words)):
        is_value = before.startswith("-") and before not in ("-m", "--multirun") and not re.search("^[-+~]|=", word)
        (flags if word.startswith("-") or is_value else others).append(word)
    return others + flags


def own_folders(words: list[str]) -> list[str]:
    """Remove every --config-dir FOLDER and -cd FOLDER from the words of a command line; return the folders."""
    found: list[str] = []
    for place in reversed(range(len(words))):
        if words[place].startswith("--config-dir="):
            found.insert(0, words.pop(place).partition("=")[2])
        elif words[place] in ("--config-dir", "-cd") and words[place + 1 :]:
            found.insert(0, words.pop(place + 1))
            del words[place]
    return found


def check_flags(words: Sequence[str]) -> None:
    """Refuse flags that Hydra does not know: instead of `--epochs 3`, use trainer.max_epochs=3."""
    modes = {ONE_OF[flag] for word in words if (flag := word.partition("=")[0]) in ONE_OF}
    if len(modes) > 1:
        raise UserError(f"{' and '.join(sorted(modes))}: a command can have only one of these. Leave the others out.")
    for word, next_word in zip_longest(words, words[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or flag == "--" or any(known.startswith(flag) for known in FLAGS):
            continue
        value = (value if equals or "=" in next_word or next_word.startswith("-") else next_word) or "VALUE"
        instead = " or ".join(f"{key}={value}" for key in _meant(flag)) or "python train.py --help to see the keys"
        raise UserError(f"{flag} is not an option: values are set as key=value, without dashes. Use {instead}.")


def _meant(flag: str) -> list[str]:
    """The keys that a flag may mean: --max-epochs, --epochs -> trainer.max_epochs."""
    name = flag.lstrip("-").replace("-", "_").lower()
    name = OTHER_NAMES.get(name, name)
    if name in (*NEEDED, *OPTIONAL):
        return [name]
    known = [path for path, _ in leaves(option_file("train"))]
    for group in NEEDED:
        for option in default_option(group).split("+"):
            prefix = f"{group}.{option}." if group in LISTED else f"{group}."
            known += [prefix + path for path, _ in leaves(option_file(f"{group}/{option}"))]
    for alike in (lambda key: key == name, lambda key: key.endswith(f"_{name}"), lambda key: name in key):
        if found := [path for path in known if path == name or alike(path.rpartition(".")[2])]:
            return found[:3]
    return difflib.get_close_matches(name, known, n=1)


def check_overrides(words: Sequence[str]) -> None:
    """Raises: UserError for overrides without a key, groups without an option, and groups that are set twice.

    words: of the command line. Flags, and what cannot be parsed, are left to Hydra.
    """
    parser, before = OverridesParser.create(), dict[str, str]()
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.subdir") and not value.strip("'\"").endswith("${cnnlab.run_id:}"):
            raise UserError(f"{word} {NOT_OWN}")  # Hydra would create it before anything is checked
        if key == "hydra":
            raise UserError(f"{word}: Hydra's settings cannot be replaced. Leave this out.")
        if key == "hydra.output_subdir":  # Hydra would write there before anything is checked
            raise UserError(f"{word}: the run writes its configuration itself, to .hydra. Leave this out.")
        if key in ("name", "output_dir") and value in ("", "null"):
            raise UserError(f"{word} names no folder. Use {key}=FOLDER, or leave it out.")
        try:
            override = parser.parse_override(word)
        except HydraException:
            continue
        group = override.key_or_group
        if not group:
            raise UserError(f"{word} has nothing before the equals sign. Use key=value.")
        if group not in (*NEEDED, *OPTIONAL, "hydra/sweeper"):
            continue
        names, swept = list(chosen(override.value())), override.is_sweep_override()
        if group in LISTED and "none" not in names and before.setdefault(group, word) != word:
            both = ",".join(one.partition("=")[2].strip("[]") for one in (before[group], word))
            raise UserError(
                f"{before[group]} and {word}: the second would replace the first. Use '{group}=[{both}]' for both."
            )
        if group not in LISTED and not override.is_delete() and before.setdefault(group, word) != word:
            raise UserError(f"{before[group]} and {word}: the second would replace the first. Leave one of them out.")
        offered = f"{group}= and one of {', '.join(options(group))}"
        if group in NEEDED and (override.is_delete() or None in names):
            raise UserError(f"{word} leaves no {group}, and a run needs one. Use {offered}.")
        if override.is_delete():
            continue
        if group == "launcher" and swept:
            raise UserError(f"{word}: all runs of a sweep have the same launcher. Use {offered}.")
        if None in names:
            where = "in a command of its own" if swept else "which is the same"
            raise UserError(f"{word}: null is not allowed here. Leave {group} out, {where}.")
        if wrong := [name for name in names if str(name).endswith((".yaml", ".yml"))]:
            raise UserError(f"{word}: {wrong[0]} is a file. Use {group}={wrong[0].rpartition('.')[0]}.")
        if any(len(str(name)) > LONGEST for name in names):  # no file can have that name
            raise UserError(f"{word[:60]}...: there is no such option. Use {offered}.")
        if wrong := [name for name in names if not isinstance(name, str | None)]:
            raise UserError(f"{word}: {wrong[0]} is not the name of an option. Use {offered}.")
        for name in names:
            refuse_folder(group, str(name))
        for name in files(group).keys() & set(names):
            option_file(f"{group}/{name}")  # Hydra's errors for a file that cannot be read are tracebacks


def note_repeats(words: Sequence[str]) -> None:
    """Say which values are set twice; Hydra takes the last one, by which scripts replace their own defaults."""
    before = dict[str, str]()
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if equals and key[:1] not in ("-", "~") and before.setdefault(key, value) != value:
            first, before[key] = before[key], value
            say(
                f"cnnlab: {key}={first} and {key}={value}: the second replaces the first. Use -m "
                f"'{key}={first},{value}' to train a run for each.",
                sys.stderr,
            )


def chosen(value: Any) -> Iterator[Any]:
    """The options in the value of an override: text, or whatever stands there; None for null and an empty list."""
    if isinstance(value, ChoiceSweep | list):
        elements = value if isinstance(value, list) else value.list
        for element in elements or [None]:
            yield from [element] if isinstance(value, list) and isinstance(element, list) else chosen(element)
    elif isinstance(value, QuotedString):
        yield value.text
    elif isinstance(value, RangeSweep):
        yield from value.range()
    elif isinstance(value, Glob):
        yield ""
    else:
        yield str(value) if isinstance(value, Sweep) else value
