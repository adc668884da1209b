"""The structure of cnnlab/: no circle among its packages, and no long file."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import cnnlab

ROOT = Path(cnnlab.__file__).parents[1]
FILES = sorted(Path(cnnlab.__file__).parent.rglob("*.py"))


def modules(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def package(path: Path) -> str:
    """cnnlab/train/run.py -> cnnlab/train; cnnlab/cli.py -> cnnlab/cli.py."""
    return "/".join(path.relative_to(ROOT).parts[:2])


def test_arrows_run_downwards_only():
    """Imports within functions count too."""
    below: dict[str, set[str]] = {package(path): set() for path in FILES}
    for path in FILES:
        for name in modules(ast.parse(path.read_text("utf-8"))):
            if name.startswith("cnnlab."):
                part = name.split(".")[1]
                below[package(path)].add(f"cnnlab/{part}" if (ROOT / "cnnlab" / part).is_dir() else f"cnnlab/{part}.py")
    for name, others in below.items():
        others.discard(name)
    order = list(TopologicalSorter(below).static_order())  # raises CycleError
    assert order.index("cnnlab/config") < order.index("cnnlab/runs") < order.index("cnnlab/train")


def test_no_file_is_longer_than_300_lines():
    assert {path.name: n for path in FILES if (n := len(path.read_text("utf-8").splitlines())) > 300} == {}
