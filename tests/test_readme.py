"""The README names every option, and its commands exist."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
OPTIONS = sorted(path.relative_to(ROOT / "conf") for path in (ROOT / "conf").glob("*/*.yaml"))


def offered() -> dict[str, set[str]]:
    """Group -> the options in the rows of the table."""
    table = README[README.index("| group | option |") : README.index("Besides:")]
    found: dict[str, set[str]] = {}
    last: set[str] = set()
    for row in table.splitlines()[2:]:
        if row.startswith("|"):
            group, options = (cell.strip() for cell in row.split("|")[1:3])
            last = found.setdefault(group, set()) if group else last
            last |= set(re.sub(r"\*", "", options).split(", "))
    return found


OFFERED = offered()


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_is_named(option):
    """In the row of its group."""
    name = "fig01 ... fig13" if option.stem.startswith("fig") else option.stem
    assert name in OFFERED[option.parent.name]


def test_every_target_of_make_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^    |`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_of_the_house_exists():
    house = README[README.index("## The house") :]
    for name in re.findall(r"[\w/]+\.py", house):
        assert [path for path in ROOT.glob(f"**/{name}") if ".venv" not in path.parts], name
