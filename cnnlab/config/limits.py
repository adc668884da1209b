"""Checks values against the limits in their option files. Does not import torch."""

import ast
import builtins
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from cnnlab.config.identity import is_file, is_run
from cnnlab.config.options import UserError
from cnnlab.config.shape import fits, is_size
from cnnlab.config.values import as_typed

NULLABLE = ("checkpoint.every_n_minutes",)  # values that may be null although their default is a number
PREDICATES = {  # functions that a limit may call, and what a value is not if they are false
    is_file: "a file",
    is_run: "a run directory",
    is_size: "a whole number from 1 to 4096, or two as [height,width]",
    fits: "small enough for the images",
}
EXPECTED = {bool: "true or false", int: "a whole number", float: "a finite number", list: "a list, [a,b,...]"}


def refuse_unknown_names(job: Mapping[str, Any], defaults: Mapping[str, Any], limits: Mapping[str, str]) -> None:
    """Raises: UserError for a limit with a name that is never known, such as a misspelled one."""
    for path, limit in limits.items():
        parent, _, key = path.rpartition(".")
        beside = {other.removeprefix(f"{parent}.").partition(".")[0] for other in defaults if other.startswith(parent)}
        known = {*beside, *siblings(job, path), *dir(builtins), *(test.__name__ for test in PREDICATES), "data", "run"}
        with suppress(SyntaxError):  # reported when the value is checked
            names = [node for node in ast.walk(ast.parse(limit)) if isinstance(node, ast.Name)]
            known |= {node.id for node in names if isinstance(node.ctx, ast.Store)}  # [c > 0 for c in channels]
            if unknown := sorted({node.id for node in names} - known):
                raise UserError(
                    f"The comment on {path} in its option file has [{limit}], and there is no {unknown[0]}. Use {key} "
                    f"and other values of the option, data.NAME or run.NAME."
                )


def siblings(job: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The values beside one; none where keys have dots in them."""
    parent = path.rpartition(".")[0]
    beside = named_in(job, parent) if parent else job
    return dict(beside) if isinstance(beside, Mapping) else {}


def check_value(path: str, value: Any, default: Any, limit: str | None, known: Mapping[str, Any] | None = None) -> None:
    """Refuse a value of another type than its default, or one that does not satisfy its limit.

    limit: an expression, empty if there is none; None: the class checks the value itself. known: other names that the
    expression may use, with their values; without one of them it is not evaluated.
    """
    key = path.rpartition(".")[2]
    if limit is None or (value is None and path in NULLABLE):
        return
    if isinstance(default, str) and isinstance(value, int | float):  # name=2024
        value = str(value)
    example = f" Use for example {path}={as_typed(default)}, its default." if default not in (None, "???") else ""
    if type(default) in EXPECTED and f"is_size({key})" not in limit:
        accepted = (int, float) if isinstance(default, float) else type(default)
        if (
            not isinstance(value, accepted)
            or isinstance(value, bool) != isinstance(default, bool)
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise UserError(f"{path}={as_typed(value)} is not {EXPECTED[type(default)]}.{example}")
    if limit and value is not None:
        if as_typed(default) == as_typed(value):
            example = " Change one of them."
        try:
            tree = ast.parse(limit, mode="eval").body
        except SyntaxError as error:
            raise UserError(
                f"The comment on {path} in its option file has [{limit}], which is no condition in Python. Write it "
                f"without brackets."
            ) from error
        for clause in tree.values if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]:
            _check_clause(path, value, ast.unparse(clause), {**(known or {}), key: value}, example)


def _check_clause(path: str, value: Any, clause: str, known: Mapping[str, Any], example: str) -> None:
    """Check one of the conditions that a limit joins by `and`, so that the message names the one that does not hold."""
    facts = sorted(set(re.findall(r"\b(?:data|run)(?:\.\w+)+\b(?!\()", clause)))  # without their methods
    context = {name: found for name in facts if (found := named_in(known, name)) is not None}
    if len(context) < len(facts):
        return
    read = {node.id for node in ast.walk(ast.parse(clause)) if isinstance(node, ast.Name)}
    context |= {name: known[name] for name in sorted(read & known.keys() - {path.rpartition(".")[2], "data", "run"})}
    names = {name: _as_object(known[name]) if name in ("data", "run") else known[name] for name in known}
    try:
        holds = eval(clause, names | {test.__name__: test for test in PREDICATES})  # the option file's own text
    except NameError:  # it depends on what is not known here
        return
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError):
        holds = False
    if not holds:
        given = f" with {', '.join(f'{name}={as_typed(found)}' for name, found in context.items())}" if context else ""
        called = re.findall(r"\b(\w+)\([^()]*\)(?: or |$)", clause)
        kinds = [kind for test, kind in PREDICATES.items() if test.__name__ in called]
        if len(kinds) == 1 + clause.count(" or "):  # nothing but these calls
            problem = f"is neither {' nor '.join(kinds)}" if kinds[1:] else f"is not {kinds[0]}"
            raise UserError(f"{path}={as_typed(value)} {problem}{given}.{example}")
        raise UserError(f"{path}={as_typed(value)} is not allowed{given}; it must satisfy {clause}.{example}")


def named_in(known: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None if there is none."""
    node: Any = known
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _as_object(node: Any) -> Any:
    """Mappings as objects with attributes."""
    if not isinstance(node, Mapping):
        return node
    return SimpleNamespace(**{str(key): _as_object(value) for key, value in node.items()})
