"""The README names every option, and its commands exist."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
OPTIONS = sorted(path.relative_to(ROOT / "conf") for path in (ROOT / "conf").glob("*/*.yaml"))


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_is_named(option):
    if option.parent.name == "experiment":
        pattern = r"\| experiment \| fig01 \.\.\."
    else:
        pattern = rf"\b{option.stem}\b"
    assert re.search(pattern, README)


def test_every_target_of_make_that_is_named_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^    |`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_of_the_house_exists():
    house = README[README.index("## The house") :]
    for name in re.findall(r"[\w/]+\.py", house):
        assert list(ROOT.glob(f"**/{name}")), name
