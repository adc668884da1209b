"""Whatever is typed is composed and checked, or refused in one paragraph: command lines drawn at random.

CNNLAB_FUZZ=2000 draws so many; CI draws a few.
"""

import io
import os
import re
import sys
from contextlib import redirect_stderr
from pathlib import Path

import hypothesis.strategies as st
import pytest
from conftest import ROOT
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from omegaconf.errors import OmegaConfBaseException

from cnnlab.config.check import check
from cnnlab.config.errors import refuse
from cnnlab.config.identity import configuration
from cnnlab.config.options import GROUPS as MADE
from cnnlab.config.options import LISTED, OVERLAYS, VARIABLE, UserError, leaves, option_file, options
from cnnlab.config.overrides import check_overrides

NUM = int(os.environ.get("CNNLAB_FUZZ", "40"))
OWN = str(ROOT / "examples" / "own_project" / "conf")
GROUPS = (*MADE, "trainer", "logger", *OVERLAYS)
with pytest.MonkeyPatch.context() as patch:
    patch.setenv(VARIABLE, OWN)
    OPTIONS = {group: options(group) for group in GROUPS}
    KEYS = sorted(
        {path for path, _ in leaves({key: value for key, value in option_file("train").items() if key != "defaults"})}
        | {
            f"{group}.{option}.{path}" if group in LISTED else f"{group}.{path}"
            for group in GROUPS
            if group not in OVERLAYS
            for option in OPTIONS[group]
            for path, _ in leaves(option_file(f"{group}/{option}"))
            if "_" not in path[:1]
        }
    )
VALUES = st.one_of(
    st.sampled_from(
        ("", "null", "true", "no", "0", "-1", "1e308", "-inf", "nan", "[]", "{}", "[1,a]", "{a:1}", "'", '"', "${seed}")
        + ("${oc.env:HOME}", "${nothing}", "/dev/null", "../..", "1,2", "range(3)", "é", "a b", "\\", "=", "@", "[[1]]")
        + (
            "data.num_classes",
            "data.x",
            "run.path",
            "a" * 5000,
            "[" * 100,
            "x/y",
            ".",
            "trainer",
            "outputs",
            "{x: ???}",
        )
        + ("10000000000000000000000", "0x10", "1_000", ".5", "~", "???", "_target_", "os.system", "a" * 300, "\x1b[31m")
    ),
    st.integers(-10, 10**6).map(str),
    st.floats().map(str),
    st.text(max_size=6),
)
WORDS = st.one_of(
    st.builds("{}={}".format, st.sampled_from(KEYS), VALUES),
    st.builds("{}={}".format, st.sampled_from(GROUPS), VALUES),
    st.sampled_from([f"{group}={option}" for group in GROUPS for option in OPTIONS[group]]),
    st.builds("{}{}".format, st.sampled_from("+~"), st.sampled_from(KEYS)),
    st.builds("{}{}={}".format, st.sampled_from(("+", "++", "~")), st.sampled_from(KEYS), VALUES),
    st.text(max_size=12),
)


@pytest.fixture
def own_options(monkeypatch):
    """Those of the example project beside ours."""
    monkeypatch.setenv(VARIABLE, OWN)
    monkeypatch.setattr(sys, "path", [*sys.path])


@settings(
    max_examples=NUM, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=NUM < 100
)
@given(words=st.lists(WORDS, min_size=1, max_size=3))
def test_a_command_line_is_composed_or_refused(own_options, words):
    folder = Path.cwd()
    words = ["data=shapes", "data.num_train=300", "batch_size=10", *words, f"cache_dir={folder}/cache"]
    try:
        check_overrides(words)
        check(configuration(words))
    except (UserError, HydraException, OmegaConfBaseException) as mistake:
        error = mistake
    else:
        error = None
    if error is not None:
        with redirect_stderr(io.StringIO()) as written:
            assert refuse(error) == 2
        [said] = written.getvalue().split("\n")[:-1]
        assert len(said) > len("cnnlab: ")
        assert not re.search("Traceback|<class '|object at 0x", said)
    assert {path.name for path in folder.iterdir()} <= {"cache", "outputs"}


@pytest.mark.parametrize("place", range(4))
def test_verbs_take_folders_of_options_wherever_they_are_given(tmp_path, monkeypatch, verb, place):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: cnnlab.networks.Linear\n")
    monkeypatch.setenv(VARIABLE, "")
    words = ["show", "--num=1", "data=shapes", "model=mine"]
    words[place:place] = ["--config-dir", str(tmp_path / "conf")]
    result = verb(*words, "seed=x")
    assert (result.returncode, result.stderr.split(" is ")[0]) == (2, "cnnlab: seed=x")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--help", "adam"), "optim=adam"),
        (("help", "sched"), "sched=OPTION"),
        (("--help", "ls"), "usage: cnnlab ls"),
        (("help",), "usage: cnnlab [-h]"),
    ],
)
def test_help_is_found_wherever_it_is_asked_for(verb, words, line):
    result = verb(*words)
    assert result.returncode == 0
    assert line in result.stdout


def test_training_takes_folders_of_options_before_its_verb(tmp_path, monkeypatch, verb):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("# My own.\n_target_: cnnlab.networks.Linear\n")
    monkeypatch.setenv(VARIABLE, "")
    assert "My own." in verb("--config-dir", str(tmp_path / "conf"), "train", "--help", "model").stdout
