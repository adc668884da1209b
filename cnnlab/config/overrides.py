"""What is typed for a group of options, checked before Hydra, whose own refusals are tracebacks. No torch."""

from collections.abc import Iterable, Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString, RangeSweep, Sweep
from hydra.errors import HydraException

from cnnlab.config.identity import NOT_OWN
from cnnlab.config.options import GROUPS, UserError, options

NEEDED = (*GROUPS, "trainer", "logger")
OPTIONAL = ("experiment", "debug", "launcher")
LONGEST = 100  # characters in the name of an option


def check_overrides(words: Iterable[str]) -> None:
    """Refuse, with a UserError, overrides without a key and groups without an option.

    words: of the command line. Flags, and what cannot be read, are left to Hydra.
    """
    parser = OverridesParser.create()
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if key in ("hydra.run.dir", "hydra.sweep.subdir") and not value.strip("'\"").endswith("${run_id:}"):
            raise UserError(f"{word} {NOT_OWN}")  # Hydra would make it before anything is checked
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
        offered = f"{group}= and one of {', '.join(options(group))}"
        if override.is_delete() and group not in NEEDED:
            continue
        if group in NEEDED and (override.is_delete() or None in names):
            raise UserError(f"{word} leaves no {group}, and a run needs it. Type {offered}.")
        if group == "launcher" and swept:
            raise UserError(f"{word}: all runs of a sweep have the same launcher. Use {offered}.")
        if None in names:
            where = "in a command of its own" if swept else "which is the same"
            raise UserError(f"{word}: null cannot be typed here. Leave {group} out, {where}.")
        if wrong := [name for name in names if str(name).endswith((".yaml", ".yml"))]:
            raise UserError(f"{word}: {wrong[0]} is a file. Use {group}={wrong[0].rpartition('.')[0]}.")
        if any(len(str(name)) > LONGEST for name in names):  # no file can be called that
            raise UserError(f"{word[:60]}...: there is no such option. Use {offered}.")
        if wrong := [name for name in names if not isinstance(name, str | None)]:
            raise UserError(f"{word}: {wrong[0]} is not the name of an option. Use {offered}.")


def chosen(value: Any) -> Iterator[Any]:
    """The options in the value of an override: text, or what stands in its place; None for null and an empty list."""
    if isinstance(value, ChoiceSweep | list):
        elements = value if isinstance(value, list) else value.list
        for element in elements or [None]:
            yield from chosen(element)
    elif isinstance(value, QuotedString):
        yield value.text
    elif isinstance(value, RangeSweep):
        yield from value.range()
    elif isinstance(value, Glob):
        yield ""
    else:
        yield str(value) if isinstance(value, Sweep) else value
